package fsys

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

func openRoot(dir string) (*realRoot, error) {
	if dir == "" {
		dir = "/"
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fault.On(dir, err)
	}
	return &realRoot{dir: dir, host: Clean(dir) == "/", handle: fd}, nil
}

func (r *realRoot) identify(path string) (Meta, error) {
	var x unix.Statx_t
	if r.host {
		err := unix.Statx(unix.AT_FDCWD, path, unix.AT_NO_AUTOMOUNT, statMask, &x)
		return metaOf(&x), err
	}
	fd, err := unix.Openat2(r.handle, path, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return Meta{}, err
	}
	defer unix.Close(fd)
	return descriptor{fd: fd}.stat()
}

func syncAll(root handle) error {
	fd, err := unix.Openat(root, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(fd), unix.Close(fd))
}
