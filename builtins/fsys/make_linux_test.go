package fsys_test

import (
	"errors"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// exchanger gives what stands in a directory that it owns, all of it and again and again, the name of root's own directory
// there.
type exchanger struct {
	dir, victim string
	was         unix.Stat_t
	stop        atomic.Bool
	done        chan error
}

// newExchanger begins; root's directory holds a file.
func newExchanger(t *testing.T, dir string) *exchanger {
	t.Helper()
	needRoot(t, "a directory of another user")
	must(t, os.Chown(dir, other, other))
	e := &exchanger{dir: dir, victim: dir + "/victim", done: make(chan error, 1)}
	must(t, os.Mkdir(e.victim, 0o700))
	write(t, e.victim+"/secret", "root's")
	must(t, unix.Stat(e.victim, &e.was))
	go func() { e.done <- e.run() }()
	return e
}

func (e *exchanger) run() error {
	dir, err := os.Open(e.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	fd := int(dir.Fd())
	runtime.LockOSThread() // which ends with the goroutine: the other threads stay root's
	if err := unix.Setfsuid(other); err != nil {
		return err
	}
	for !e.stop.Load() {
		if _, err := dir.Seek(0, 0); err != nil {
			return err
		}
		names, err := dir.Readdirnames(-1)
		if err != nil {
			return err
		}
		for _, name := range names {
			if name != "victim" && unix.Renameat2(fd, "victim", fd, name, unix.RENAME_EXCHANGE) == nil {
				_ = unix.Renameat2(fd, "victim", fd, name, unix.RENAME_EXCHANGE)
			}
		}
	}
	return nil
}

// end says what became of root's directory.
func (e *exchanger) end(t *testing.T) {
	t.Helper()
	e.stop.Store(true)
	must(t, <-e.done)
	entries, err := os.ReadDir(e.dir)
	must(t, err)
	for _, entry := range entries {
		var is unix.Stat_t
		if err := unix.Lstat(e.dir+"/"+entry.Name(), &is); err != nil || is.Ino != e.was.Ino {
			continue
		}
		if is.Mode != e.was.Mode || is.Uid != e.was.Uid || is.Gid != e.was.Gid {
			t.Errorf("root's directory had mode %o and owner %d:%d, and has %o and %d:%d", e.was.Mode, e.was.Uid, e.was.Gid,
				is.Mode, is.Uid, is.Gid)
		}
		if got := listing(t, e.dir+"/"+entry.Name()); !reflect.DeepEqual(got, []string{"secret"}) {
			t.Errorf("root's directory holds %v", got)
		}
		return
	}
	t.Error("root's directory is gone")
}

// Whoever exchanges names while something is made does not have the attributes given to what is root's.
func TestWhatIsMadeGetsTheAttributes(t *testing.T) {
	const rounds = 200
	attr := fsys.Attr{UID: new(uint32(other)), GID: new(uint32(other)), Mode: new(uint32(0o755))}
	for name, make := range map[string]func(t *testing.T, r *fsys.Root, path string) error{
		"mkdir": func(t *testing.T, r *fsys.Root, path string) error { return at(t, r, path).Mkdir(attr) },
		"parents": func(t *testing.T, r *fsys.Root, path string) error {
			entry, _, err := r.MakeParents(path+"/f", false)
			if err == nil {
				err = entry.Close()
			}
			return err
		},
		"directory": func(t *testing.T, r *fsys.Root, path string) error {
			return at(t, r, path).Make(fsys.Meta{Kind: fsys.Directory, Mode: 0o755, UID: other, GID: other})
		},
		"fifo": func(t *testing.T, r *fsys.Root, path string) error {
			return at(t, r, path).Make(fsys.Meta{Kind: fsys.Fifo, Mode: 0o666, UID: other, GID: other})
		},
		"link": func(t *testing.T, r *fsys.Root, path string) error {
			return at(t, r, path).Make(fsys.Meta{Kind: fsys.Symlink, Target: "/nowhere", UID: other, GID: other})
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := scratch(t)
			e := newExchanger(t, dir)
			r := host(t)
			for n := range rounds {
				path := dir + "/x" + strconv.Itoa(n)
				if err := make(t, r, path); err != nil && !errors.Is(err, fault.ErrChanged) {
					t.Logf("round %d: %v", n, err) // his doing as well
				}
				_ = os.Remove(path) // not root's directory, which is not empty
			}
			e.end(t)
		})
	}
}

// In a directory of another user a new object is what it is elsewhere, and nothing else is left.
func TestNewObjectsInADirectoryOfAnotherUser(t *testing.T) {
	needRoot(t, "a directory of another user")
	dir, r := scratch(t), host(t)
	must(t, errors.Join(os.Chown(dir, other, other+1), os.Chmod(dir, 0o775|os.ModeSetgid)))
	mtime := fsys.Time{Sec: 1e9, Nsec: 5}
	must(t, at(t, r, dir+"/d").Mkdir(fsys.Attr{UID: new(uint32(other)), Mtime: &mtime}))
	must(t, at(t, r, dir+"/device").Make(fsys.Meta{Kind: fsys.CharDevice, Mode: 0o620, Rdev: unix.Mkdev(1, 3), Mtime: mtime}))
	must(t, at(t, r, dir+"/restored").Make(fsys.Meta{Kind: fsys.Directory, Mode: 0o2750, UID: other, Mtime: mtime}))
	for name, want := range map[string]fsys.Meta{
		"d":        {Kind: fsys.Directory, Mode: 0o2755, UID: other, GID: other + 1},
		"device":   {Kind: fsys.CharDevice, Mode: 0o620, Rdev: unix.Mkdev(1, 3)},
		"restored": {Kind: fsys.Directory, Mode: 0o2750, UID: other},
	} {
		is, err := at(t, r, dir+"/"+name).Capture()
		must(t, err)
		got := fsys.Meta{Kind: is.Kind, Mode: is.Mode, UID: is.UID, GID: is.GID, Rdev: is.Rdev}
		if !reflect.DeepEqual(got, want) || is.Mtime != mtime {
			t.Errorf("%s is %+v at %v, and should be %+v at %v", name, got, is.Mtime, want, mtime)
		}
	}
	if err := at(t, r, dir+"/d").Mkdir(fsys.Attr{}); !errors.Is(err, os.ErrExist) {
		t.Errorf("where something is: %v", err)
	}
	if got := listing(t, dir); !reflect.DeepEqual(got, []string{"d", "device", "restored"}) {
		t.Errorf("there are %v", got)
	}
}

// A file system that gives what root makes another owner has directories all the same, but none of root's choice.
func TestNewObjectsOfTheOwnerThatTheFileSystemGives(t *testing.T) {
	needRoot(t, "a file system has to be mounted")
	program, err := exec.LookPath("bindfs")
	if err != nil {
		t.Skip("needs bindfs: ", err)
	}
	dir, r := scratch(t), host(t)
	must(t, errors.Join(os.Mkdir(dir+"/real", 0o755), os.Mkdir(dir+"/seen", 0o755)))
	options := []string{"--force-user=" + strconv.Itoa(other), "--force-group=" + strconv.Itoa(other), "--chown-deny"}
	if out, err := exec.Command(program, append(options, dir+"/real", dir+"/seen")...).CombinedOutput(); err != nil {
		t.Skipf("bindfs: %v: %s; run where mounting is allowed", err, strings.TrimSpace(string(out)))
	}
	t.Cleanup(func() { must(t, unix.Unmount(dir+"/seen", unix.MNT_DETACH)) })
	must(t, at(t, r, dir+"/seen/d").Mkdir(fsys.Attr{UID: new(uint32(other))}))
	if is, err := at(t, r, dir+"/seen/d").Stat(); err != nil || is.UID != other || is.Mode != 0o755 {
		t.Errorf("%+v, %v", is, err)
	}
	if err := at(t, r, dir+"/seen/e").Mkdir(fsys.Attr{UID: new(uint32(0))}); !errors.Is(err, os.ErrPermission) {
		t.Errorf("another owner: %v", err)
	}
	if got := listing(t, dir+"/real"); !reflect.DeepEqual(got, []string{"d"}) {
		t.Errorf("there are %v", got)
	}
}
