package proc

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// What a confined command sees, in its own mount namespace:
//
//	/                read-only, with all that is mounted in it
//	├── etc          Writable: /etc/hosts: writable, but each other entry is mounted read-only
//	├── srv/www      Writable: /srv/www: writable as a tree
//	└── run/quantix-kvm-tmp   a private tmpfs (TMPDIR), gone with the command
//
// One that is Private may write below /run, /tmp and /var as well, to what is thrown away: see view.
//
// Of root's capabilities it has none by which it could leave: see deniedCapabilities. It stays root, though: it may
// write to a block device, signal and configure what is not a file, and ask a daemon to act (systemd over D-Bus, a
// container engine).

// deniedCapabilities are those by which root could leave the confinement: by mounting again or entering another
// namespace, by /proc/PID/root, a debugger or a descriptor of another process, which the kernel allows only to who has
// all capabilities of that process or CAP_SYS_PTRACE, by a device node of its own, and by the kernel itself.
var deniedCapabilities = []uintptr{
	unix.CAP_SYS_ADMIN, unix.CAP_SYS_PTRACE, unix.CAP_MKNOD, unix.CAP_SYS_RAWIO, unix.CAP_SYS_MODULE, unix.CAP_SYS_BOOT,
	unix.CAP_BPF, unix.CAP_PERFMON, unix.CAP_CHECKPOINT_RESTORE, unix.CAP_MAC_ADMIN, unix.CAP_MAC_OVERRIDE,
}

// dropCapabilities takes from this process what the program that it executes must not get, also not by a set-user-ID
// program.
func dropCapabilities() error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return err
	}
	for _, c := range deniedCapabilities {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if err != nil && err != unix.EINVAL { // an older kernel does not know it
			return err
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return err
	}
	sets[0].Inheritable, sets[1].Inheritable = 0, 0
	return unix.Capset(&header, &sets[0])
}

// maxSiblings bounds how many entries beside a writable one are made read-only, each by a mount; in a larger directory
// the command is not started.
const maxSiblings = 4096

// setUpMounts changes the root, and makes the file system read-only for a confined command.
func (p *launchSpec) setUpMounts() error {
	mounts, err := readMounts() // before chroot: the new root may have no /proc
	if err != nil {
		return err
	}
	if p.hasRoot() {
		if p.Confined { // only a mount can be made read-only
			if err = unix.Mount(p.Root, p.Root, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
				return fault.On("root "+p.Root, err)
			}
		}
		if p.System {
			if err := mountSystem(p.Root, mounts); err != nil {
				return err
			}
		}
		if mounts, err = readMounts(); err != nil {
			return err
		}
		private := p.prepareView(mounts)
		if err := unix.Chroot(p.Root); err != nil {
			return &StartError{Stage: "directory", Object: p.Root, Err: err}
		}
		if err := unix.Chdir("/"); err != nil {
			return err
		}
		return p.confineWrites(mountsUnder(mounts, p.Root), private)
	}
	return p.confineWrites(mounts, p.prepareView(mounts))
}

// prepareView makes the mounts of a view: of a command that has a private one, and of each that is confined below another
// root, where /run is used by nothing else, so that no directory is left behind there.
func (p *launchSpec) prepareView(mounts []mountInfo) *view {
	switch {
	case !p.Confined || p.Probe:
		return nil
	case p.Private:
		return prepareView(p.Root, viewDirs, mounts, p.PerMount)
	case p.hasRoot():
		return prepareView(p.Root, []string{filepath.Dir(scratchDir)}, mounts, p.PerMount)
	}
	return nil
}

func (p *launchSpec) confineWrites(mounts []mountInfo, private *view) error {
	if !p.Confined {
		return nil
	}
	dirs, err := findWritableDirs(p.Writable, p.Inodes)
	if err != nil {
		return err
	}
	for i := range dirs {
		o := &dirs[i]
		if o.dir == "/" {
			continue
		}
		if err := o.clone(); err != nil {
			return fault.On(o.dir, err)
		}
	}
	place := p.scratchMountPoint(dirs)
	if place == "" && !p.Private { // what is written in /run is to stay
		private = nil
	}
	if err := makeReadOnly("/", mounts, p.PerMount); err != nil {
		return err
	}
	if err := private.mount(); err != nil {
		return err
	}
	if p.Private {
		makeRuntimeDirs()
	}
	if place != "" {
		if private.has(filepath.Dir(scratchDir)) {
			place = scratchDir
			if err := os.MkdirAll(place, 0o755); err != nil {
				return err
			}
		}
		if err := unix.Mount("tmpfs", place, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777,size=256m"); err != nil {
			return fault.On(place, err)
		}
		if place != scratchDir {
			os.Mkdir(scratchDir, 0o700)
			os.Chmod(scratchDir, 0o777|os.ModeSticky)
		}
	}
	for i := range dirs {
		o := &dirs[i]
		if err := o.restore(mounts); err != nil {
			return fault.On(o.dir, err)
		}
		if err := o.makeOthersReadOnly(mounts, p.PerMount); err != nil {
			return err
		}
	}
	return nil
}

// scratchMountPoint returns where the command's tmpfs is mounted; empty: it gets none. Under another root that is /run itself,
// which is unused in an image, so that no directory is left behind there.
func (p *launchSpec) scratchMountPoint(dirs []writableDir) string {
	if !p.hasRoot() {
		if os.MkdirAll(scratchDir, 0o755) != nil {
			return ""
		}
		return scratchDir
	}
	place := filepath.Dir(scratchDir)
	inside := func(o writableDir) bool { return o.dir == place || strings.HasPrefix(o.dir, place+"/") }
	if info, err := os.Lstat(place); err != nil || !info.IsDir() || slices.ContainsFunc(dirs, inside) {
		return ""
	}
	return place
}

func (p *launchSpec) hasRoot() bool { return p.Root != "" && p.Root != "/" }

// restore mounts the writable clone of a directory over the read-only one.
func (o *writableDir) restore(mounts []mountInfo) error {
	if o.dir != "/" {
		defer unix.Close(o.mountFD)
		fd, err := o.open()
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.MoveMount(o.mountFD, "", fd, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	}
	// A mount over "/" would not be seen by a process whose root is below it.
	return unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|mountOf(mounts, "/").flags(), "")
}

// makeOthersReadOnly makes the other entries of a directory read-only, as far as they are files and directories: a link
// cannot be mounted, and a special file is not written.
func (o *writableDir) makeOthersReadOnly(mounts []mountInfo, perMount bool) error {
	if o.entries == nil {
		return nil
	}
	fd, err := o.open()
	if err != nil {
		return fault.On(o.dir, err)
	}
	dir := os.NewFile(uintptr(fd), o.dir)
	defer dir.Close()
	var entries []os.DirEntry
	for err == nil {
		var some []os.DirEntry
		some, err = dir.ReadDir(maxSiblings)
		entries = append(entries, slices.DeleteFunc(some, func(e os.DirEntry) bool {
			mountable := e.IsDir() || e.Type().IsRegular()
			return !mountable || slices.Contains(o.entries, e.Name()) || filepath.Join(o.dir, e.Name()) == scratchDir
		})...)
		if len(entries) > maxSiblings {
			return fault.Refuse("%s has more than %d entries beside what is touched, which is how many are made read-only; "+
				"touch the directory as a whole, or keep what is touched in one of its own", o.dir, maxSiblings)
		}
	}
	if err != io.EOF {
		return fault.On(o.dir, err)
	}
	for _, e := range entries {
		path := filepath.Join(o.dir, e.Name())
		err := error(unix.ENOSYS)
		if !perMount {
			err = mountReadOnly(fd, e.Name())
		}
		if err == unix.ENOSYS { // before Linux 5.12
			if err = unix.Mount(path, path, "", unix.MS_BIND|unix.MS_REC, ""); err == nil {
				err = makeReadOnly(path, mounts, perMount)
			}
		}
		if err != nil && !errors.Is(err, unix.ENOENT) { // removed meanwhile
			return fault.On(path, err)
		}
	}
	return nil
}

// mountReadOnly mounts an entry of a directory, which is no link, over itself and read-only, with all that is mounted in it.
func mountReadOnly(dir int, name string) error {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil || stat.Mode&unix.S_IFMT == unix.S_IFLNK { // exchanged meanwhile
		return err
	}
	const flags = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_RECURSIVE | unix.AT_EMPTY_PATH
	tree, err := unix.OpenTree(fd, "", flags)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(tree, "", unix.AT_RECURSIVE|unix.AT_EMPTY_PATH, attr); err != nil {
		return err
	}
	return unix.MoveMount(tree, "", fd, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// makeReadOnly makes the mount at path and all below it read-only. A kernel before 5.12 has no call for the tree: then each
// mount that was there when the launcher began is changed.
func makeReadOnly(path string, mounts []mountInfo, perMount bool) error {
	if !perMount {
		err := unix.MountSetattr(unix.AT_FDCWD, path, unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
		if err != unix.ENOSYS {
			return err
		}
	}
	top := *mountOf(mounts, path)
	top.point = "/"
	for _, m := range append(mountsUnder(mounts, path), top) {
		point := filepath.Join(path, m.point)
		err := unix.Mount("", point, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|m.flags(), "")
		if err != nil && err != unix.EINVAL && err != unix.ENOENT { // hidden by another mount
			return fault.On(point, err)
		}
	}
	return nil
}

// Mounts returns the mounts that can be seen: those that another one hides are left out.
func Mounts() ([]Mount, error) {
	all, err := readMounts()
	if err != nil {
		return nil, err
	}
	var seen []Mount
	for i, m := range all {
		hidden := slices.ContainsFunc(all[i+1:], func(later mountInfo) bool {
			return m.point == later.point || strings.HasPrefix(m.point, strings.TrimSuffix(later.point, "/")+"/")
		})
		if !hidden {
			seen = append(seen, Mount{m.device, m.point, m.fstype})
		}
	}
	return seen, nil
}

// mountInfo is one line of /proc/self/mountinfo.
type mountInfo struct {
	device, root, point, options, fstype string
}

func readMounts() ([]mountInfo, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var mounts []mountInfo
	for line := range bytes.Lines(text) {
		fields := fsys.MountFields(string(line))
		dash := slices.Index(fields, "-")
		if dash < 6 || len(fields) < dash+2 {
			continue
		}
		mounts = append(mounts, mountInfo{device: fields[2], root: fsys.UnescapeMount(fields[3]), point: fsys.UnescapeMount(fields[4]),
			options: fields[5], fstype: fields[dash+1]})
	}
	return mounts, nil
}

// mountsUnder returns the mounts at and below a path, with points relative to it; the last one at a point is the visible one.
func mountsUnder(mounts []mountInfo, path string) []mountInfo {
	var inside []mountInfo
	for _, m := range mounts {
		if rest, ok := strings.CutPrefix(m.point, strings.TrimSuffix(path, "/")); ok && (rest == "" || rest[0] == '/') {
			m.point = "/" + strings.TrimPrefix(rest, "/")
			inside = append(inside, m)
		}
	}
	return inside
}

// mountOf returns the mount that contains a path.
func mountOf(mounts []mountInfo, path string) *mountInfo {
	best := &mountInfo{point: "/"}
	for i := range mounts {
		m := &mounts[i]
		prefix := strings.TrimSuffix(m.point, "/")
		if len(m.point) >= len(best.point) && (path == m.point || strings.HasPrefix(path, prefix+"/")) {
			best = m
		}
	}
	return best
}

// flags returns the options of a mount that a remount must repeat, since it would clear them.
func (m *mountInfo) flags() uintptr {
	known := map[string]uintptr{"nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC,
		"noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME, "ro": unix.MS_RDONLY}
	var flags uintptr
	for option := range strings.SplitSeq(m.options, ",") {
		flags |= known[option]
	}
	return flags
}
