package update

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// supported returns why no program can be replaced on this system; nil: it can.
func supported() error {
	fd, err := unix.PidfdOpen(os.Getpid(), 0) // by which a version that hangs is ended
	if err != nil {
		return fault.Unsupported("not supported: the kernel has no pidfd_open: %v", err)
	}
	_ = unix.Close(fd)
	return nil
}

// checkParents refuses a directory where another user could exchange what the agent puts there: it and those above it belong to
// root or to the agent's user, and nobody else may write there, but to a sticky one.
func checkParents(dir string) error {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return fault.Cause(err)
	}
	for {
		info, err := os.Lstat(dir)
		if err != nil {
			return fault.Cause(err)
		}
		if err := checkOwner(dir, info); err != nil {
			return err
		}
		if dir == "/" {
			return nil
		}
		dir = filepath.Dir(dir)
	}
}

// checkOwner refuses what another user than root and the agent's own could change.
func checkOwner(path string, info fs.FileInfo) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok:
		return fault.Refuse("%s: its owner is not known", path)
	case stat.Uid != 0 && int(stat.Uid) != os.Geteuid():
		return fault.Refuse("%s belongs to user %d", path, stat.Uid)
	case info.Mode()&fs.ModeSticky != 0 && info.IsDir():
		return nil
	case info.Mode().Perm()&0o002 != 0 || info.Mode().Perm()&0o020 != 0 && stat.Gid != 0:
		return fault.Refuse("%s may be written by others: its mode is %o", path, info.Mode().Perm())
	}
	return nil
}

// lockStage keeps other calls of this from a staging directory until unlock is called or the process ends, and waits for them
// at most that long. One that is not there needs no lock: what is settled by then is settled.
func lockStage(path string, wait time.Duration) (unlock func(), err error) {
	dir, err := os.OpenFile(path, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil
	} else if err != nil {
		return nil, fault.Cause(err)
	}
	for until := time.Now().Add(wait); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { dir.Close() }, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR || time.Now().After(until) {
			dir.Close()
			return nil, fault.Wrapf(fault.ErrBusy, "another process settles the update: %v", err)
		}
	}
}

// syncDir makes the names in a directory durable.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
