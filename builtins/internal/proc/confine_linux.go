package proc

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// The view of a confined command, in a mount namespace of its own:
//
//	/                read-only, with all that is mounted in it
//	├── etc          touches = {"/etc/hosts"}: writable, but each other entry read-only in turn
//	├── srv/www      touches = {"/srv/www"}: writable as a tree
//	└── run/quantix-kvm-tmp   a tmpfs of its own (TMPDIR), gone with the command
//
// It keeps an honest command to its word; it is no wall against root, who may mount again, write to a disk's device, or
// ask a daemon to do something.

// siblings bounds how many entries beside a touched file are made read-only; in a larger directory they stay writable.
const siblings = 4096

// view sets up what the command sees of the file system.
func (p *plan) view() error {
	mounts, err := readMounts() // before the root changes: there may be no /proc in it
	if err != nil {
		return err
	}
	if p.rooted() {
		if p.Confined { // a root that is no mount cannot be made read-only as one
			if err := unix.Mount(p.Root, p.Root, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
				return fault.On("root "+p.Root, err)
			}
			if mounts, err = readMounts(); err != nil {
				return err
			}
		}
		if err := unix.Chroot(p.Root); err != nil {
			return &StartError{Stage: "directory", Object: p.Root, Err: err}
		}
		if err := unix.Chdir("/"); err != nil {
			return err
		}
		mounts = below(mounts, p.Root)
	}
	if !p.Confined {
		return nil
	}
	return p.confine(mounts)
}

// opening is a directory that stays writable, though not all of it.
type opening struct {
	dir  string
	keep []string // the entries that stay writable; nil: all
	tree int      // the directory's mounts as they were
}

func (p *plan) confine(mounts []mount) error {
	openings, err := findOpenings(p.Writable)
	if err != nil {
		return err
	}
	for i := range openings {
		o := &openings[i]
		if o.dir == "/" {
			continue
		}
		if o.tree, err = unix.OpenTree(unix.AT_FDCWD, o.dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE); err != nil {
			return fault.On(o.dir, err)
		}
	}
	place := p.scratchPlace(openings)
	if err := readOnly("/", mounts, p.PerMount); err != nil {
		return err
	}
	if place != "" {
		if err := unix.Mount("tmpfs", place, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777,size=256m"); err != nil {
			return fault.On(place, err)
		}
		if place != scratch {
			os.Mkdir(scratch, 0o700)
			os.Chmod(scratch, 0o777|os.ModeSticky)
		}
	}
	for _, o := range openings {
		if err := o.open(mounts); err != nil {
			return fault.On(o.dir, err)
		}
		if err := o.closeOthers(mounts, p.PerMount); err != nil {
			return err
		}
	}
	return nil
}

// scratchPlace finds where the tmpfs of the command is mounted; empty where it has none. Under another root that is the
// whole of /run, which means nothing in a system that does not run, so that no directory stays behind in an image.
func (p *plan) scratchPlace(openings []opening) string {
	if !p.rooted() {
		if os.MkdirAll(scratch, 0o755) != nil {
			return ""
		}
		return scratch
	}
	place := filepath.Dir(scratch)
	inside := func(o opening) bool { return o.dir == place || strings.HasPrefix(o.dir, place+"/") }
	if info, err := os.Lstat(place); err != nil || !info.IsDir() || slices.ContainsFunc(openings, inside) {
		return ""
	}
	return place
}

func (p *plan) rooted() bool { return p.Root != "" && p.Root != "/" }

// findOpenings says which directories must stay writable for paths, each once, those above before those below.
func findOpenings(paths []string) ([]opening, error) {
	found := map[string]*opening{}
	for _, path := range paths {
		if !filepath.IsAbs(path) {
			return nil, fault.Invalid("%q is not absolute", path)
		}
		dir, name := nearest(filepath.Clean(path))
		o := found[dir]
		switch {
		case o == nil && name == "":
			found[dir] = &opening{dir: dir}
		case o == nil:
			found[dir] = &opening{dir: dir, keep: []string{name}}
		case name == "":
			o.keep = nil
		case o.keep != nil:
			o.keep = append(o.keep, name)
		}
	}
	list := make([]opening, 0, len(found))
	for _, o := range found {
		list = append(list, *o)
	}
	slices.SortFunc(list, func(a, b opening) int { return strings.Compare(a.dir, b.dir) })
	return list, nil
}

// nearest gives the directory that must be writable for path to change, and which entry of it path is or lies under;
// no entry where path is a directory itself. The last element of path is not followed.
func nearest(path string) (dir, name string) {
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

// open puts a directory back as it was before all became read-only.
func (o *opening) open(mounts []mount) error {
	if o.dir != "/" {
		defer unix.Close(o.tree)
		return unix.MoveMount(o.tree, "", unix.AT_FDCWD, o.dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
	}
	// Nothing can be mounted over the root of a process so that it sees it.
	return unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|covering(mounts, "/").flags(), "")
}

// closeOthers makes the entries of an opened directory read-only that need not be writable. Links cannot be, and what is
// neither file nor directory does not care.
func (o *opening) closeOthers(mounts []mount, perMount bool) error {
	if o.keep == nil {
		return nil
	}
	entries, err := os.ReadDir(o.dir)
	if err != nil {
		return fault.On(o.dir, err)
	}
	if len(entries) > siblings {
		return nil
	}
	for _, e := range entries {
		path := filepath.Join(o.dir, e.Name())
		if slices.Contains(o.keep, e.Name()) || !e.IsDir() && !e.Type().IsRegular() || path == scratch {
			continue
		}
		err := unix.Mount(path, path, "", unix.MS_BIND|unix.MS_REC, "")
		if err == nil {
			err = readOnly(path, mounts, perMount)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) { // gone meanwhile
			return fault.On(path, err)
		}
	}
	return nil
}

// readOnly makes the mount at path and all below it read-only. Where the kernel cannot do that at once (before 5.12), one
// after the other, by what was mounted when the stage began.
func readOnly(path string, mounts []mount, perMount bool) error {
	if !perMount {
		err := unix.MountSetattr(unix.AT_FDCWD, path, unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
		if err != unix.ENOSYS {
			return err
		}
	}
	top := *covering(mounts, path)
	top.point = "/"
	for _, m := range append(below(mounts, path), top) {
		point := filepath.Join(path, m.point)
		err := unix.Mount("", point, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|m.flags(), "")
		if err != nil && err != unix.EINVAL && err != unix.ENOENT { // mounted over: nobody sees it
			return fault.On(point, err)
		}
	}
	return nil
}

// mount is one line of mountinfo.
type mount struct {
	root, point, options, fstype string
}

func readMounts() ([]mount, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var mounts []mount
	for line := range bytes.Lines(text) {
		fields := strings.Fields(string(line))
		dash := slices.Index(fields, "-")
		if dash < 6 || len(fields) < dash+2 {
			continue
		}
		mounts = append(mounts, mount{root: unescape(fields[3]), point: unescape(fields[4]), options: fields[5], fstype: fields[dash+1]})
	}
	return mounts, nil
}

// unescape undoes what mountinfo does to white space in paths.
func unescape(path string) string {
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		if path[i] == '\\' && i+3 < len(path) {
			if n, err := strconv.ParseUint(path[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(path[i])
	}
	return b.String()
}

// below gives the mounts at and under a path, named from there; the last one at a point is what is seen.
func below(mounts []mount, path string) []mount {
	var inside []mount
	for _, m := range mounts {
		if rest, ok := strings.CutPrefix(m.point, strings.TrimSuffix(path, "/")); ok && (rest == "" || rest[0] == '/') {
			m.point = "/" + strings.TrimPrefix(rest, "/")
			inside = append(inside, m)
		}
	}
	return inside
}

// covering is the mount that a path lies in.
func covering(mounts []mount, path string) *mount {
	best := &mount{point: "/"}
	for i := range mounts {
		m := &mounts[i]
		prefix := strings.TrimSuffix(m.point, "/")
		if len(m.point) >= len(best.point) && (path == m.point || strings.HasPrefix(path, prefix+"/")) {
			best = m
		}
	}
	return best
}

// flags are the options of a mount that a change of it must repeat to keep.
func (m *mount) flags() uintptr {
	known := map[string]uintptr{"nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC,
		"noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME, "ro": unix.MS_RDONLY}
	var flags uintptr
	for option := range strings.SplitSeq(m.options, ",") {
		flags |= known[option]
	}
	return flags
}
