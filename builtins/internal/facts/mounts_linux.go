package facts

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
)

// dataMounts lists the file systems that hold data and that paths lead to, each once, without touching them.
func dataMounts(context.Context) ([]Disk, error) {
	text, err := os.ReadFile("/proc/self/mountinfo") // the sizes are asked for by path, so it is the agent's own mounts that count
	if err != nil {
		return nil, err
	}
	var disks []Disk
	for _, m := range visibleData(string(text)) {
		disks = append(disks, Disk{Mount: m.point, Device: m.deviceName("/"), Type: m.kind})
	}
	return disks, nil
}

// mount is a line of mountinfo, see proc_pid_mountinfo(5).
type mount struct {
	id, parent          int
	device              string // major:minor
	root, point         string
	kind, source        string
	hidden, hiddenKnown bool
}

// visibleData returns the file systems in a mountinfo that hold data. Of the mounts of one it is that at the root
// directory, else the first that is not a part of it, else the first. What is mounted over is left out: its path leads to
// another file system.
func visibleData(mountinfo string) (chosen []*mount) {
	var list []*mount
	byID := map[int]*mount{}
	for line := range strings.Lines(mountinfo) {
		if m := parseMount(line); m != nil {
			list = append(list, m)
			byID[m.id] = m
		}
	}
	for _, m := range list {
		if isHidden(m, list, byID, 0) || !holdsData(m.kind, m.source) && m.point != "/" {
			continue
		}
		same := slices.IndexFunc(chosen, func(o *mount) bool { return o.device == m.device })
		switch {
		case same < 0:
			chosen = append(chosen, m)
		case m.point == "/" || chosen[same].point != "/" && chosen[same].root != "/" && m.root == "/":
			chosen[same] = m
		}
	}
	return chosen
}

// maxMountDepth bounds how many mounts are within one another, against a list that is not consistent.
const maxMountDepth = 1000

// isHidden reports whether no path leads to a mount: another one is mounted on its root, or above its mount point in the same
// mount, or the mount that it is in is hidden itself.
func isHidden(m *mount, list []*mount, byID map[int]*mount, depth int) bool {
	if m.hiddenKnown || depth > maxMountDepth {
		return m.hidden
	}
	for _, other := range list {
		covers := other.parent == m.id && other.point == m.point ||
			other.parent == m.parent && other.point != m.point && below(m.point, other.point)
		if other != m && covers {
			m.hidden = true
		}
	}
	if parent := byID[m.parent]; !m.hidden && parent != nil && parent != m {
		// What is mounted on the root of its parent hides the parent, and is not hidden by that.
		m.hidden = parent.point != m.point && isHidden(parent, list, byID, depth+1)
	}
	m.hiddenKnown = true
	return m.hidden
}

// below reports whether a path is below a directory.
func below(path, dir string) bool { return strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/") }

// parseMount reads a line of mountinfo; nil: it is none.
func parseMount(line string) *mount {
	fields := fsys.MountFields(line)
	separator := slices.Index(fields, "-")
	if separator < 6 || len(fields) < separator+3 {
		return nil
	}
	id, err := strconv.Atoi(fields[0])
	parent, err2 := strconv.Atoi(fields[1])
	if err != nil || err2 != nil {
		return nil
	}
	return &mount{
		id: id, parent: parent, device: fields[2], root: fsys.UnescapeMount(fields[3]), point: fsys.UnescapeMount(fields[4]),
		kind: fields[separator+1], source: fsys.UnescapeMount(fields[separator+2]),
	}
}

// deviceName returns the name of a disk by which the kernel below root lists it: what device mapper makes has others, and what
// the kernel itself mounted at its start is called /dev/root, which is not there.
func (m *mount) deviceName(root string) string {
	switch {
	case strings.HasPrefix(m.source, "/dev/mapper/"):
		if resolved, err := filepath.EvalSymlinks(m.source); err == nil {
			return resolved
		}
	case m.source == "/dev/root":
		if target, err := os.Readlink(filepath.Join(root, "sys/dev/block", m.device)); err == nil {
			return "/dev/" + filepath.Base(target)
		}
	}
	return m.source
}

// sizes asks a file system how full it is.
func sizes(path string) (Disk, error) {
	var s unix.Statfs_t
	err := unix.Statfs(path, &s)
	for errors.Is(err, unix.EINTR) { // as of FUSE
		err = unix.Statfs(path, &s)
	}
	return sizesOf(s), err
}

// sizesOf reads what statfs(2) returns: its blocks are of the fragment size. The block size, which is the best one for reads,
// may be another, as with FUSE and virtiofs.
func sizesOf(s unix.Statfs_t) Disk {
	unit := uint64(s.Frsize)
	if unit == 0 {
		unit = uint64(s.Bsize)
	}
	d := Disk{Total: s.Blocks * unit, Used: (s.Blocks - min(s.Bfree, s.Blocks)) * unit, Available: s.Bavail * unit, Inodes: s.Files}
	d.InodesUsed = s.Files - min(s.Ffree, s.Files)
	return d
}
