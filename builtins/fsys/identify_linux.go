package fsys

import "golang.org/x/sys/unix"

func (r *Root) identify(raw string) (Meta, error) {
	var x unix.Statx_t
	if r.host {
		err := unix.Statx(unix.AT_FDCWD, raw, unix.AT_NO_AUTOMOUNT, statMask, &x)
		return metaOf(&x), err
	}
	fd, err := unix.Openat2(r.handle, raw, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return Meta{}, err
	}
	defer unix.Close(fd)
	return object{fd}.stat()
}
