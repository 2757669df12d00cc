package file_test

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/builtins/file"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// download reads a file as the Node Daemon does.
func (g *guest) download(path string, chunk uint32) []byte {
	g.t.Helper()
	var got []byte
	for {
		out, err := run[*pb.FileReadResponse](g, "", &pb.FileReadRequest{Path: path, Offset: uint64(len(got)), ChunkSize: chunk})
		must(g.t, err)
		if !out.Success || len(out.Data) == 0 && !out.Eof || out.Offset != uint64(len(got)) {
			g.t.Fatalf("a reply without progress at %d: %v", len(got), out)
		}
		if *out.Crc32C != crc32.Checksum(out.Data, crc32.MakeTable(crc32.Castagnoli)) {
			g.t.Errorf("CRC-32C at %d", len(got))
		}
		frame := proto.Size(&pb.AgentMessage{
			MessageId: strings.Repeat("x", 64), Timestamp: timestamppb.Now(), Session: strings.Repeat("x", 64),
			Payload: &pb.AgentMessage_FileReadResponse{FileReadResponse: out},
		})
		if frame > 32000 {
			g.t.Fatalf("a frame of %d bytes", frame)
		}
		got = append(got, out.Data...)
		if out.Eof {
			return got
		}
	}
}

func TestADownloadIsCompleteWhateverTheChunkSize(t *testing.T) {
	g := newGuest(t, file.Config{})
	for _, size := range []int{0, 1, 100, file.MaxChunk - 1, file.MaxChunk, file.MaxChunk + 1, 3*file.MaxChunk + 17, 10 << 20} {
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(rand.Uint32())
		}
		g.write("/f", string(data))
		for _, chunk := range []uint32{0, 65536, 4 << 20, 0xFFFFFFFF, 999} {
			if size > 1<<20 && chunk == 999 {
				continue
			}
			if got := g.download("/f", chunk); !bytes.Equal(got, data) {
				t.Errorf("%d bytes in chunks of %d: got %d bytes", size, chunk, len(got))
			}
		}
	}
}

func TestAFileOfProcIsReadToItsEnd(t *testing.T) {
	g := guestAt(t, "/", file.Config{})
	for _, path := range []string{"/proc/filesystems", "/proc/cpuinfo", "/proc/kallsyms", "/sys/kernel/mm/transparent_hugepage/enabled"} {
		want, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		if path == "/proc/kallsyms" { // each chunk makes the kernel begin at the start: enough to see that it goes on
			out, err := run[*pb.FileReadResponse](g, "", &pb.FileReadRequest{Path: path, ChunkSize: 65536})
			if err != nil || len(out.Data) != file.MaxChunk || out.Eof {
				t.Errorf("%s: %d bytes, eof %v, %v", path, len(out.GetData()), out.GetEof(), err)
			}
			continue
		}
		if got := g.download(path, 1000); len(got) != len(want) {
			t.Errorf("%s: %d bytes of %d", path, len(got), len(want))
		}
	}
}

func TestAFileReplacedWhileItIsReadIsAnError(t *testing.T) {
	g := newGuest(t, file.Config{})
	first := strings.Repeat("1", 100_000)
	g.write("/f", first)
	chunk := func(offset int, generation string) proto.Message {
		return &pb.FileReadRequest{Path: "/f", Offset: uint64(offset), ChunkSize: 65536, Generation: generation}
	}
	out, err := run[*pb.FileReadResponse](g, "", chunk(0, ""))
	must(t, err)
	g.write("/new", strings.Repeat("2", 100_000))
	must(t, os.Rename(g.dir+"/new", g.dir+"/f"))
	g.refused("changed", "", chunk(len(out.Data), ""))
	g.refused("changed", "", chunk(len(out.Data), out.Generation))
	g.refused("changed", "", chunk(0, out.Generation))
	if got := g.download("/f", 65536); got[0] != '2' || len(got) != 100_000 {
		t.Error("a read from the start is one of the new file")
	}
	out, err = run[*pb.FileReadResponse](g, "", chunk(0, ""))
	must(t, err)
	must(t, os.Truncate(g.dir+"/f", 10))
	g.refused("changed", "", chunk(len(out.Data), ""))
}

func TestALogThatGrowsIsReadToWhereItIsThen(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.write("/log", strings.Repeat("1", 40_000))
	out, err := run[*pb.FileReadResponse](g, "", &pb.FileReadRequest{Path: "/log"})
	must(t, err)
	if out.TotalSize != 40_000 || out.Eof {
		t.Errorf("total %d, eof %v", out.TotalSize, out.Eof)
	}
	log, err := os.OpenFile(g.dir+"/log", os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = log.WriteString(strings.Repeat("2", 20_000))
	must(t, err)
	must(t, log.Close())
	out, err = run[*pb.FileReadResponse](g, "", &pb.FileReadRequest{Path: "/log", Offset: file.MaxChunk})
	if err != nil || len(out.Data) != 60_000-file.MaxChunk || !out.Eof {
		t.Errorf("%d bytes, eof %v, %v", len(out.GetData()), out.GetEof(), err)
	}
	for _, offset := range []uint64{60_000, 1 << 40} {
		if out, err := run[*pb.FileReadResponse](g, "", &pb.FileReadRequest{Path: "/log", Offset: offset}); err != nil || !out.Eof || len(out.Data) > 0 {
			t.Errorf("at %d: %v, %v", offset, out, err)
		}
	}
	g.refused("invalid", "", &pb.FileReadRequest{Path: "/log", Offset: 1 << 63})
}

// Ten gigabytes, nearly all of them a hole: sizes and offsets are whole, and the end is where it is.
func TestAFileOfTenGigabytes(t *testing.T) {
	g := newGuest(t, file.Config{})
	const end = 10 << 30
	f, err := os.Create(g.dir + "/f")
	must(t, err)
	_, err = f.WriteAt([]byte("the end"), end-7)
	must(t, errors.Join(err, f.Close()))
	for _, c := range []struct {
		offset uint64
		data   string
		eof    bool
	}{{5 << 30, strings.Repeat("\x00", 1000), false}, {end - 7, "the end", true}, {end, "", true}, {end + 5, "", true}} {
		out, err := run[*pb.FileReadResponse](g, "", &pb.FileReadRequest{Path: "/f", Offset: c.offset, ChunkSize: 1000})
		if err != nil || string(out.Data) != c.data || out.Eof != c.eof || out.TotalSize != end {
			t.Errorf("at %d: %d bytes, eof %v, of %d (%v)", c.offset, len(out.GetData()), out.GetEof(), out.GetTotalSize(), err)
		}
	}
	stat, err := run[*pb.FileStatResponse](g, "", &pb.FileStatRequest{Path: "/f"})
	if err != nil || stat.Entry.GetSizeBytes() != end {
		t.Error(stat, err)
	}
}

func TestAReplyTellsModeAndTimes(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.write("/f", "x")
	when := time.Unix(1234567890, 5000)
	must(t, os.Chtimes(g.dir+"/f", when, when))
	out, err := run[*pb.FileReadResponse](g, "", &pb.FileReadRequest{Path: "/f"})
	if err != nil || out.Mode != 0o100644 || !out.ModifiedAt.AsTime().Equal(when) {
		t.Errorf("%v, %v", out, err)
	}
}

func page(g *guest, in *pb.ListDirectoryRequest) *pb.ListDirectoryResponse {
	g.t.Helper()
	out, err := run[*pb.ListDirectoryResponse](g, "", in)
	must(g.t, err)
	if !out.Success || out.Error != "" {
		g.t.Fatalf("%v", out)
	}
	return out
}

func TestPagesTogetherAreTheWholeDirectory(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.mkdir("/d")
	const many = 2500 // more than are held for a page
	for _, i := range rand.Perm(many) {
		g.write(fmt.Sprintf("/d/%04d", i), "")
	}
	var got []string
	for token := ""; ; {
		out := page(g, &pb.ListDirectoryRequest{Path: "/d", MaxEntries: 10, ContinuationToken: token})
		if out.TotalEntries != many || len(out.Entries) != 10 {
			t.Fatalf("total %d, page of %d", out.TotalEntries, len(out.Entries))
		}
		for _, e := range out.Entries {
			got = append(got, e.Name)
		}
		if token = out.ContinuationToken; token == "" {
			break
		}
		must(t, os.Remove(g.dir+"/d/"+token)) // a token that is gone still marks its place
		g.write("/d/"+token+"x", "")
		must(t, os.Rename(g.dir+"/d/"+token+"x", g.dir+"/d/"+token))
	}
	for i, name := range got {
		if name != fmt.Sprintf("%04d", i) {
			t.Fatalf("name %d is %s", i, name)
		}
	}
	if len(got) != many {
		t.Errorf("%d names", len(got))
	}
	must(t, os.Remove(g.dir+"/d/0500"))
	if out := page(g, &pb.ListDirectoryRequest{Path: "/d", MaxEntries: 1, ContinuationToken: "0500"}); out.Entries[0].Name != "0501" {
		t.Errorf("behind a token that is gone: %v", out.Entries)
	}
}

func TestAListingIsWholeAndQuick(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.mkdir("/d")
	const many = 12_000
	for i := range many {
		file, err := os.Create(fmt.Sprintf("%s/d/a file with a name of some length %06d", g.dir, i))
		must(t, err)
		must(t, file.Close())
	}
	start := time.Now()
	out := page(g, &pb.ListDirectoryRequest{Path: "/d"})
	if took := time.Since(start); took > 30*time.Second { // some 40 ms where nothing else runs
		t.Errorf("%d entries took %v", len(out.Entries), took)
	}
	if len(out.Entries) != many || out.TotalEntries != many || out.ContinuationToken != "" {
		t.Errorf("%d entries of %d, token %q", len(out.Entries), out.TotalEntries, out.ContinuationToken)
	}
}

// typeBits are those that stat(2) has for what an entry says it is.
func typeBits(e *pb.DirectoryEntry) uint32 {
	switch {
	case e.IsDirectory:
		return 0o04
	case e.IsSymlink:
		return 0o12
	}
	return 0o10
}

func TestAListingDescribesNamesAndNotWhatTheyLinkTo(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.mkdir("/d/sub")
	g.write("/d/f", "hello")
	must(t, os.Chmod(g.dir+"/d/f", 0o640|os.ModeSetuid))
	must(t, os.Symlink("nowhere", g.dir+"/d/dangling"))
	must(t, os.Symlink("sub", g.dir+"/d/link"))
	g.write("/d/.hidden", "")
	g.write("/d/\xff", "")
	must(t, os.Symlink("d", g.dir+"/e"))
	var got []string
	for _, e := range page(g, &pb.ListDirectoryRequest{Path: "/e"}).Entries {
		got = append(got, fmt.Sprintf("%s %s %v %v %d %s", e.Name, e.Path, e.IsDirectory, e.IsSymlink, e.SizeBytes, e.SymlinkTarget))
		if e.ModifiedAt == nil || e.Owner == "" || e.Group == "" || e.Mode>>12 != typeBits(e) {
			t.Errorf("%v", e)
		}
	}
	want := []string{
		"%FF /e/%FF false false 0 ", "dangling /e/dangling false true 7 nowhere", "f /e/f false false 5 ",
		"link /e/link false true 3 sub", "sub /e/sub true false 0 ",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	if out := page(g, &pb.ListDirectoryRequest{Path: "/d/", IncludeHidden: true}); out.Entries[1].Name != ".hidden" || out.TotalEntries != 6 {
		t.Errorf("with hidden ones: %v", out)
	}
	for path, want := range map[string]string{"/d/dangling": "nowhere", "/d/link": "sub", "/d/f": "", "/": ""} {
		out, err := run[*pb.FileStatResponse](g, "", &pb.FileStatRequest{Path: path})
		if err != nil || !out.Success || out.Entry.SymlinkTarget != want || out.Entry.IsSymlink != (want != "") || out.Entry.Path != path {
			t.Errorf("%s: %v, %v", path, out, err)
		}
	}
	if out, _ := run[*pb.FileStatResponse](g, "", &pb.FileStatRequest{Path: "/d/f"}); out.Entry.Mode != 0o104640 || out.Entry.Name != "f" {
		t.Errorf("%v", out)
	}
	g.refused("not_found", "", &pb.FileStatRequest{Path: "/d/not"})
	g.refused("not_found", "", &pb.ListDirectoryRequest{Path: "/not"})
	g.refused("not_directory", "", &pb.ListDirectoryRequest{Path: "/d/f"})
}

func TestCreateDirectoryLeavesWhatIsThere(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.mkdir("/there")
	must(t, os.Symlink("there", g.dir+"/link"))
	g.write("/f", "")
	mode := func(path string) uint32 {
		out, err := run[*pb.FileStatResponse](g, "", &pb.FileStatRequest{Path: path})
		must(t, err)
		return out.Entry.Mode
	}
	for _, c := range []struct {
		in   *pb.CreateDirectoryRequest
		path string
		want uint32
	}{
		{&pb.CreateDirectoryRequest{Path: "/there", Mode: 0o700}, "/there", 0o755},
		{&pb.CreateDirectoryRequest{Path: "/link/", Mode: 0o700, CreateParents: true}, "/there", 0o755},
		{&pb.CreateDirectoryRequest{Path: "/new"}, "/new", 0o755},
		{&pb.CreateDirectoryRequest{Path: "/a/b/c", Mode: 0o2770, CreateParents: true}, "/a/b/c", 0o2770},
		{&pb.CreateDirectoryRequest{Path: "/a/b", Mode: 0o700, CreateParents: true}, "/a/b", 0o755},
		{&pb.CreateDirectoryRequest{Path: "/"}, "/", 0o755},
	} {
		if out, err := run[*pb.CreateDirectoryResponse](g, "", c.in); err != nil || !out.Success || mode(c.path) != 0o040000|c.want {
			t.Errorf("%v: %v, mode of %s is %o", c.in, err, c.path, mode(c.path))
		}
	}
	g.refused("not_found", "", &pb.CreateDirectoryRequest{Path: "/x/y"})
	g.refused("exists", "", &pb.CreateDirectoryRequest{Path: "/f"})
	g.refused("not_directory", "", &pb.CreateDirectoryRequest{Path: "/f/x", CreateParents: true})
	g.refused("invalid", "", &pb.CreateDirectoryRequest{Path: "/y", Mode: 0o4755})
	g.names("/", "a", "f", "link", "new", "there")
}

func TestFileDeleteTakesLinksAndNotWhatTheyLinkTo(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.mkdir("/d/sub")
	g.write("/d/f", "")
	must(t, os.Symlink("d", g.dir+"/link"))
	must(t, os.Symlink("nowhere", g.dir+"/dangling"))
	must(t, os.Symlink("/d", g.dir+"/d/sub/loop"))
	g.refused("not_empty", "", &pb.FileDeleteRequest{Path: "/d"})
	g.refused("not_found", "", &pb.FileDeleteRequest{Path: "/not"})
	g.refused("not_found", "", &pb.FileDeleteRequest{Path: "/not/there", Recursive: true})
	for _, in := range []*pb.FileDeleteRequest{{Path: "/link"}, {Path: "/dangling", Recursive: true}, {Path: "/d/f"}} {
		if out, err := run[*pb.FileDeleteResponse](g, "", in); err != nil || !out.Success {
			t.Errorf("%v: %v", in, err)
		}
	}
	g.names("/d", "sub")
	if _, err := run[*pb.FileDeleteResponse](g, "", &pb.FileDeleteRequest{Path: "/d", Recursive: true}); err != nil {
		t.Error(err)
	}
	g.names("/")
}
