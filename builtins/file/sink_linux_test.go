package file_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/file"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// inode is that of a path, a link itself.
func (g *guest) inode(path string) uint64 {
	g.t.Helper()
	var stat unix.Stat_t
	must(g.t, unix.Lstat(g.dir+path, &stat))
	return stat.Ino
}

// What a host writes at a link goes where the link leads, also where nothing is there yet, and the link stays.
func TestAnUploadFollowsALink(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.mkdir("/d")
	g.write("/d/there", "old")
	must(t, os.Symlink("d/there", g.dir+"/link"))
	must(t, os.Symlink("/d/new", g.dir+"/dangling"))
	must(t, os.Symlink("nowhere/x", g.dir+"/lost"))
	for path, target := range map[string]string{"/link": "/d/there", "/dangling": "/d/new"} {
		data := random(30)
		g.send(chunks(path, data, 10)...)
		g.has(target, string(data))
		g.send(&pb.FileWriteRequest{Path: path, Append: true, Data: []byte("more"), Eof: true})
		g.has(target, string(data)+"more")
		if meta, err := os.Lstat(g.dir + path); err != nil || meta.Mode()&os.ModeSymlink == 0 {
			t.Errorf("%s: %v, %v", path, meta, err)
		}
	}
	g.refused("not_found", "", &pb.FileWriteRequest{Path: "/lost", Eof: true})
	g.names("/", "d", "dangling", "link", "lost")
	g.names("/d", "new", "there")
}

// A file with several names is written in place, whole or appended to: all names have the content, and it stays the same file.
// Until the last chunk nothing is seen.
func TestAFileWithSeveralNamesIsWrittenInPlace(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.write("/one", strings.Repeat("old", 1000))
	must(t, os.Link(g.dir+"/one", g.dir+"/two"))
	before := g.inode("/one")
	data := random(2500)
	list := chunks("/one", data, 1000)
	list[2].Sha256 = digest(data)
	g.send(list[:2]...)
	g.has("/two", strings.Repeat("old", 1000))
	g.send(list[2:]...)
	g.send(list[2]) // its reply was lost
	g.has("/two", string(data))
	g.send(&pb.FileWriteRequest{Path: "/two", Append: true, Data: []byte("more"), Eof: true})
	g.has("/one", string(data)+"more")
	if g.inode("/one") != before || g.inode("/two") != before {
		t.Error("the names are of two files")
	}
	if info, err := os.Stat(g.dir + "/two"); err != nil || info.Mode() != 0o640 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	list[2].Sha256 = digest([]byte("another"))
	g.send(list[:2]...)
	g.refused("corrupt", "", list[2])
	g.has("/two", string(data)+"more")
	g.names("/", "one", "two")
}

// What was there stays where there is no space for what takes its place in it.
func TestAFileWrittenInPlaceOnAFullDiskStays(t *testing.T) {
	g := guestAt(t, tmpfs(t, "size=1m"), file.Config{})
	old := strings.Repeat("x", 300<<10)
	g.write("/one", old)
	must(t, os.Link(g.dir+"/one", g.dir+"/two"))
	g.refused("no_space", "", &pb.FileWriteRequest{Path: "/one", Data: random(600 << 10), Eof: true})
	g.has("/two", old)
	g.names("/", "one", "two")
	g.send(&pb.FileWriteRequest{Path: "/one", Data: []byte("fits"), Eof: true})
	g.has("/two", "fits")
}

// A file on which another one is mounted is written in place: a rename would fail.
func TestAFileThatIsAMountIsWrittenInPlace(t *testing.T) {
	g := guestAt(t, tmpfs(t, "size=1m"), file.Config{})
	g.write("/under", "under")
	g.write("/over", "over")
	must(t, unix.Mount(g.dir+"/over", g.dir+"/under", "", unix.MS_BIND, ""))
	defer unix.Unmount(g.dir+"/under", unix.MNT_DETACH)
	g.send(chunks("/under", []byte("new"), 2)...)
	g.has("/over", "new")
}

// Another name of a file in a directory where others make names is not written through: it may be theirs.
func TestAPlantedNameIsNotWrittenThrough(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.mkdir("/tmp")
	must(t, os.Chmod(g.dir+"/tmp", 0o777|os.ModeSticky))
	g.write("/victim", "kept")
	must(t, os.Link(g.dir+"/victim", g.dir+"/tmp/planted"))
	g.refused("refused", "", chunks("/tmp/planted", []byte("bad"), 10)[0])
	g.send(&pb.FileWriteRequest{Path: "/tmp/fine", Append: true, Data: []byte("x"), Eof: true})
	must(t, os.Link(g.dir+"/victim", g.dir+"/tmp/other"))
	g.refused("refused", "", &pb.FileWriteRequest{Path: "/tmp/other", Append: true, Data: []byte("bad"), Eof: true})
	g.has("/victim", "kept")
}

func TestModesAreAsAskedForWithSetuid(t *testing.T) {
	g := newGuest(t, file.Config{})
	for _, mode := range []uint32{0o4755, 0o2711, 0o6750, 0o104700} {
		g.send(&pb.FileWriteRequest{Path: "/f", Data: []byte("x"), Mode: mode, Eof: true})
		if out, err := run[*pb.FileStatResponse](g, "", &pb.FileStatRequest{Path: "/f"}); err != nil || out.Entry.Mode != 0o100000|mode {
			t.Errorf("asked for %o: %o, %v", mode, out.GetEntry().GetMode(), err)
		}
	}
}

// A file of the kernel takes the whole in one write, and what it does not take is the kernel's own error.
func TestAFileOfTheKernelIsWrittenDirectly(t *testing.T) {
	g := guestAt(t, "/", file.Config{})
	at := fmt.Sprintf("/proc/%d/", os.Getpid())
	before, err := os.ReadFile(at + "coredump_filter")
	must(t, err)
	defer os.WriteFile(at+"coredump_filter", append([]byte("0x"), before...), 0)
	for _, value := range []string{"0x00000021", "0x00000033"} {
		list := chunks(at+"coredump_filter", []byte(value), 4)
		list[len(list)-1].Sha256 = digest([]byte(value))
		g.send(list...)
		g.has(at+"coredump_filter", value[2:]+"\n")
	}
	if text := g.refused("invalid", "", chunks(at+"coredump_filter", []byte("no number"), 100)[0]); !strings.Contains(text, "invalid argument") {
		t.Error(text)
	}
	g.has(at+"coredump_filter", "00000033\n")
	g.refused("not_found", "", chunks(at+"nothing", []byte("x"), 10)[0])
	g.refused("too_large", "", &pb.FileWriteRequest{Path: at + "coredump_filter", Data: make([]byte, 2<<20), Eof: true})
	g.refused("invalid", "", &pb.FileWriteRequest{Path: at + "coredump_filter", Data: []byte("1"), Owner: "0", Eof: true})
}

// A device is written as the chunks come, and says itself what is wrong. It stays a device of its mode.
func TestADeviceIsWrittenDirectly(t *testing.T) {
	needRoot(t, "devices are written to")
	g := guestAt(t, "/", file.Config{})
	before, err := os.Stat("/dev/null")
	must(t, err)
	data := random(100)
	list := chunks("/dev/null", data, 30)
	list[len(list)-1].Sha256 = digest(data)
	g.send(list...)
	list[len(list)-1].Sha256 = digest([]byte("other"))
	g.send(list[:len(list)-1]...)
	g.refused("corrupt", "", list[len(list)-1])
	g.refused("no_space", "", chunks("/dev/full", data, 30)[0])
	after, err := os.Stat("/dev/null")
	if err != nil || after.Mode() != before.Mode() {
		t.Error(after, err)
	}
}

// A disk has what was written to it, and is not written to while it is mounted.
func TestADiskIsWrittenDirectly(t *testing.T) {
	needRoot(t, "a loop device is needed")
	image := t.TempDir() + "/image"
	must(t, os.WriteFile(image, make([]byte, 4<<20), 0o600))
	out, err := exec.Command("losetup", "--find", "--show", image).Output()
	if err != nil {
		t.Skipf("losetup: %v; run where loop devices are allowed", err)
	}
	disk := strings.TrimSpace(string(out))
	defer exec.Command("losetup", "--detach", disk).Run()
	g := guestAt(t, "/", file.Config{})
	data := random(3 << 20)
	list := chunks(disk, data, 1<<20)
	list[len(list)-1].Sha256 = digest(data)
	g.send(list...)
	if have, err := os.ReadFile(image); err != nil || !bytes.Equal(have, append(data, make([]byte, 1<<20)...)) {
		t.Errorf("the disk has %d bytes, %v", len(have), err)
	}
	g.refused("no_space", "", &pb.FileWriteRequest{Path: disk, Data: make([]byte, 5<<20), Eof: true})
	if out, err := exec.Command("mkfs.ext4", "-q", disk).CombinedOutput(); err != nil {
		t.Skipf("mkfs.ext4: %v %s; the rest needs it", err, out)
	}
	at := t.TempDir()
	if err := unix.Mount(disk, at, "ext4", 0, ""); err != nil {
		t.Skipf("mount: %v; the rest needs it", err)
	}
	defer unix.Unmount(at, unix.MNT_DETACH)
	g.refused("busy", "", chunks(disk, []byte("x"), 1)[0])
}
