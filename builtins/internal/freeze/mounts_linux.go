package freeze

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
)

// Mount is a line of mountinfo, see proc_pid_mountinfo(5).
type Mount struct {
	// ID is the mount's own.
	ID uint64
	// Device is the file system's device number, as "major:minor".
	Device string
	// Point is where it is mounted, Type the type of the file system, and Source what it is made of.
	Point, Type, Source string
	// ReadOnly says that the file system itself, whatever the mount, cannot be written to.
	ReadOnly bool
}

// ParseMounts reads the text of mountinfo. Lines that are not understood are left out.
func ParseMounts(text string) (list []Mount) {
	for line := range strings.Lines(text) {
		first, second, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		fields, more := fsys.MountFields(first), strings.Split(second, " ")
		if !ok || len(fields) < 6 || len(more) < 3 {
			continue
		}
		id, err := strconv.ParseUint(fields[0], 10, 64)
		if err != nil {
			continue
		}
		list = append(list, Mount{
			ID: id, Device: fields[2], Point: fsys.UnescapeMount(fields[4]), Type: more[0], Source: fsys.UnescapeMount(more[1]),
			ReadOnly: slices.Contains(strings.Split(more[2], ","), "ro"),
		})
	}
	return list
}

// Mounts returns what is mounted in the guest, those below first, and the directory of the agent's own file system that it is
// seen below: an agent whose unit has a mount namespace of its own sees bind mounts and read-only ones that the guest does not
// have.
func Mounts() (list []Mount, below string, err error) {
	proc := "/proc/self"
	own, ownErr := os.Readlink("/proc/self/ns/mnt")
	if first, err := os.Readlink("/proc/1/ns/mnt"); err == nil && ownErr == nil && first != own {
		proc, below = "/proc/1", "/proc/1/root"
	}
	text, err := ReadKernel(proc + "/mountinfo")
	if err != nil {
		return nil, "", err
	}
	return ParseMounts(text), below, nil
}

// ReadKernel returns the text of a file that the kernel makes as it is read, such as those of proc and sysfs. It reads it in
// few pieces: each one has the kernel make all that is before it again.
func ReadKernel(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	text := make([]byte, 0, 16<<10)
	for {
		n, err := unix.Read(fd, text[len(text):cap(text)])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return "", &os.PathError{Op: "read", Path: path, Err: err}
		case n == 0:
			return string(text), nil
		}
		text = slices.Grow(text[:len(text)+n], 8<<10)
	}
}

// MountOf returns the number of the mount that a path is on; 0: it is not known.
func MountOf(path string) uint64 {
	var x unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &x) != nil {
		return 0
	}
	return x.Mnt_id
}

// OnDisk returns the types of file systems that are on a block device, as far as the kernel has them. Those in user space are
// none.
func OnDisk() (map[string]bool, error) {
	text, err := ReadKernel("/proc/filesystems")
	if err != nil {
		return nil, err
	}
	types := map[string]bool{}
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) == 1 && !strings.HasPrefix(fields[0], "fuse") {
			types[fields[0]] = true
		}
	}
	return types, nil
}

// Freezable returns the mounts of file systems that may be frozen, without those that lie hidden below others: several may be
// of one.
func Freezable() (list []Mount, below string, err error) {
	all, below, err := Mounts()
	if err != nil {
		return nil, "", err
	}
	types, err := OnDisk()
	if err != nil {
		return nil, "", err
	}
	for i, m := range all {
		if !types[m.Type] {
			continue
		}
		if hidden := slices.ContainsFunc(all[i+1:], func(later Mount) bool { return fsys.Within(m.Point, later.Point) }); !hidden {
			list = append(list, m)
		}
	}
	return list, below, nil
}

const (
	maxThaws  = 8 // how often one file system is thawed: several may have frozen it
	thawsTime = 2 * time.Second
)

// thawEverything thaws every file system that can be frozen. What is not frozen stays as it is; what hangs is left behind.
func thawEverything() {
	mounts, below, err := Freezable()
	if err != nil {
		return
	}
	late := time.After(thawsTime)
	for _, m := range mounts {
		done := make(chan struct{})
		go func() {
			defer close(done)
			target, err := Open(below + m.Point)
			if err != nil {
				return
			}
			defer target.Close()
			for range maxThaws {
				if thawed, err := target.Thaw(); err != nil || !thawed {
					return
				}
			}
		}()
		select {
		case <-done:
		case <-late:
			late = time.After(0) // the others are tried all the same
		}
	}
}

// meeting reports whether paths are on what is held.
type meeting struct {
	holds  []Hold
	mounts []Mount
}

// newMeeting looks at what is mounted now.
func newMeeting(holds []Hold) meeting {
	mounts, _, _ := Mounts() // without them the points of the holds are known
	return meeting{holds, mounts}
}

// lookTime is how long a look at what a path leads to may take.
const lookTime = time.Second

// access returns where a request would meet a hold. Paths are judged by their name, and, where that leads elsewhere by a link,
// by what is there.
func (m meeting) access(access builtins.Access) (point string, met bool) {
	paths, trees := wanted(access)
	for _, path := range paths {
		if point, met := m.byName(path); met {
			return point, true
		}
	}
	for _, h := range m.holds {
		for _, system := range h.Systems {
			for _, point := range system.points() {
				if slices.ContainsFunc(trees, func(tree string) bool { return fsys.Within(point, tree) }) {
					return point, true
				}
			}
		}
	}
	type found struct {
		point string
		met   bool
	}
	result := make(chan found, 1)
	go func() {
		for _, path := range paths {
			if point, met := m.byLink(path); met {
				result <- found{point, true}
				return
			}
		}
		result <- found{}
	}()
	select {
	case f := <-result:
		return f.point, f.met
	case <-time.After(lookTime): // it leads to what does not answer, which is not held
		return "", false
	}
}

// of returns the mount point by which a device is held.
func (m meeting) of(device string) (point string, held bool) {
	for _, h := range m.holds {
		for _, system := range h.Systems {
			if system.Device == device {
				return system.Point, true
			}
		}
	}
	return "", false
}

// byName finds the mount that a path is on by its name.
func (m meeting) byName(path string) (point string, held bool) {
	best := Mount{}
	for _, mount := range m.mounts { // of two at one point the later one hides the other
		if len(mount.Point) >= len(best.Point) && fsys.Within(path, mount.Point) {
			best = mount
		}
	}
	return m.of(best.Device)
}

// byLink finds the mount that a path leads to, or the nearest directory above it that is there.
func (m meeting) byLink(path string) (point string, held bool) {
	for {
		var x unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &x)
		if err == nil {
			i := slices.IndexFunc(m.mounts, func(mount Mount) bool { return mount.ID == x.Mnt_id })
			if i < 0 {
				return "", false
			}
			return m.of(m.mounts[i].Device)
		}
		if up := filepath.Dir(path); up != path {
			path = up
			continue
		}
		return "", false
	}
}
