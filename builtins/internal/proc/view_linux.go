package proc

import (
	"bufio"
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
// Where no overlay can be made there is no view, and the command is read-only in all.

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
	flags    uintptr // with which it is made read-only
}

// view are the mounts of a private view, parents before children.
type view struct{ layers []layer }

// prepareView makes the overlays of dirs, which are paths inside root. It is called before the root is changed. The places
// that mounts has for root are outside of it. nil: none could be made.
func prepareView(root string, dirs []string, mounts []mountInfo) *view {
	if root == "/" {
		root = ""
	}
	stage := scratchDir
	const flags = unix.MS_NOSUID | unix.MS_NODEV
	if os.MkdirAll(stage, 0o755) != nil || unix.Mount("tmpfs", stage, "tmpfs", flags, "mode=755,size=256m") != nil {
		return nil
	}
	defer unix.Unmount(stage, unix.MNT_DETACH) // the overlays keep it
	v, n := &view{}, 0
	for _, dir := range dirs {
		if !isDirectory(root, dir) {
			continue
		}
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
			if l, err := newLayer(stage, root, filepath.Join(dir, point), m, point == "/", n); err == nil {
				v.layers = append(v.layers, l)
			}
		}
	}
	if root == "" {
		v.addSockets(mounts)
	}
	slices.SortStableFunc(v.layers, func(a, b layer) int { return strings.Compare(a.path, b.path) })
	v.dropOrphans(dirs)
	if len(v.layers) == 0 {
		return nil
	}
	return v
}

// isDirectory says whether a path inside root is a directory, and no element of it a link.
func isDirectory(root, path string) bool {
	at := root
	for _, name := range strings.Split(strings.Trim(path, "/"), "/") {
		at += "/" + name
		if info, err := os.Lstat(at); err != nil || !info.IsDir() {
			return false
		}
	}
	return true
}

// newLayer makes the overlay over what is at a path, or of another file system a mount that is to be read-only.
func newLayer(stage, root, path string, m mountInfo, top bool, n int) (layer, error) {
	from := root + path
	if !top && !slices.Contains(layered, m.fstype) {
		fd, err := unix.OpenTree(unix.AT_FDCWD, from, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		return layer{path: path, fd: fd, readOnly: true, flags: m.flags()}, err
	}
	info, err := os.Stat(from)
	if err != nil {
		return layer{}, err
	}
	if !info.IsDir() { // a file that is mounted
		fd, err := unix.OpenTree(unix.AT_FDCWD, from, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		return layer{path: path, fd: fd, readOnly: true, flags: m.flags()}, err
	}
	base := filepath.Join(stage, strconv.Itoa(n))
	for _, name := range []string{"", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(base, name), 0o755); err != nil {
			return layer{}, err
		}
	}
	merged, upper := filepath.Join(base, "merged"), filepath.Join(base, "upper")
	if stat, ok := statOf(info); ok { // the directory itself is seen as that of the upper layer
		if err := unix.Chown(upper, int(stat.Uid), int(stat.Gid)); err != nil {
			return layer{}, err
		}
		if err := unix.Chmod(upper, stat.Mode&0o7777); err != nil {
			return layer{}, err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", escapeOption(from), upper, filepath.Join(base, "work"))
	if err := unix.Mount("overlay", merged, "overlay", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return layer{}, err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, merged, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	return layer{path: path, fd: fd}, err
}

// escapeOption escapes what separates lower layers and options.
func escapeOption(path string) string {
	return strings.NewReplacer(`\`, `\\`, ":", `\:`, ",", `\,`).Replace(path)
}

// addSockets adds the sockets and pipes in the directories of the view: those that the kernel lists, which has them by the
// name that they were bound to, and what stands in /run and in /tmp, where they may have been renamed.
func (v *view) addSockets(mounts []mountInfo) {
	var paths []string
	if file, err := os.Open("/proc/net/unix"); err == nil {
		for lines := bufio.NewScanner(file); lines.Scan(); {
			if at := strings.IndexByte(lines.Text(), '/'); at >= 0 {
				paths = append(paths, lines.Text()[at:])
			}
		}
		file.Close()
	}
	paths = append(slices.Concat(paths, socketsIn("/run", 16)), socketsIn("/tmp", 2)...)
	seen := map[string]bool{}
	for _, path := range paths {
		path, err := filepath.EvalSymlinks(path)
		if err != nil || seen[path] || len(seen) >= maxViewSockets || !v.covers(path) {
			continue
		}
		seen[path] = true
		if info, err := os.Lstat(path); err != nil || info.Mode()&(fs.ModeSocket|fs.ModeNamedPipe) == 0 {
			continue
		}
		if fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC); err == nil {
			v.layers = append(v.layers, layer{path: path, fd: fd, readOnly: true, flags: mountOf(mounts, path).flags()})
		}
	}
}

// socketsIn lists the sockets and pipes in a directory, as deep as depth says.
func socketsIn(dir string, depth int) (paths []string) {
	left := maxViewEntries
	_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if left--; left < 0 {
			return fs.SkipAll
		}
		switch {
		case err != nil:
			return nil // removed meanwhile
		case e.IsDir() && strings.Count(path, "/") > depth:
			return fs.SkipDir
		case e.Type()&(fs.ModeSocket|fs.ModeNamedPipe) != 0:
			paths = append(paths, path)
		}
		return nil
	})
	return paths
}

// covers says whether a path is below an overlay of the view.
func (v *view) covers(path string) bool {
	return slices.ContainsFunc(v.layers, func(l layer) bool { return !l.readOnly && strings.HasPrefix(path, l.path+"/") })
}

// dropOrphans leaves out what is in a directory whose own layer could not be made.
func (v *view) dropOrphans(dirs []string) {
	v.layers = slices.DeleteFunc(v.layers, func(l layer) bool {
		orphan := !slices.ContainsFunc(v.layers, func(top layer) bool {
			return slices.Contains(dirs, top.path) && (l.path == top.path || strings.HasPrefix(l.path, top.path+"/"))
		})
		if orphan {
			unix.Close(l.fd)
		}
		return orphan
	})
}

// has says whether a directory is an overlay of the view.
func (v *view) has(dir string) bool {
	return v != nil && slices.ContainsFunc(v.layers, func(l layer) bool { return l.path == dir })
}

// mount puts the view in its place.
func (v *view) mount() error {
	if v == nil {
		return nil
	}
	for _, l := range v.layers {
		err := unix.MoveMount(l.fd, "", unix.AT_FDCWD, l.path, unix.MOVE_MOUNT_F_EMPTY_PATH)
		unix.Close(l.fd)
		if err == nil && l.readOnly {
			err = unix.Mount("", l.path, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|l.flags, "")
		}
		if err != nil && err != unix.ENOENT { // removed meanwhile
			return fault.On(l.path, err)
		}
	}
	return nil
}
