package fsys_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// other is a user that is neither root nor whoever runs the tests.
const other = 12345

func host(t *testing.T) *fsys.Root { return root(t, "/") }

func root(t *testing.T, dir string) *fsys.Root {
	t.Helper()
	r, err := fsys.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// scratch is an empty directory that only its owner can write, whatever the umask.
func scratch(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func needRoot(t *testing.T, why string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("run as root: " + why)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(content), 0o644))
}

func content(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	must(t, err)
	return string(data)
}

func at(t *testing.T, r *fsys.Root, path string) *fsys.At {
	t.Helper()
	entry, err := r.At(path)
	must(t, err)
	t.Cleanup(func() { entry.Close() })
	return entry
}

func listing(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestWhatIsNoPathIsRefused(t *testing.T) {
	r := host(t)
	for _, path := range []string{"", "etc/passwd", "./x", "../x", "/a\x00b"} {
		if _, err := r.At(path); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%q: %v", path, err)
		}
	}
	if _, err := r.At("/" + strings.Repeat("a/", 3000)); !errors.Is(err, syscall.ENAMETOOLONG) {
		t.Errorf("a path that is too long: %v", err)
	}
	if _, err := r.At("/" + strings.Repeat("a", 256)); !errors.Is(err, syscall.ENAMETOOLONG) {
		t.Errorf("a name that is too long: %v", err)
	}
}

func TestAPathResolvesAsTheKernelDoes(t *testing.T) {
	dir := scratch(t)
	must(t, os.MkdirAll(dir+"/real/deep", 0o755))
	must(t, os.Symlink("real/deep", dir+"/rel"))
	must(t, os.Symlink(dir+"/real", dir+"/abs"))
	must(t, os.Symlink("abs/deep/../deep", dir+"/chain"))
	write(t, dir+"/real/deep/f", "")
	r := host(t)
	for path, want := range map[string]string{
		"/real/deep/f":     "/real/deep/f",
		"//real/./deep//f": "/real/deep/f",
		"/rel/f":           "/real/deep/f",
		"/abs/deep/f":      "/real/deep/f",
		"/chain/f":         "/real/deep/f",
		"/rel/../x":        "/real/x", // not /x: the link is left upwards
		"/rel/..":          "/real",
		"/rel":             "/rel",
		"/real/deep/.":     "/real/deep",
		"/not/there/../x":  "",
		"/not":             "/not",
		"/not/there":       "/not/there",
	} {
		got, err := r.Resolve(dir+path, false)
		if want == "" {
			if !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %q, %v", path, got, err)
			}
		} else if err != nil || got != dir+want {
			t.Errorf("%s resolves to %s, %v; want %s", path, got, err, want)
		}
	}
	if got, err := r.Resolve(dir+"/chain", true); err != nil || got != dir+"/real/deep" {
		t.Errorf("following the last link: %s, %v", got, err)
	}
	for _, path := range []string{"/", "//", "/..", "/../..", "/tmp/.."} {
		if got, err := r.Resolve(path, false); err != nil || got != "/" {
			t.Errorf("%s resolves to %s, %v", path, got, err)
		}
	}
}

func TestAResolvedPathIsTakenAsItStands(t *testing.T) {
	dir := scratch(t)
	must(t, os.MkdirAll(dir+"/a/b", 0o755))
	r := host(t)
	if entry, err := r.Exact(dir + "/a/b/f"); err != nil || entry.Path != dir+"/a/b/f" {
		t.Fatalf("%v, %v", entry, err)
	} else {
		must(t, entry.Close())
	}
	must(t, os.Rename(dir+"/a", dir+"/moved"))
	must(t, os.Symlink("moved", dir+"/a"))
	if _, err := r.Exact(dir + "/a/b/f"); !errors.Is(err, fault.ErrChanged) {
		t.Errorf("got %v", err)
	}
	if os.Geteuid() == 0 { // another user's link is one as well
		must(t, os.Lchown(dir+"/a", 12345, 12345))
		if _, err := r.Exact(dir + "/a/b/f"); !errors.Is(err, fault.ErrChanged) {
			t.Errorf("got %v", err)
		}
	}
	if entry, err := r.Exact(dir + "/a"); err != nil {
		t.Errorf("the last element may be a link: %v", err)
	} else {
		must(t, entry.Close())
	}
}

func TestLinksThatGoInCirclesEnd(t *testing.T) {
	dir := scratch(t)
	must(t, os.Symlink("b", dir+"/a"))
	must(t, os.Symlink("a", dir+"/b"))
	if _, err := host(t).At(dir + "/a/x"); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("got %v", err)
	}
	if _, err := host(t).Follow(dir + "/a"); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("following: got %v", err)
	}
}

func TestALinkOfAnotherUserIsNotFollowed(t *testing.T) {
	needRoot(t, "another user's link has to be made")
	dir := scratch(t)
	must(t, os.MkdirAll(dir+"/tmp", 0o755))
	must(t, os.Chmod(dir+"/tmp", 0o777|fs.ModeSticky))
	must(t, os.Mkdir(dir+"/secret", 0o700))
	write(t, dir+"/secret/f", "keep")
	must(t, os.Symlink(dir+"/secret", dir+"/tmp/planted"))
	must(t, os.Lchown(dir+"/tmp/planted", other, other))
	must(t, os.Symlink(dir+"/secret/f", dir+"/tmp/x"))
	must(t, os.Lchown(dir+"/tmp/x", other, other))
	must(t, os.Symlink(dir+"/secret", dir+"/tmp/mine"))
	r := host(t)
	if _, err := r.At(dir + "/tmp/planted/f"); !errors.Is(err, fault.ErrRefused) || !strings.Contains(err.Error(), "belongs to user 12345") {
		t.Errorf("a planted directory link: %v", err)
	}
	if _, err := r.Follow(dir + "/tmp/x"); !errors.Is(err, fault.ErrRefused) {
		t.Errorf("a planted last link: %v", err)
	}
	if err := at(t, r, dir+"/tmp/x").CanReplace(); !errors.Is(err, fault.ErrRefused) {
		t.Errorf("replacing a planted link: %v", err)
	}
	if _, err := r.Follow(dir + "/tmp/mine/f"); err != nil {
		t.Errorf("root's own link in a sticky directory: %v", err)
	}
	if _, err := root(t, dir).Follow("/tmp/x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("below another root the link leads to nothing inside: %v", err)
	}
}

func TestALinkInADirectoryOfOthersIsNotFollowed(t *testing.T) {
	dir := scratch(t)
	must(t, os.Mkdir(dir+"/open", 0o755))
	must(t, os.Symlink("/etc", dir+"/open/link"))
	r := host(t)
	for mode, safe := range map[fs.FileMode]bool{0o755: true, 0o777: false, 0o775: false, 0o777 | fs.ModeSticky: true} {
		must(t, os.Chmod(dir+"/open", mode))
		_, err := r.At(dir + "/open/link/x")
		if safe != (err == nil) || !safe && !errors.Is(err, fault.ErrRefused) {
			t.Errorf("mode %v: %v", mode, err)
		}
	}
}

func TestJumpingLinksOfProcAreNotFollowed(t *testing.T) {
	r := host(t)
	for _, path := range []string{"/proc/self/root/etc", "/proc/self/cwd/x", "/proc/self/fd/0/x"} {
		if _, err := r.At(path); !errors.Is(err, syscall.ELOOP) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := r.Follow("/proc/self/exe"); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("/proc/self/exe: %v", err)
	}
	if _, err := r.ReadFile("/proc/self/status", 1<<20); err != nil {
		t.Errorf("/proc/self is an ordinary link: %v", err)
	}
}

func TestNothingLeadsOutOfAnotherRoot(t *testing.T) {
	outside := scratch(t)
	dir := outside + "/image"
	must(t, os.MkdirAll(dir+"/etc", 0o755))
	write(t, outside+"/f", "outside")
	write(t, dir+"/f", "inside")
	must(t, os.Symlink("/", dir+"/abs"))
	must(t, os.Symlink("../../../..", dir+"/etc/up"))
	must(t, os.Symlink(outside+"/f", dir+"/gone"))
	r := root(t, dir)
	for _, path := range []string{"/f", "/abs/f", "/etc/up/f", "/../f", "/abs/../../f", "/etc/../../f"} {
		if got, err := r.ReadFile(path, 100); err != nil || string(got) != "inside" {
			t.Errorf("%s: %q, %v", path, got, err)
		}
		if got, err := r.Resolve(path, true); err != nil || got != "/f" {
			t.Errorf("%s resolves to %s, %v", path, got, err)
		}
	}
	if got, err := r.ReadFile("/gone", 100); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an absolute link out of the root: %q, %v", got, err)
	}
}

func TestMissingParentsAreMadeAndTakenBack(t *testing.T) {
	dir := scratch(t)
	must(t, os.Mkdir(dir+"/real", 0o755))
	must(t, os.Symlink("real", dir+"/link"))
	r := host(t)
	want := []string{dir + "/real/a", dir + "/real/a/b"}
	if missing, err := r.Missing(dir + "/link/a/b/f"); err != nil || !reflect.DeepEqual(missing, want) {
		t.Fatalf("missing are %v, %v", missing, err)
	}
	if path, err := r.Resolve(dir+"/link/a/b/f", false); err != nil || path != dir+"/real/a/b/f" {
		t.Errorf("resolves to %s, %v", path, err)
	}
	entry, made, err := r.MakeParents(dir+"/link/a/b/f", true)
	if err != nil || len(made) != 2 || made[0].Path != want[0] || made[1].Path != want[1] {
		t.Fatalf("made %v, %v", made, err)
	}
	if entry.Path != dir+"/real/a/b/f" || entry.Public != at(t, r, entry.Path).Public || entry.Close() != nil {
		t.Errorf("the entry is %+v", entry)
	}
	if info, err := os.Stat(dir + "/real/a/b"); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("%v, %v", info, err)
	}
	write(t, dir+"/real/a/keep", "")
	r.RemoveEmpty(made)
	if got := listing(t, dir+"/real/a"); !reflect.DeepEqual(got, []string{"keep"}) {
		t.Errorf("what is not empty stays, the rest goes: %v", got)
	}
	write(t, dir+"/file", "")
	if _, _, err := r.MakeParents(dir+"/file/a/b", true); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("below a file: %v", err)
	}
	must(t, os.Symlink("nowhere", dir+"/dangling"))
	if missing, err := r.Missing(dir + "/dangling/x"); !errors.Is(err, fault.ErrRefused) {
		t.Errorf("below a link to nothing: %v, %v", missing, err)
	}
}

func TestAReplacedFileKeepsWhatIsNotChanged(t *testing.T) {
	dir := scratch(t)
	write(t, dir+"/f", "old")
	must(t, os.Chmod(dir+"/f", 0o640|fs.ModeSetgid))
	if err := unix.Setxattr(dir+"/f", "user.note", []byte("kept"), 0); err != nil {
		t.Logf("without extended attributes: %v", err)
	}
	if os.Geteuid() == 0 {
		must(t, os.Chown(dir+"/f", other, other+1))
		must(t, os.Chmod(dir+"/f", 0o640|fs.ModeSetgid))
		// An ACL that lets user 4242 read: version 2; owner rw, user r, group r, mask r, others none.
		acl := "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\x92\x10\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff"
		if err := unix.Setxattr(dir+"/f", "system.posix_acl_access", []byte(acl), 0); err != nil {
			t.Logf("without ACLs: %v", err)
		}
		capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
		if err := unix.Setxattr(dir+"/f", "security.capability", []byte(capability), 0); err != nil {
			t.Logf("without file capabilities: %v", err)
		}
	}
	entry := at(t, host(t), dir+"/f")
	before, err := entry.Capture()
	must(t, err)
	staged, err := entry.Stage()
	must(t, err)
	temp := listing(t, dir)[0]
	if info, err := os.Stat(dir + "/" + temp); err != nil || info.Mode().Perm() != 0o600 || !fsys.IsTemp(temp) {
		t.Errorf("the staged file %s: %v, %v", temp, info.Mode(), err)
	}
	_, err = staged.File.WriteString("new")
	must(t, err)
	must(t, staged.Commit(fsys.Attr{}, true))
	after, err := entry.Capture()
	must(t, err)
	delete(before.Xattrs, "security.capability")
	if len(before.Xattrs) == 0 {
		before.Xattrs = nil
	}
	if content(t, dir+"/f") != "new" || after.Mode != before.Mode || after.UID != before.UID || after.GID != before.GID || !reflect.DeepEqual(after.Xattrs, before.Xattrs) {
		t.Errorf("before %+v\nafter  %+v", before, after)
	}
	if after.Same(before) {
		t.Error("the file was not replaced")
	}
	if got := listing(t, dir); len(got) != 1 {
		t.Errorf("left over: %v", got)
	}
}

func TestANewFileGetsWhatIsAsked(t *testing.T) {
	dir := scratch(t)
	defer unix.Umask(unix.Umask(0o077))
	r := host(t)
	for _, c := range []struct {
		attr fsys.Attr
		want uint32
	}{{fsys.Attr{}, 0o644}, {fsys.Attr{Mode: new(uint32(0o600))}, 0o600}, {fsys.Attr{Mode: new(uint32(0o4755))}, 0o4755}} {
		os.Remove(dir + "/f")
		entry := at(t, r, dir+"/f")
		staged, err := entry.Stage()
		must(t, err)
		must(t, staged.Commit(c.attr, true))
		if meta, err := entry.Stat(); err != nil || meta.Mode != c.want {
			t.Errorf("mode %o, %v, want %o", meta.Mode, err, c.want)
		}
	}
	must(t, at(t, r, dir+"/d").Mkdir(fsys.Attr{Mode: new(uint32(0o2775))}))
	if meta, err := at(t, r, dir+"/d").Stat(); err != nil || meta.Mode != 0o2775 || meta.Kind != fsys.Directory {
		t.Errorf("%+v, %v", meta, err)
	}
}

func TestWhatCannotBeReplacedIsRefusedAndStays(t *testing.T) {
	dir := scratch(t)
	write(t, dir+"/one", "1")
	must(t, os.Link(dir+"/one", dir+"/two"))
	must(t, os.Mkdir(dir+"/dir", 0o755))
	must(t, unix.Mkfifo(dir+"/fifo", 0o600))
	for name, want := range map[string]error{"one": fault.ErrRefused, "dir": syscall.EISDIR, "fifo": fault.ErrRefused} {
		staged, err := at(t, host(t), dir+"/"+name).Stage()
		must(t, err)
		if err := staged.Commit(fsys.Attr{}, true); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := listing(t, dir); len(got) != 4 || content(t, dir+"/two") != "1" {
		t.Errorf("left: %v", got)
	}
}

func TestAMountPointIsNeitherReplacedNorRemoved(t *testing.T) {
	dir := mounted(t, "size=1m")
	outer := filepath.Dir(dir)
	write(t, outer+"/source", "s")
	write(t, outer+"/bound", "b")
	must(t, unix.Mount(outer+"/source", outer+"/bound", "", unix.MS_BIND, ""))
	t.Cleanup(func() { unix.Unmount(outer+"/bound", unix.MNT_DETACH) })
	write(t, dir+"/inside", "")
	r := host(t)
	if err := at(t, r, outer+"/bound").CanReplace(); !errors.Is(err, fault.ErrRefused) {
		t.Errorf("replacing a file that is mounted over: %v", err)
	}
	if err := at(t, r, dir).RemoveAll(t.Context()); !errors.Is(err, fault.ErrRefused) {
		t.Errorf("removing a mount point: %v", err)
	}
	write(t, outer+"/first", "")
	if err := at(t, r, outer).RemoveAll(t.Context()); !errors.Is(err, fault.ErrRefused) {
		t.Errorf("removing a tree with a mount in it: %v", err)
	}
	if got := listing(t, outer); len(got) != 4 || len(listing(t, dir)) != 1 {
		t.Errorf("something was removed: %v", got)
	}
}

// mounted is a directory with a small file system of its own.
func mounted(t *testing.T, options string) string {
	t.Helper()
	needRoot(t, "a tmpfs has to be mounted")
	dir := scratch(t) + "/mnt"
	must(t, os.Mkdir(dir, 0o755))
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("mount a tmpfs: %v; run where mounting is allowed", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmounting: %v", err)
		}
	})
	return dir
}

func TestATreeIsRemovedWithoutFollowingLinks(t *testing.T) {
	dir := scratch(t)
	must(t, os.MkdirAll(dir+"/tree/a/b", 0o755))
	write(t, dir+"/keep", "kept")
	must(t, os.Mkdir(dir+"/kept", 0o755))
	write(t, dir+"/kept/f", "kept")
	must(t, os.Symlink("../../kept", dir+"/tree/a/link"))
	must(t, os.Symlink("../keep", dir+"/tree/keep"))
	must(t, unix.Mkfifo(dir+"/tree/a/b/fifo", 0o600))
	write(t, dir+"/tree/a/b/\xff", "")
	r := host(t)
	if err := at(t, r, dir+"/tree").Remove(); !errors.Is(err, syscall.ENOTEMPTY) {
		t.Errorf("a directory that is not empty: %v", err)
	}
	must(t, at(t, r, dir+"/tree").RemoveAll(t.Context()))
	if got := listing(t, dir); !reflect.DeepEqual(got, []string{"keep", "kept"}) || content(t, dir+"/kept/f") != "kept" {
		t.Errorf("left: %v", got)
	}
	if err := at(t, r, "/").RemoveAll(t.Context()); !errors.Is(err, fault.ErrRefused) {
		t.Errorf("the root: %v", err)
	}
}

func TestATreeOfAnyDepthIsRemoved(t *testing.T) {
	dir := scratch(t)
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	must(t, err)
	for range 3000 { // deeper than a path can be long, and than most limits of descriptors
		must(t, unix.Mkdirat(fd, "sub", 0o755))
		next, err := unix.Openat(fd, "sub", unix.O_PATH|unix.O_DIRECTORY, 0)
		must(t, err)
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
	must(t, at(t, host(t), dir+"/sub").RemoveAll(t.Context()))
	if got := listing(t, dir); len(got) != 0 {
		t.Errorf("left: %v", got)
	}
}

func TestTheRemovalOfATreeCanBeCancelled(t *testing.T) {
	dir := scratch(t)
	must(t, os.MkdirAll(dir+"/tree/a", 0o755))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := at(t, host(t), dir+"/tree").RemoveAll(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestOnlyRegularFilesAreOpenedAndAtOnce(t *testing.T) {
	dir := scratch(t)
	must(t, unix.Mkfifo(dir+"/fifo", 0o600))
	must(t, os.Symlink("/etc/passwd", dir+"/link"))
	r := host(t)
	start := time.Now()
	for path, want := range map[string]error{
		dir + "/fifo": fault.ErrRefused, "/dev/zero": fault.ErrRefused, "/dev/tty": fault.ErrRefused,
		dir: syscall.EISDIR, dir + "/link": fault.ErrRefused, dir + "/not": fs.ErrNotExist,
	} {
		for _, open := range []func() (*os.File, error){at(t, r, path).Open, at(t, r, path).OpenInPlace} {
			if file, err := open(); !errors.Is(err, want) {
				t.Errorf("%s: %v, %v", path, file, err)
			}
		}
	}
	if took := time.Since(start); took > 30*time.Second { // a FIFO that is opened waits for ever
		t.Errorf("took %v", took)
	}
}

// objects are one of each kind that the caller may make.
func objects(t *testing.T, dir string) []string {
	t.Helper()
	write(t, dir+"/file", "content")
	must(t, os.Chmod(dir+"/file", 0o640|fs.ModeSetuid))
	must(t, os.Symlink("file\xff", dir+"/link"))
	must(t, unix.Mkfifo(dir+"/fifo", 0o622))
	must(t, unix.Mknod(dir+"/socket", unix.S_IFSOCK|0o600, 0))
	must(t, os.Mkdir(dir+"/dir", 0o755))
	must(t, os.Chmod(dir+"/dir", 0o711|fs.ModeSetgid|fs.ModeSticky))
	names := []string{"file", "link", "fifo", "socket", "dir"}
	_ = unix.Setxattr(dir+"/file", "user.x", []byte("1"), 0)
	_ = unix.Setxattr(dir+"/dir", "user.x", []byte("2"), 0)
	if os.Geteuid() == 0 {
		if err := unix.Mknod(dir+"/device", unix.S_IFCHR|0o640, int(unix.Mkdev(1, 3))); err == nil {
			names = append(names, "device")
		}
		for _, name := range names {
			must(t, os.Lchown(dir+"/"+name, other, other+1))
		}
		must(t, os.Chmod(dir+"/file", 0o640|fs.ModeSetuid))
		must(t, os.Chmod(dir+"/dir", 0o711|fs.ModeSetgid|fs.ModeSticky))
		_ = unix.Lsetxattr(dir+"/link", "trusted.x", []byte("3"), 0)
	}
	when := []unix.Timespec{{Sec: 1}, {Sec: 1234567890, Nsec: 123456789}}
	for _, name := range names {
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, dir+"/"+name, when, unix.AT_SYMLINK_NOFOLLOW))
	}
	return names
}

// state is the part of a capture that a restore can bring back.
func state(m fsys.Meta) fsys.Meta {
	m.Dev, m.Ino, m.Born = 0, 0, fsys.Time{}
	if m.Kind == fsys.Directory {
		m.Size, m.Links = 0, 0
	}
	return m
}

func TestWhatIsCapturedCanBeRestored(t *testing.T) {
	dir := scratch(t)
	names := objects(t, dir)
	must(t, os.Mkdir(dir+"/kept", 0o700))
	r := host(t)
	for _, name := range names {
		entry := at(t, r, dir+"/"+name)
		before, err := entry.Capture()
		must(t, err)
		if before.Mtime != (fsys.Time{Sec: 1234567890, Nsec: 123456789}) {
			t.Errorf("%s: captured %+v", name, before)
		}
		backup := at(t, r, dir+"/kept/"+name)
		if before.Kind == fsys.File {
			must(t, entry.CopyContent(t.Context(), backup))
		}
		must(t, os.RemoveAll(dir+"/"+name))
		if before.Kind == fsys.File {
			staged, err := entry.Stage()
			must(t, err)
			from, err := backup.Open()
			must(t, err)
			must(t, fsys.CopyFile(t.Context(), staged.File, from))
			must(t, from.Close())
			must(t, staged.Restore(before, true))
		} else {
			must(t, entry.Make(before))
		}
		for _, again := range []string{"made", "applied again"} {
			after, err := entry.Capture()
			must(t, err)
			if !reflect.DeepEqual(state(before), state(after)) {
				t.Errorf("%s, %s:\nbefore %+v\nafter  %+v", name, again, before, after)
			}
			must(t, entry.Apply(before))
			must(t, entry.Sync())
		}
	}
	if got := listing(t, dir); len(got) != len(names)+1 {
		t.Errorf("left over: %v", got)
	}
}

func TestApplyPutsBackWhatWasChanged(t *testing.T) {
	dir := scratch(t)
	r := host(t)
	for _, name := range objects(t, dir) {
		entry := at(t, r, dir+"/"+name)
		before, err := entry.Capture()
		must(t, err)
		must(t, os.Lchown(dir+"/"+name, os.Geteuid(), os.Getegid()))
		if before.Kind != fsys.Symlink {
			must(t, os.Chmod(dir+"/"+name, 0o700))
		}
		_ = unix.Setxattr(dir+"/"+name, "user.extra", []byte("x"), 0)
		_ = unix.Setxattr(dir+"/"+name, "user.x", []byte("changed"), 0)
		must(t, entry.Apply(before))
		after, err := entry.Capture()
		must(t, err)
		if !reflect.DeepEqual(state(before), state(after)) {
			t.Errorf("%s:\nbefore %+v\nafter  %+v", name, before, after)
		}
	}
	other := fsys.Meta{Kind: fsys.Directory, Mode: 0o755}
	if err := at(t, r, dir+"/file").Apply(other); !errors.Is(err, fault.ErrChanged) {
		t.Errorf("a state of another kind: %v", err)
	}
}

func TestNothingIsAStateToo(t *testing.T) {
	if meta, err := at(t, host(t), scratch(t)+"/not").Capture(); err != nil || meta.Kind != fsys.Absent {
		t.Errorf("%+v, %v", meta, err)
	}
}

func TestACopyKeepsHoles(t *testing.T) {
	dir := scratch(t)
	file, err := os.Create(dir + "/sparse")
	must(t, err)
	for _, offset := range []int64{0, 5 << 20, 40 << 20} {
		_, err := file.WriteAt([]byte("data"), offset)
		must(t, err)
	}
	must(t, file.Truncate(100<<20))
	must(t, file.Close())
	r := host(t)
	must(t, at(t, r, dir+"/sparse").CopyContent(t.Context(), at(t, r, dir+"/copy")))
	if content(t, dir+"/copy") != content(t, dir+"/sparse") {
		t.Error("the content differs")
	}
	var stat unix.Stat_t
	must(t, unix.Stat(dir+"/copy", &stat))
	if stat.Blocks*512 > 1<<20 || stat.Mode&0o777 != 0o600 {
		t.Errorf("the copy takes %d bytes, mode %o", stat.Blocks*512, stat.Mode)
	}
	if err := at(t, r, dir+"/sparse").CopyContent(t.Context(), at(t, r, dir+"/copy")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a file that is there: %v", err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := at(t, r, dir+"/sparse").CopyContent(cancelled, at(t, r, dir+"/third")); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err) // nil where the file system shared the blocks at once
	} else if _, e := os.Stat(dir + "/third"); err != nil && !errors.Is(e, fs.ErrNotExist) {
		t.Errorf("cancelled, and left: %v", e)
	}
	for path, name := range map[string]string{"/proc/self/status": "proc", "/proc/version": "version"} {
		must(t, at(t, r, path[:strings.LastIndex(path, "/")]+"/"+filepath.Base(path)).CopyContent(t.Context(), at(t, r, dir+"/"+name)))
		if len(content(t, dir+"/"+name)) == 0 {
			t.Errorf("%s: nothing was copied", path)
		}
	}
}

func TestAFullDiskLeavesTheOldFile(t *testing.T) {
	dir := mounted(t, "size=1m")
	write(t, dir+"/f", "old")
	entry := at(t, host(t), dir+"/f")
	staged, err := entry.Stage()
	must(t, err)
	_, err = staged.File.Write(make([]byte, 2<<20))
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("writing gave %v", err)
	}
	must(t, staged.Discard())
	if got := listing(t, dir); len(got) != 1 || content(t, dir+"/f") != "old" {
		t.Errorf("left: %v", got)
	}
}

func TestAReadOnlyFileSystemSaysSo(t *testing.T) {
	dir := mounted(t, "size=1m")
	write(t, dir+"/f", "old")
	must(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	if _, err := at(t, host(t), dir+"/f").Stage(); !errors.Is(err, syscall.EROFS) {
		t.Errorf("got %v", err)
	}
}

func TestContentsAreCompared(t *testing.T) {
	dir := scratch(t)
	open := func(name string, size int64, data map[int64]string) *os.File {
		f, err := os.Create(dir + "/" + name)
		must(t, err)
		t.Cleanup(func() { f.Close() })
		must(t, f.Truncate(size))
		for offset, text := range data {
			_, err := f.WriteAt([]byte(text), offset)
			must(t, err)
		}
		return f
	}
	const far = 1 << 31 // mostly holes, which are not read
	first := open("first", far+9, map[int64]string{5: "a", 70 << 20: "b", far: "end"})
	for name, c := range map[string]struct {
		file *os.File
		same bool
	}{
		"the same":           {open("a", far+9, map[int64]string{5: "a", 70 << 20: "b", far: "end"}), true},
		"zeros, and a hole":  {open("b", far+9, map[int64]string{5: "a", 60 << 20: strings.Repeat("\x00", 8<<20), 70 << 20: "b", far: "end"}), true},
		"another end":        {open("c", far+9, map[int64]string{5: "a", 70 << 20: "b", far: "and"}), false},
		"data where none is": {open("d", far+9, map[int64]string{5: "a", 70 << 20: "b", 80 << 20: "c", far: "end"}), false},
		"none where some is": {open("e", far+9, map[int64]string{5: "a", far: "end"}), false},
		"another size":       {open("f", far+8, map[int64]string{5: "a", 70 << 20: "b", far: "end"}), false},
	} {
		for _, pair := range [][2]*os.File{{first, c.file}, {c.file, first}} {
			if same, err := fsys.SameContent(t.Context(), pair[0], pair[1]); same != c.same || err != nil {
				t.Errorf("%s: %v, %v", name, same, err)
			}
		}
	}
	if same, err := fsys.SameContent(t.Context(), open("g", 0, nil), open("h", 0, nil)); !same || err != nil {
		t.Error("empty files:", same, err)
	}
}

func TestWhatDoesNotFitIsNotBegun(t *testing.T) {
	dir, from := mounted(t, "size=1m"), scratch(t)
	must(t, os.WriteFile(from+"/large", make([]byte, 2<<20), 0o644))
	if err := at(t, host(t), from+"/large").CopyContent(t.Context(), at(t, host(t), dir+"/copy")); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("got %v", err)
	}
	must(t, os.WriteFile(from+"/small", make([]byte, 512<<10), 0o644))
	must(t, os.Truncate(from+"/small", 1<<40)) // holes need none
	must(t, at(t, host(t), from+"/small").CopyContent(t.Context(), at(t, host(t), dir+"/copy")))
}

func TestStagedFilesOfADeadAgentAreSwept(t *testing.T) {
	dir := scratch(t)
	write(t, dir+"/.quantix-kvm-0011223344556677.tmp", "left over")
	write(t, dir+"/.quantix-kvm-8899aabbccddeeff.tmp", "of its last mode")
	must(t, os.Chmod(dir+"/.quantix-kvm-8899aabbccddeeff.tmp", 0o444))
	write(t, dir+"/.quantix-kvm-.tmp", "somebody's")
	entry := at(t, host(t), dir+"/f")
	staged, err := entry.Stage()
	must(t, err)
	if n, err := entry.Sweep(); n != 2 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	if got := listing(t, dir); len(got) != 2 {
		t.Errorf("left: %v", got)
	}
	must(t, staged.Commit(fsys.Attr{}, false))
	if got := listing(t, dir); !reflect.DeepEqual(got, []string{".quantix-kvm-.tmp", "f"}) {
		t.Errorf("left: %v", got)
	}
}

func TestALinkIsReplacedAndAFileIsNot(t *testing.T) {
	dir := scratch(t)
	entry := at(t, host(t), dir+"/link")
	for _, target := range []string{"one", "two", "/with \xff bytes"} {
		must(t, entry.Symlink(target))
		if got, err := os.Readlink(dir + "/link"); got != target || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	}
	write(t, dir+"/file", "")
	if err := at(t, host(t), dir+"/file").Symlink("x"); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a file: %v", err)
	}
	if got := listing(t, dir); len(got) != 2 {
		t.Errorf("left: %v", got)
	}
}

func TestAccountsAreThoseOfTheRoot(t *testing.T) {
	dir := scratch(t)
	must(t, os.Mkdir(dir+"/etc", 0o755))
	write(t, dir+"/etc/passwd", "root:x:0:0::/root:/bin/sh\napp:x:4711:4712::/:/bin/false\napp:x:1:1::/:\nalias:x:4711:1::/:\nbroken\nworse:x:y:z::\n+::::::\n")
	write(t, dir+"/etc/group", "root:x:0:\napp:x:4712:app\n")
	a, err := root(t, dir).Accounts()
	must(t, err)
	if a.UserName(4711) != "app" || a.GroupName(4712) != "app" || a.UserName(5) != "5" || a.GroupName(4711) != "4711" {
		t.Errorf("%+v", a)
	}
	if user, ok := a.User("app"); !ok || user.UID != 4711 || user.GID != 4712 || user.Home != "/" || user.Shell != "/bin/false" {
		t.Errorf("the first line of a name counts: %+v", user)
	}
	if user, ok := a.UserByID(4711); !ok || user.Name != "app" || len(a.Users) != 4 || len(a.Groups) != 2 {
		t.Errorf("%+v, of %+v", user, a)
	}
	if group, ok := a.Group("app"); !ok || group.GID != 4712 || !reflect.DeepEqual(group.Members, []string{"app"}) {
		t.Errorf("%+v", group)
	}
	if ids := a.GroupsOf("app"); !reflect.DeepEqual(ids, []uint32{4712}) || len(a.GroupsOf("")) != 0 {
		t.Errorf("the groups of app: %v", ids)
	}
	for name, want := range map[string]uint32{"root": 0, "app": 4711, "alias": 4711, "99": 99} {
		if uid, err := a.UID(name); uid != want || err != nil {
			t.Errorf("%s is %d, %v", name, uid, err)
		}
	}
	for _, name := range []string{"nobody-here", "-1", "4294967295", "99999999999", ""} {
		if uid, err := a.UID(name); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%q is %d, %v", name, uid, err)
		}
	}
	if _, err := root(t, scratch(t)).Accounts(); err != nil {
		t.Errorf("a root without accounts: %v", err)
	}
}

func TestAccountsOfAnotherRootAreNotReadOutsideOfIt(t *testing.T) {
	outside, dir := scratch(t), scratch(t)
	write(t, outside+"/passwd", "someone:x:5:5::/:\n")
	must(t, os.Mkdir(dir+"/etc", 0o755))
	must(t, os.Symlink(outside+"/passwd", dir+"/etc/passwd"))
	if a, err := root(t, dir).Accounts(); err != nil || len(a.Users) != 0 {
		t.Errorf("%+v, %v", a, err)
	}
}

func TestTooManyAccountsAreAnError(t *testing.T) {
	for what, group := range map[string]string{
		"bytes":   strings.Repeat("\x00", 2<<20+1),
		"lines":   strings.Repeat("g:x:1:\n", 40_001),
		"members": "g:x:1:" + strings.Repeat("a,", 100_001),
	} {
		dir := scratch(t)
		must(t, os.Mkdir(dir+"/etc", 0o755))
		write(t, dir+"/etc/passwd", "app:x:5:5:one,,,,:/:\n")
		write(t, dir+"/etc/group", group)
		a, err := root(t, dir).Accounts()
		if where := new(fault.Error); !errors.As(err, &where) || where.Object != "/etc/group" || !errors.Is(err, fault.ErrTooLarge) {
			t.Errorf("%s: %v", what, err)
		}
		if len(a.Users) != 1 || len(a.Groups) != 0 {
			t.Errorf("%s: what can be read is lost, or more is held: %d, %d", what, len(a.Users), len(a.Groups))
		}
	}
}

func TestPublicIsWhereEverybodyGets(t *testing.T) {
	dir := scratch(t)
	must(t, os.MkdirAll(dir+"/closed/deep", 0o755))
	must(t, os.Chmod(dir+"/closed", 0o750))
	r := root(t, dir)
	if !at(t, r, "/closed").Public || at(t, r, "/closed/deep").Public || at(t, r, "/closed/deep/f").Public {
		t.Error("a closed directory on the way decides")
	}
}

func TestNoDescriptorsAreLeft(t *testing.T) {
	dir := scratch(t)
	must(t, os.MkdirAll(dir+"/a/b", 0o755))
	must(t, os.Symlink("a/b", dir+"/link"))
	r := host(t)
	act := func() {
		for _, path := range []string{"/link/f", "/link/..", "/not/there", "/link/f/g"} {
			if entry, err := r.Follow(dir + path); err == nil {
				_, _ = entry.Capture()
				if staged, err := entry.Stage(); err == nil {
					_ = staged.Commit(fsys.Attr{}, true)
				}
				_, _ = entry.Sweep()
				_ = entry.Remove()
				must(t, entry.Close())
			}
		}
	}
	act()
	before := len(listing(t, "/proc/self/fd"))
	for range 50 {
		act()
	}
	if after := len(listing(t, "/proc/self/fd")); after > before+5 {
		t.Errorf("%d descriptors became %d", before, after)
	}
}
