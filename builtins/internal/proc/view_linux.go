package proc

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// A command that changes nothing may still write what it throws away itself: a file with its process ID, a lock, a log. Its
// private view has an overlay over each directory of viewDirs, whose upper layer is a tmpfs of its own:
//
//	/run, /tmp, /var   what is there, and what the command writes, which goes with it
//	├── mounts in it   overlays as well; of file systems that none can lie over a read-only mount
//	├── sockets        the real ones: nobody listens at the copy that an overlay shows
//	└── /run/NAME      made where a unit or tmpfiles.d says that a service has it
//
// What is mounted is named by paths, and a user who may rename on such a path could have anything mounted anywhere. So only
// what root alone can rename is taken, see openSure: what is mounted in a directory of a user, and the sockets in it, are left
// out, and are seen as the overlay shows them. Where no overlay can be made there is no view, and the command is read-only in
// all.

// viewDirs are the directories that the private view is about.
var viewDirs = []string{"/run", "/tmp", "/var", "/dev/shm"}

// Bounds of a view.
const (
	maxViewMounts  = 512    // in one directory: one with more is left read-only
	maxViewSockets = 1024   // of all
	maxViewEntries = 20_000 // that are looked at for sockets, of one directory
)

// layered are the file systems over which an overlay is laid, where they are mounted inside of a directory of the view.
var layered = []string{"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "tmpfs"}

// layer is a mount that takes its place in the view.
type layer struct {
	path     string // inside the root
	fd       int    // of the mount
	readOnly bool
	flags    uintptr // with which it is made read-only when it is in its place; 0: it is so before
}

// view are the mounts of a private view, parents before children.
type view struct {
	layers   []layer
	dirs     []string // those that it is about: without one of them there is no view
	perMount bool     // see launchSpec
}

// prepareView makes the overlays of dirs, which are paths inside root. It is called before the root is changed. The places
// that mounts has for root are outside of it. nil: none could be made.
func prepareView(root string, dirs []string, mounts []mountInfo, perMount bool) *view {
	if root == "/" {
		root = ""
	}
	top, err := unix.Open(root+"/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(top)
	stage := scratchDir
	const flags = unix.MS_NOSUID | unix.MS_NODEV
	if os.MkdirAll(stage, 0o755) != nil || unix.Mount("tmpfs", stage, "tmpfs", flags, "mode=755,size=256m") != nil {
		return nil
	}
	defer unix.Unmount(stage, unix.MNT_DETACH) // the overlays keep it
	v, n := &view{dirs: dirs, perMount: perMount}, 0
	for _, dir := range dirs {
		inside := mountsUnder(mounts, root+dir)
		if len(inside) > maxViewMounts {
			continue
		}
		points := map[string]mountInfo{"/": {}}
		for _, m := range inside {
			points[m.point] = m // the last one at a point is the one that is seen
		}
		for point, m := range points {
			if root == "" && strings.HasPrefix(dir+point, scratchDir) {
				continue
			}
			n++
			if l, err := v.newLayer(stage, top, filepath.Join(dir, point), m, point == "/", n); err == nil {
				v.layers = append(v.layers, l)
			}
		}
	}
	if root == "" {
		v.addSockets(top, mounts)
	}
	slices.SortStableFunc(v.layers, func(a, b layer) int { return strings.Compare(a.path, b.path) })
	v.dropOrphans()
	if len(v.layers) == 0 {
		return nil
	}
	return v
}

// openSure opens, with O_PATH, what is at a path below a directory, where root alone can change what that is: no element is
// a link, and each directory on the way, top among them, belongs to root and is written by nobody else. The kind of what it
// opened is in stat. The error is fault.ErrRefused where others could change it.
func openSure(top int, path string, stat *unix.Stat_t) (int, error) {
	fd, err := unix.Openat(top, ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		var next int
		if err = unix.Fstat(fd, stat); err == nil && !rootAlone(stat) {
			err = fault.Refuse("others than root can write to a directory of %s", path)
		}
		if err == nil && (name == "" || name == "." || name == "..") {
			err = unix.EINVAL
		}
		if err == nil {
			next, err = unix.Openat(fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		}
		unix.Close(fd)
		if err != nil {
			return -1, err
		}
		fd = next
	}
	if err = unix.Fstat(fd, stat); err == nil && stat.Mode&unix.S_IFMT == unix.S_IFLNK {
		err = unix.ELOOP
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// rootAlone reports whether a directory is one that root alone can write to. The bits of the group bound those of an ACL.
func rootAlone(stat *unix.Stat_t) bool {
	return stat.Mode&unix.S_IFMT == unix.S_IFDIR && stat.Uid == 0 && stat.Mode&0o022 == 0
}

// newLayer makes the overlay over what is at a path, or of another file system a mount that is to be read-only.
func (v *view) newLayer(stage string, root int, path string, m mountInfo, top bool, n int) (layer, error) {
	var stat unix.Stat_t
	from, err := openSure(root, path, &stat)
	if err != nil {
		return layer{}, err
	}
	defer unix.Close(from)
	switch isDir := stat.Mode&unix.S_IFMT == unix.S_IFDIR; {
	case top && !isDir:
		return layer{}, unix.ENOTDIR
	case !isDir, !top && !slices.Contains(layered, m.fstype):
		return v.cloned(from, path, m.flags())
	}
	base := filepath.Join(stage, strconv.Itoa(n))
	for _, name := range []string{"", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(base, name), 0o755); err != nil {
			return layer{}, err
		}
	}
	merged, upper := filepath.Join(base, "merged"), filepath.Join(base, "upper")
	// The directory itself is seen as that of the upper layer.
	if err := unix.Chown(upper, int(stat.Uid), int(stat.Gid)); err != nil {
		return layer{}, err
	}
	if err := unix.Chmod(upper, stat.Mode&0o7777); err != nil {
		return layer{}, err
	}
	work := filepath.Join(base, "work")
	options := fmt.Sprintf("lowerdir=/proc/self/fd/%d,upperdir=%s,workdir=%s", from, upper, work)
	if err := unix.Mount("overlay", merged, "overlay", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return layer{}, err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, merged, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	return layer{path: path, fd: fd}, err
}

// cloned is the layer of what a descriptor stands for, mounted once more and read-only.
func (v *view) cloned(from int, path string, flags uintptr) (layer, error) {
	fd, err := unix.OpenTree(from, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return layer{}, err
	}
	l := layer{path: path, fd: fd, readOnly: true}
	err = unix.ENOSYS
	if !v.perMount {
		err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	}
	if err == unix.ENOSYS { // before Linux 5.12
		l.flags, err = flags|unix.MS_RDONLY, nil
	}
	if err != nil {
		unix.Close(fd)
	}
	return l, err
}

// addSockets adds the sockets and pipes in the directories of the view where root alone makes them: those that the kernel
// lists, which has them by the name that they were bound to, and what stands in /run, where they may have been renamed.
func (v *view) addSockets(root int, mounts []mountInfo) {
	var paths []string
	if file, err := os.Open("/proc/net/unix"); err == nil {
		for lines := bufio.NewScanner(file); lines.Scan(); {
			if at := strings.IndexByte(lines.Text(), '/'); at >= 0 {
				paths = append(paths, lines.Text()[at:])
			}
		}
		file.Close()
	}
	seen := map[string]bool{}
	for _, path := range append(paths, socketsIn("/run", 16)...) {
		path = filepath.Clean(path)
		if rest, ok := strings.CutPrefix(path, "/var/run/"); ok { // a link to /run
			path = "/run/" + rest
		}
		if seen[path] || len(seen) >= maxViewSockets || !v.covers(path) {
			continue
		}
		if l, err := v.socket(root, path, mounts); err == nil {
			seen[path] = true
			v.layers = append(v.layers, l)
		}
	}
}

// socket is the layer of a socket or a pipe.
func (v *view) socket(root int, path string, mounts []mountInfo) (layer, error) {
	var stat unix.Stat_t
	fd, err := openSure(root, path, &stat)
	if err != nil {
		return layer{}, err
	}
	defer unix.Close(fd)
	if kind := stat.Mode & unix.S_IFMT; kind != unix.S_IFSOCK && kind != unix.S_IFIFO {
		return layer{}, unix.ENOTSOCK
	}
	return v.cloned(fd, path, mountOf(mounts, path).flags())
}

// socketsIn lists the sockets and pipes in a directory that root alone can write to, and in such ones in it, as deep as depth
// says.
func socketsIn(dir string, depth int) (paths []string) {
	left := maxViewEntries
	_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if left--; left < 0 {
			return fs.SkipAll
		}
		switch {
		case err != nil:
			return nil // removed meanwhile
		case e.IsDir():
			var stat unix.Stat_t
			if strings.Count(path, "/") > depth || unix.Lstat(path, &stat) != nil || !rootAlone(&stat) {
				return fs.SkipDir
			}
		case e.Type()&(fs.ModeSocket|fs.ModeNamedPipe) != 0:
			paths = append(paths, path)
		}
		return nil
	})
	return paths
}

// covers reports whether a path is below an overlay of the view.
func (v *view) covers(path string) bool {
	return slices.ContainsFunc(v.layers, func(l layer) bool { return !l.readOnly && strings.HasPrefix(path, l.path+"/") })
}

// dropOrphans leaves out what is in a directory whose own layer could not be made.
func (v *view) dropOrphans() {
	v.layers = slices.DeleteFunc(v.layers, func(l layer) bool {
		orphan := !slices.ContainsFunc(v.layers, func(top layer) bool {
			return slices.Contains(v.dirs, top.path) && (l.path == top.path || strings.HasPrefix(l.path, top.path+"/"))
		})
		if orphan {
			unix.Close(l.fd)
		}
		return orphan
	})
}

// has reports whether a directory is an overlay of the view.
func (v *view) has(dir string) bool {
	return v != nil && slices.ContainsFunc(v.layers, func(l layer) bool { return l.path == dir })
}

// mount puts the view in its place, below "/". What cannot be put there is left out, but for the view's own directories.
func (v *view) mount() error {
	if v == nil {
		return nil
	}
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	for _, l := range v.layers {
		err := l.mount(root)
		unix.Close(l.fd)
		if err != nil && slices.Contains(v.dirs, l.path) {
			return fault.On(l.path, err)
		}
	}
	return nil
}

// mount puts a layer where its path leads from root, if root alone can change where that is.
func (l *layer) mount(root int) error {
	var stat unix.Stat_t
	to, err := openSure(root, l.path, &stat)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	err = unix.MoveMount(l.fd, "", to, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	if err != nil || l.flags == 0 {
		return err
	}
	// By name, which leads to the mount: root alone could have changed that.
	if err = unix.Mount("", l.path, "", unix.MS_REMOUNT|unix.MS_BIND|l.flags, ""); err != nil {
		return errors.Join(err, unix.Unmount(l.path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW))
	}
	return nil
}
