package proc

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// writableDir is a directory that stays writable, or some entries of which do.
type writableDir struct {
	dir     string
	entries []string // the entries that stay writable; nil: all
	mountFD int      // a clone of the directory's mounts, still writable
	stat    unix.Stat_t
	inodes  map[string]uint64 // what must stand at entries, see Confine.Inodes; "" is the directory itself
}

// open opens the directory, where its path leads to it by no link; fault.ErrChanged where that is another one than before. A
// user who exchanges a directory must not have one mounted over another.
func (o *writableDir) open() (int, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, o.dir, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return -1, err
	}
	var stat unix.Stat_t
	if err = unix.Fstat(fd, &stat); err == nil && o.stat.Mode != 0 && (stat.Dev != o.stat.Dev || stat.Ino != o.stat.Ino) {
		err = fault.ErrChanged
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	o.stat = stat
	return fd, nil
}

// clone makes mountFD.
func (o *writableDir) clone() error {
	fd, err := o.open()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := o.compare(fd); err != nil {
		return err
	}
	const flags = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_RECURSIVE | unix.AT_EMPTY_PATH
	o.mountFD, err = unix.OpenTree(fd, "", flags)
	return err
}

// compare returns fault.ErrChanged where something else stands there than what is to be writable.
func (o *writableDir) compare(fd int) error {
	for name, want := range o.inodes {
		var stat unix.Stat_t
		err := unix.Fstatat(fd, name, &stat, unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH)
		if err == unix.ENOENT {
			stat.Ino, err = 0, nil
		}
		if err == nil && stat.Ino != want {
			err = fault.ErrChanged
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// findWritableDirs returns the directories that must stay writable for paths, each once, parents before children.
func findWritableDirs(paths []string, inodes map[string]uint64) ([]writableDir, error) {
	found := map[string]*writableDir{}
	for _, path := range paths {
		if !filepath.IsAbs(path) {
			return nil, fault.Invalid("%q is not absolute", path)
		}
		path = filepath.Clean(path)
		inode, resolved := inodes[path]
		dir, name := "", ""
		if resolved {
			dir, name = resolvedDir(path)
		} else {
			dir, name = containingDir(path)
		}
		o := found[dir]
		switch {
		case o == nil && name == "":
			found[dir] = &writableDir{dir: dir}
		case o == nil:
			found[dir] = &writableDir{dir: dir, entries: []string{name}}
		case name == "":
			o.entries = nil
		case o.entries != nil:
			o.entries = append(o.entries, name)
		}
		if o = found[dir]; resolved && o.inodes == nil {
			o.inodes = map[string]uint64{}
		}
		if resolved {
			o.inodes[name] = inode
		}
	}
	list := make([]writableDir, 0, len(found))
	for _, o := range found {
		list = append(list, *o)
	}
	slices.SortFunc(list, func(a, b writableDir) int { return strings.Compare(a.dir, b.dir) })
	return list, nil
}

// resolvedDir is containingDir for a path without links on its way, whose directory is there.
func resolvedDir(path string) (dir, name string) {
	if info, err := os.Lstat(path); err == nil && info.IsDir() {
		return path, ""
	}
	return filepath.Dir(path), filepath.Base(path)
}

// containingDir returns the directory that must be writable for path to change, and the entry of it that leads to path; no
// entry if path is a directory itself. It does not follow the last element of path.
func containingDir(path string) (dir, name string) {
	for at := path; at != "/"; at = filepath.Dir(at) {
		parent, err := filepath.EvalSymlinks(filepath.Dir(at))
		if err != nil {
			continue
		}
		full := filepath.Join(parent, filepath.Base(at))
		if info, err := os.Lstat(full); at == path && err == nil && info.IsDir() {
			return full, ""
		}
		return parent, filepath.Base(at)
	}
	return "/", ""
}
