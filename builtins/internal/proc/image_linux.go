package proc

import (
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// imageDevices are those that programs expect of any system.
var imageDevices = []string{"full", "null", "random", "tty", "urandom", "zero"}

// mountSystem gives a command below another root a /proc and a /dev, in its own mount namespace: nothing of them is left in the
// tree, and nobody else sees them. Where the tree has something mounted there already, that stays; where it has no such
// directory there is none. Without them, sshd, dpkg and most else that is written for Linux fails in an image.
func mountSystem(root string, mounts []mountInfo) error {
	missing := func(dir string) bool {
		info, err := os.Lstat(dir)
		return err == nil && info.IsDir() && !slices.ContainsFunc(mounts, func(m mountInfo) bool { return m.point == dir })
	}
	if dir := filepath.Join(root, "proc"); missing(dir) {
		const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
		if err := unix.Mount("proc", dir, "proc", flags, ""); err != nil && err != unix.EPERM { // in a container
			return fault.On(dir, err)
		}
	}
	dir := filepath.Join(root, "dev")
	if !missing(dir) {
		return nil
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "mode=755,size=64k"); err != nil {
		return fault.On(dir, err)
	}
	for _, name := range imageDevices {
		if err := bindDevice(filepath.Join("/dev", name), filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			return fault.Cause(err)
		}
	}
	for name, fs := range map[string]struct{ kind, options string }{
		"pts": {"devpts", "newinstance,ptmxmode=0666,mode=620,gid=5"}, "shm": {"tmpfs", "mode=1777,size=64m"},
	} {
		at := filepath.Join(dir, name)
		if err := os.Mkdir(at, 0o755); err != nil {
			return fault.Cause(err)
		}
		if err := unix.Mount(fs.kind, at, fs.kind, unix.MS_NOSUID|unix.MS_NOEXEC, fs.options); err != nil && err != unix.EPERM {
			return fault.On(at, err)
		}
	}
	return nil
}

// bindDevice makes a device of this system appear elsewhere. A node of its own would need the right to make devices, which a
// container lacks.
func bindDevice(from, to string) error {
	file, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return fault.Cause(err)
	}
	file.Close()
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil && err != unix.ENOENT {
		return fault.On(to, err)
	}
	return nil
}
