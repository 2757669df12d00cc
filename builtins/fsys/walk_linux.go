package fsys

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// handle is a descriptor of a directory, O_PATH or not.
type handle = int

// pathOnly opens an object without acting on it: no device acts, no fifo waits, no right to read is needed.
const pathOnly = unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC

func closeHandle(h handle) error { return unix.Close(h) }

func dupHandle(h handle) (handle, error) { return unix.FcntlInt(uintptr(h), unix.F_DUPFD_CLOEXEC, 0) }

// walker resolves a path. It keeps open the directories that it went through, so that ".." goes back to where it came
// from even if somebody moves a directory meanwhile.
type walker struct {
	root  *realRoot
	dirs  []handle
	names []string
	links int
}

func (r *realRoot) resolve(path string, links follow) (*At, error) {
	w := &walker{root: r}
	defer w.backTo(0)
	rest := Elements(path)
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		last := len(rest) == 0
		switch {
		case name == "..":
			w.backTo(max(len(w.dirs)-1, 0))
			continue
		case last && links != followAll:
			return w.at(w.dir(), w.names, name)
		}
		target, link, err := w.enter(name, last)
		switch {
		case link && links == followNone: // whoever made it
			return nil, fault.Wrapf(fault.ErrChanged, "the directory %s has become a link", text.EscapePath(name))
		case err != nil:
			return nil, err
		case link:
			if IsAbs(target) {
				w.backTo(0)
			}
			rest = append(Elements(target), rest...)
		case last:
			return w.at(w.dir(), w.names, name)
		}
	}
	return w.current()
}

// enter goes into the directory name. Where name is a link it returns the target instead. The last element of a path is
// not entered; it is only looked at, whether it is a link.
func (w *walker) enter(name string, last bool) (target string, link bool, err error) {
	if !last {
		fd, err := unix.Openat(w.dir(), name, pathOnly|unix.O_DIRECTORY, 0)
		if err == nil {
			w.dirs, w.names = append(w.dirs, fd), append(w.names, name)
			return "", false, nil
		}
		if err != unix.ENOTDIR && err != unix.ELOOP {
			return "", false, err
		}
	}
	target, link, err = readLink(w.root, w.dir(), name)
	if last && err == unix.ENOENT {
		return "", false, nil
	}
	if err == nil && !link && !last {
		err = unix.ENOTDIR
	}
	if link {
		w.links++
	}
	if w.links > maxLinks {
		err = unix.ELOOP
	}
	return target, link, err
}

// dir returns the directory that the walk is in.
func (w *walker) dir() handle {
	if len(w.dirs) == 0 {
		return w.root.handle
	}
	return w.dirs[len(w.dirs)-1]
}

// backTo closes all but the first n directories.
func (w *walker) backTo(n int) {
	for _, fd := range w.dirs[n:] {
		_ = unix.Close(fd)
	}
	w.dirs, w.names = w.dirs[:n], w.names[:n]
}

// current returns the entry of the directory that the walk is in.
func (w *walker) current() (*At, error) {
	n := len(w.dirs)
	switch n {
	case 0:
		return w.at(w.root.handle, nil, ".")
	case 1:
		return w.at(w.root.handle, nil, w.names[0])
	}
	return w.at(w.dirs[n-2], w.names[:n-1], w.names[n-1])
}

func (w *walker) at(dir handle, names []string, name string) (*At, error) {
	if len(name) > unix.NAME_MAX {
		return nil, unix.ENAMETOOLONG
	}
	fd, err := dupHandle(dir)
	if err != nil {
		return nil, err
	}
	at := &At{Path: "/", Name: name, Public: true, dir: &realDir{root: w.root, handle: fd}}
	for i, parent := range names {
		at.Path = appendName(at.Path, text.EscapePath(parent))
		at.Public = at.Public && searchable(w.dirs[i])
	}
	if name != "." {
		at.Path = appendName(at.Path, text.EscapePath(name))
	}
	return at, nil
}

// searchable reports whether all users may go through a directory.
func searchable(dir handle) bool {
	var stat unix.Stat_t
	return unix.Fstat(dir, &stat) == nil && stat.Mode&unix.S_IXOTH != 0
}

// readLink returns the target of a link that may be followed, and whether there is a link at all, also with an error.
func readLink(r *realRoot, dir handle, name string) (target string, link bool, err error) {
	fd, err := unix.Openat(dir, name, pathOnly, 0)
	if err != nil {
		return "", false, err
	}
	defer unix.Close(fd)
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return "", false, err
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", false, nil
	}
	if err := checkLinkOwner(r, dir, name, &stat); err != nil {
		return "", true, err
	}
	if err := checkMagicLink(dir, fd, name); err != nil {
		return "", true, err
	}
	target, err = readlinkat(fd, "")
	return target, true, err
}

// checkLinkOwner refuses a link that another user may have planted. On another root than the agent's own it does not
// matter: whoever planted it, it cannot lead out.
func checkLinkOwner(r *realRoot, dir handle, name string, link *unix.Stat_t) error {
	if !r.host {
		return nil
	}
	if !TrustedUser(link.Uid) {
		return fault.Refuse("the link %s is not followed: it belongs to user %d", text.EscapePath(name), link.Uid)
	}
	var parent unix.Stat_t
	if err := unix.Fstat(dir, &parent); err != nil {
		return err
	}
	// In a sticky directory others cannot move or remove a link of ours, and cannot make one that is ours.
	others := parent.Mode&(unix.S_IWGRP|unix.S_IWOTH) != 0 && parent.Mode&unix.S_ISVTX == 0
	if others || !TrustedUser(parent.Uid) {
		return fault.Refuse("the link %s is not followed: others can write to the directory that it is in", text.EscapePath(name))
	}
	return nil
}

// checkMagicLink refuses the links of /proc that lead to an object and not to a path, such as /proc/1/root: their text
// is not where they lead.
func checkMagicLink(dir, link handle, name string) error {
	var file unix.Statfs_t
	if err := unix.Fstatfs(link, &file); err != nil || file.Type != unix.PROC_SUPER_MAGIC {
		return err
	}
	fd, err := unix.Openat2(dir, name, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS,
	})
	switch err {
	case nil:
		return unix.Close(fd)
	case unix.ELOOP:
		return fault.Wrapf(syscall.ELOOP, "the link %s is not followed: it is one of the jumping links of /proc", name)
	}
	return nil // an ordinary link to something that cannot be opened; the walk will meet it
}

// readlinkat reads a whole link; with an empty name the one that the descriptor stands for.
func readlinkat(dir handle, name string) (string, error) {
	for size := 256; ; size *= 2 {
		buffer := make([]byte, size)
		n, err := unix.Readlinkat(dir, name, buffer)
		if err != nil {
			return "", err
		}
		if n < size {
			return string(buffer[:n]), nil
		}
	}
}
