package file_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/file"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// chunks cuts a file as the Node Daemon does.
func chunks(path string, data []byte, size int) (list []*pb.FileWriteRequest) {
	total := max((len(data)+size-1)/size, 1)
	for i := range total {
		part := data[i*size : min((i+1)*size, len(data))]
		list = append(list, &pb.FileWriteRequest{
			Path: path, Data: part, Offset: uint64(i * size), Eof: i == total-1, Mode: 0o640, CreateParents: true,
			ChunkNumber: uint32(i), TotalChunks: uint32(total),
			Crc32C: new(crc32.Checksum(part, crc32.MakeTable(crc32.Castagnoli))),
		})
	}
	return list
}

// send sends chunks that must be taken.
func (g *guest) send(list ...*pb.FileWriteRequest) {
	g.t.Helper()
	for _, in := range list {
		out, err := run[*pb.FileWriteResponse](g, "", in)
		if err != nil || !out.Success || out.BytesWritten != uint64(len(in.Data)) || out.ChunkNumber != in.ChunkNumber {
			g.t.Fatalf("chunk %d: %v, %v", in.ChunkNumber, out, err)
		}
	}
}

func random(size int) []byte {
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	return data
}

// staged are the names of files under way in a directory.
func (g *guest) staged(dir string) (names []string) {
	g.t.Helper()
	entries, err := os.ReadDir(g.dir + dir)
	must(g.t, err)
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".tmp") {
			names = append(names, e.Name())
		}
	}
	return names
}

func TestAnUploadTakesItsPlaceWithTheLastChunk(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.mkdir("/d")
	g.write("/d/f", "old")
	data := random(10*65536 + 5)
	list := chunks("/d/f", data, 65536)
	list[len(list)-1].Sha256 = digest(data)
	for _, in := range list[:len(list)-1] {
		g.send(in)
		g.has("/d/f", "old")
		info, err := os.Stat(g.dir + "/d/" + g.staged("/d")[0])
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Fatalf("while it comes: %v, %v", info.Mode(), err)
		}
	}
	g.send(list[len(list)-1])
	g.has("/d/f", string(data))
	if info, err := os.Stat(g.dir + "/d/f"); err != nil || info.Mode() != 0o640 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	g.names("/d", "f")
	g.send(list[len(list)-1]) // its reply was lost
	g.refused("changed", "", list[3])
	g.has("/d/f", string(data))
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func TestAnEmptyChunkMakesAnEmptyFile(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.send(chunks("/a/b/f", nil, 10)...)
	g.has("/a/b/f", "")
	g.send(&pb.FileWriteRequest{Path: "/g", Eof: true})
	if info, err := os.Stat(g.dir + "/g"); err != nil || info.Mode() != 0o644 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestAChunkThatIsNotTheNextIsRefusedAndTheUploadGoesOn(t *testing.T) {
	g := newGuest(t, file.Config{})
	data := random(50)
	list := chunks("/f", data, 10)
	g.refused("changed", "", list[1]) // nothing began
	g.send(list[0], list[0])          // sent again
	g.refused("invalid", "", list[2])
	g.refused("invalid", "", list[4])
	g.send(list[1], list[1])
	g.refused("invalid", "", &pb.FileWriteRequest{Path: "/f", Data: []byte("other"), Offset: 10, ChunkNumber: 1, TotalChunks: 5})
	g.refused("invalid", "", &pb.FileWriteRequest{Path: "/f", Data: data[20:30], Offset: 21, ChunkNumber: 2, TotalChunks: 5})
	g.refused("invalid", "", &pb.FileWriteRequest{Path: "/f", Data: data[20:30], Offset: 20, ChunkNumber: 2, TotalChunks: 6})
	g.refused("invalid", "", &pb.FileWriteRequest{Path: "/f", Data: data[20:30], Offset: 20, ChunkNumber: 2, TotalChunks: 5, Eof: true})
	g.refused("invalid", "", &pb.FileWriteRequest{Path: "/f", Data: data[20:30], Offset: 20, ChunkNumber: 2, Eof: true})
	g.refused("invalid", "", &pb.FileWriteRequest{Path: "/f", Data: data[20:30], Offset: 20, ChunkNumber: 2, Append: true})
	damaged := *list[2].Crc32C + 1
	g.refused("corrupt", "", &pb.FileWriteRequest{Path: "/f", Data: data[20:30], Offset: 20, ChunkNumber: 2, TotalChunks: 5, Crc32C: &damaged})
	g.refused("invalid", "", &pb.FileWriteRequest{Path: "/f", Offset: 40, ChunkNumber: 4, TotalChunks: 5})
	g.names("/", g.staged("/")...)
	g.send(list[2:]...)
	g.has("/f", string(data))
	g.names("/", "f")
}

func TestTheTotalMayComeWithTheFirstChunkAloneOrNever(t *testing.T) {
	g := newGuest(t, file.Config{})
	data := random(50)
	list := chunks("/f", data, 10)
	for _, in := range list[1:] {
		in.TotalChunks = 0
	}
	g.send(list...)
	g.has("/f", string(data))
	list = chunks("/g", data, 10)
	for _, in := range list { // a host that knows offsets alone
		in.TotalChunks, in.ChunkNumber = 0, 0
	}
	g.send(list[0], list[1], list[1])
	g.refused("invalid", "", list[3])
	g.send(list[2:]...)
	g.has("/g", string(data))
}

func TestChunkZeroBeginsAnew(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.send(chunks("/f", random(50), 10)[:3]...)
	g.send(chunks("/f", []byte("another one"), 3)...)
	g.has("/f", "another one")
	g.names("/", "f")
	g.send(chunks("/f", []byte("x"), 3)...)
	must(t, os.Remove(g.dir+"/f"))
	g.send(chunks("/f", []byte("x"), 3)...) // the same again is a new upload
	g.has("/f", "x")
}

func TestADigestThatDoesNotHoldDropsTheUpload(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.write("/f", "old")
	list := chunks("/f", random(30), 10)
	list[2].Sha256 = digest([]byte("something else"))
	g.send(list[:2]...)
	g.refused("corrupt", "", list[2])
	g.has("/f", "old")
	g.names("/", "f")
	g.refused("changed", "", list[2])
	g.refused("invalid", "", &pb.FileWriteRequest{Path: "/f", Eof: true, Sha256: "abc"})
}

func TestAnUploadThatAppendsDoesSoOnceAtTheEnd(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.write("/log", "0\n")
	must(t, os.Chmod(g.dir+"/log", 0o600))
	first := &pb.FileWriteRequest{Path: "/log", Append: true, Data: []byte("1\n"), TotalChunks: 2}
	last := &pb.FileWriteRequest{Path: "/log", Append: true, Data: []byte("2\n"), ChunkNumber: 1, TotalChunks: 2, Eof: true}
	g.send(first, first)
	g.has("/log", "0\n")
	g.send(last, last)
	g.has("/log", "0\n1\n2\n")
	if info, err := os.Stat(g.dir + "/log"); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	line := &pb.FileWriteRequest{Path: "/log", Append: true, Data: []byte("3\n"), Eof: true}
	g.call.ID = "a"
	g.send(line, line) // one request, sent twice
	g.has("/log", "0\n1\n2\n3\n")
	g.call.ID = "b"
	g.send(line) // the same wish again
	g.has("/log", "0\n1\n2\n3\n3\n")
	g.send(&pb.FileWriteRequest{Path: "/fresh", Append: true, Data: []byte("x"), Eof: true})
	g.has("/fresh", "x")
	g.names("/", "fresh", "log")
}

func TestAnIdleUploadIsDroppedWithItsDirectories(t *testing.T) {
	g := newGuest(t, file.Config{UploadIdle: 50 * time.Millisecond})
	list := chunks("/a/b/f", random(30), 10)
	g.send(list[0])
	deadline := time.Now().Add(60 * time.Second)
	for {
		if _, err := os.Stat(g.dir + "/a"); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("still there: %v", g.staged("/a/b"))
		}
		time.Sleep(time.Millisecond)
	}
	g.refused("changed", "", list[1])
	g.names("/")
}

func TestCloseDropsWhatIsUnderWay(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.write("/f", "old")
	list := chunks("/f", random(30), 10)
	g.send(list[0])
	g.send(chunks("/a/g", random(30), 10)[0])
	must(t, g.room.Close())
	g.has("/f", "old")
	g.names("/", "f")
	g.refused("busy", "", list[1])
	g.refused("busy", "", list[0])
}

func TestUploadsOfTwoPortsDoNotMix(t *testing.T) {
	g := newGuest(t, file.Config{})
	one, two := chunks("/f", []byte("111111"), 2), chunks("/f", []byte("222222"), 2)
	g.send(one[0])
	g.call.Port = "1"
	g.send(two[0])
	g.call.Port = "0"
	g.send(one[1:]...)
	g.has("/f", "111111")
	g.call.Port = "1"
	g.send(two[1:]...)
	g.has("/f", "222222")
}

// An upload with a name goes on over another connection from the first chunk that its host heard nothing of, also where the
// agent had taken that and more; another name, or another port, is another upload.
func TestAnUploadWithANameIsResumed(t *testing.T) {
	g := newGuest(t, file.Config{})
	named := func(name string) []*pb.FileWriteRequest {
		list := chunks("/f", []byte("aabbccddee"), 2)
		for _, in := range list {
			in.Upload = name
		}
		return list
	}
	list := named("one")
	g.call.Session = "first"
	g.send(list[:4]...)
	g.room.SessionClosed(g.call.Port, "first")
	g.call.Session = "second"
	g.refused("changed", "", named("another")[4])
	port := g.call.Port
	g.call.Port = "elsewhere"
	g.refused("changed", "", list[4])
	g.call.Port = port
	g.send(list[1:4]...)
	g.send(list[0]) // does not begin anew
	g.refused("invalid", "", &pb.FileWriteRequest{Path: "/f", Upload: "one", Data: []byte("xx"), Offset: 4, ChunkNumber: 2})
	g.send(list[4])
	g.has("/f", "aabbccddee")
	g.send(list[3:]...) // their replies were lost
	g.has("/f", "aabbccddee")
	g.refused("invalid", "", named(strings.Repeat("x", 129))[0])
}

// An upload with a name whose host does not come back is dropped.
func TestAnUploadWithANameWaitsForAWhile(t *testing.T) {
	g := newGuest(t, file.Config{UploadIdle: 50 * time.Millisecond})
	g.mkdir("/d")
	in := chunks("/d/f", []byte("aabb"), 2)
	in[0].Upload = "one"
	g.call.Session = "first"
	g.send(in[0])
	g.room.SessionClosed(g.call.Port, "first")
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		entries, err := os.ReadDir(g.dir + "/d")
		must(t, err)
		if len(entries) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("what was staged stays: ", entries)
		}
	}
}

// What a transaction has changed is found through links as well, and also where that began between two chunks.
func TestAnUploadLeavesWhatATransactionHasChanged(t *testing.T) {
	for _, name := range []string{"one name", "several names"} {
		g := newGuest(t, file.Config{})
		g.write("/f", "of the transaction")
		must(t, os.Symlink("f", g.dir+"/l"))
		if name == "several names" { // is written in place
			must(t, os.Link(g.dir+"/f", g.dir+"/g"))
		}
		busy := func(path string) error {
			if path == "/f" {
				return fault.ErrBusy
			}
			return nil
		}
		for _, appends := range []bool{true, false} {
			list := chunks("/l", []byte("xy"), 1)
			for _, c := range list {
				c.Append = appends
			}
			g.call.Kept = busy
			g.refused("busy", "", list[0])
			g.call.Kept = nil
			g.send(list[0])
			g.call.Kept = busy
			g.refused("busy", "", list[1])
			g.has("/f", "of the transaction")
		}
		g.call.Kept = nil
		g.send(chunks("/l", []byte("xy"), 1)...)
		g.has("/f", "xy")
	}
}

func TestTooManyUploadsAreRefused(t *testing.T) {
	g := newGuest(t, file.Config{MaxUploads: 2})
	for i := range 5 {
		g.send(chunks(fmt.Sprintf("/done%d", i), []byte("x"), 1)...)
	}
	a, b, c := chunks("/a", random(4), 1), chunks("/b", random(4), 1), chunks("/c", random(4), 1)
	g.send(a[0], b[0])
	g.refused("busy", "", c[0])
	g.send(a[1:]...)
	g.send(c...)
	g.send(b[1:]...)
}

func TestManyUploadsAtOnceAreAllWhole(t *testing.T) {
	g := newGuest(t, file.Config{})
	var group sync.WaitGroup
	errs := make([]error, 16)
	data := random(300_000)
	for i := range errs {
		group.Go(func() {
			call := &builtins.Call{Port: fmt.Sprint(i)}
			for _, in := range chunks(fmt.Sprintf("/dir/f%d", i%4), data, 10_000) {
				if _, err := g.calls.Execute(t.Context(), call, g.table.Native(in), in); err != nil {
					errs[i] = err
					return
				}
			}
		})
	}
	group.Wait()
	for i, err := range errs {
		if err != nil {
			t.Error(err)
		}
		g.has(fmt.Sprintf("/dir/f%d", i%4), string(data))
	}
	g.names("/dir", "f0", "f1", "f2", "f3")
}

func TestWhatAnUploadMustNotReplaceIsRefusedAtOnce(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.mkdir("/d")
	g.write("/one", "1")
	mkfifo(t, g.dir+"/fifo")
	start := time.Now()
	for path, code := range map[string]string{"/d": "is_directory", "/fifo": "refused", "/": "is_directory", "/one/x": "not_directory", "relative": "invalid"} {
		g.refused(code, "", chunks(path, random(20), 10)[0])
	}
	g.refused("refused", "", &pb.FileReadRequest{Path: "/fifo"})
	g.refused("invalid", "", &pb.FileWriteRequest{Path: "/f", Mode: 0o40755, Eof: true})
	g.refused("invalid", "", &pb.FileWriteRequest{Path: "/f", Owner: "nobody-here", Eof: true})
	if took := time.Since(start); took > 30*time.Second { // a FIFO that is opened waits for ever
		t.Errorf("took %v", took)
	}
	g.send(&pb.FileWriteRequest{Path: "/f", Mode: 0o100600, Eof: true})
	g.names("/", "d", "f", "fifo", "one")
}

func TestAFullDiskIsAnErrorAndNothingIsLeft(t *testing.T) {
	g := guestAt(t, tmpfs(t, "size=1m"), file.Config{})
	g.write("/f", "old")
	var last string
	for _, in := range chunks("/new/dir/f", random(2<<20), 65536) {
		if _, err := run[*pb.FileWriteResponse](g, "", in); err != nil {
			last = g.refused("changed", "", in)
			break
		}
	}
	if last == "" {
		t.Error("2 MiB went into 1 MiB")
	}
	g.names("/", "f")
	g.refused("no_space", "file.write", &pb.WriteFileArgs{Path: "/f", Content: random(2 << 20)})
	g.refused("no_space", "file.write", &pb.WriteFileArgs{Path: "/f", Content: random(2 << 20), Inplace: true})
	g.refused("no_space", "file.append", &pb.WriteFileArgs{Path: "/f", Content: random(2 << 20), Inplace: true})
	g.refused("no_space", "", &pb.FileWriteRequest{Path: "/f", Append: true, Data: random(2 << 20), Eof: true})
	g.has("/f", "old")
	g.names("/", "f")
}

func TestAPlantedLinkIsNotWrittenThrough(t *testing.T) {
	needRoot(t, "another user's link has to be made")
	dir, err := os.MkdirTemp("", "planted")
	must(t, err)
	defer os.RemoveAll(dir)
	must(t, os.Chmod(dir, 0o777|os.ModeSticky))
	g := guestAt(t, "/", file.Config{})
	must(t, os.WriteFile(dir+"/victim", []byte("kept"), 0o600))
	must(t, os.Symlink(dir+"/victim", dir+"/x"))
	must(t, os.Lchown(dir+"/x", 12345, 12345))
	g.refused("refused", "", chunks(dir+"/x", []byte("bad"), 10)[0])
	g.refused("refused", "", &pb.FileWriteRequest{Path: dir + "/x", Append: true, Data: []byte("bad"), Eof: true})
	g.refused("refused", "", &pb.FileReadRequest{Path: dir + "/x"})
	g.refused("refused", "file.write", &pb.WriteFileArgs{Path: dir + "/x", Content: []byte("bad"), Inplace: true})
	g.refused("refused", "file.chmod", &pb.ChmodArgs{Path: dir + "/x", Mode: "0666"})
	if content, err := os.ReadFile(dir + "/victim"); string(content) != "kept" {
		t.Errorf("%q, %v", content, err)
	}
	must(t, os.Lchown(dir+"/x", 0, 0))
	g.send(chunks(dir+"/x", []byte("own"), 10)...)
	if content, err := os.ReadFile(dir + "/victim"); string(content) != "own" {
		t.Errorf("an own link was not followed: %q, %v", content, err)
	}
}

func TestNobodyElseReadsAnUploadUnderWay(t *testing.T) {
	needRoot(t, "another user has to try")
	dir, err := os.MkdirTemp("", "upload")
	must(t, err)
	defer os.RemoveAll(dir)
	must(t, os.Chmod(dir, 0o755))
	g := guestAt(t, dir, file.Config{})
	list := chunks("/secret", bytes.Repeat([]byte("s"), 30), 10)
	g.send(list[:2]...)
	staged := g.staged("/")
	if len(staged) != 1 {
		t.Fatalf("staged: %v", staged)
	}
	if err := asOther(func() error {
		file, err := os.Open(dir + "/" + staged[0])
		if err == nil {
			file.Close()
		}
		return err
	}); !os.IsPermission(err) {
		t.Errorf("another user opened it: %v", err)
	}
	for _, in := range list {
		in.Mode = 0o644
	}
	g.send(list[2])
	if err := asOther(func() error {
		_, err := os.ReadFile(dir + "/secret")
		return err
	}); err != nil {
		t.Errorf("with mode 0644 all may read it: %v", err)
	}
}

func TestAMoveToAnotherFileSystemIsACopy(t *testing.T) {
	outer := tmpfs(t, "size=1m")
	must(t, os.Mkdir(outer+"/inner", 0o755))
	mountTmpfs(t, outer+"/inner", "size=1m")
	g := guestAt(t, outer, file.Config{})
	x := g.inTx()
	g.write("/f", "content")
	must(t, os.Chmod(g.dir+"/f", 0o640))
	must(t, os.Chown(g.dir+"/f", 12345, 54321))
	when := time.Unix(1234567890, 0)
	must(t, os.Chtimes(g.dir+"/f", when, when))
	must(t, os.Symlink("f", g.dir+"/link"))
	g.mkdir("/d")
	g.changed("file.move", &pb.FromToArgs{From: "/f", To: "/inner/f"})
	x.logged("before / d---------", "before /inner d---------", "undo file.move_back", "before /inner/f absent", "before /f content")
	g.changed("file.move", &pb.FromToArgs{From: "/link", To: "/inner/link"})
	g.refused("unsupported", "file.move", &pb.FromToArgs{From: "/d", To: "/inner/d"})
	out, err := run[*pb.FileInfo](g, "file.stat", &pb.PathArgs{Path: "/inner/f"})
	if err != nil || out.Mode != "0640" || out.Owner != "12345" || out.Group != "54321" || out.Mtime != 1234567890 {
		t.Errorf("%v, %v", out, err)
	}
	g.has("/inner/f", "content")
	g.names("/", "d", "inner")
	g.names("/inner", "f", "link")
	g.refused("refused", "file.move", &pb.FromToArgs{From: "/inner", To: "/other"})
	g.refused("refused", "", &pb.FileDeleteRequest{Path: "/inner", Recursive: true})
}
