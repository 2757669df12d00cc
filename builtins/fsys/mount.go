package fsys

import (
	"context"
	"fmt"
	"strconv"
	"strings"
)

// Mount is a mounted file system, by what it is known by after another boot.
type Mount struct {
	// Point is the resolved path where it is mounted, escaped; "/" for the one that the root directory is on.
	Point string
	// Dir is the directory of the file system that is seen there, escaped: a bind mount and a subvolume have one.
	Dir string
	// Type and Source are what the kernel calls the file system, escaped.
	Type, Source string
	// ID identifies the file system; empty where nothing but Source does.
	ID string
	// Volatile: what is on the file system ends with it, at the latest with the boot.
	Volatile bool
	// ReadOnly: the mount is, or the file system.
	ReadOnly bool
	// Sized: the file system says how large it is, and so whether it is full. Those of the kernel's settings do not.
	Sized bool
	// Free is the space that root can use, in bytes, and FreeInodes how many objects can be made; 0, too, where that is not said.
	Free, FreeInodes uint64
	// Device names the file system while it is mounted, and Number the mount. Both are used again.
	Device string
	Number uint64
}

// Same reports whether the same directory of the same file system is mounted at the same place.
func (m Mount) Same(now Mount) bool {
	if m.Point != now.Point || m.Dir != now.Dir || m.Type != now.Type {
		return false
	}
	if m.ID != "" {
		return m.ID == now.ID
	}
	return m.Source == now.Source
}

// String names the mount for people, as mount(8) does.
func (m Mount) String() string {
	id := ""
	if m.ID != "" {
		id = " " + m.ID
	}
	return fmt.Sprintf("%s (%s on %s%s)", m.Point, m.Type, m.Source, id)
}

// MountCache looks up the mounts of entries, each mount once. The zero value works. It is for a moment in which nobody
// mounts: the numbers of mounts are used again.
type MountCache struct{ known map[uint64]Mount }

// Of returns the mount of the directory that an entry is in, and that of what is there if it is another one. On Windows
// there are none. It is unsupported on an overlay.
func (c *MountCache) Of(a *At) ([]Mount, error) {
	var list []Mount
	for _, name := range []string{".", a.Name} {
		number, err := a.dir.mountNumber(name)
		if err != nil {
			return nil, err
		}
		if number == 0 || len(list) > 0 && list[0].Number == number {
			continue
		}
		m, ok := c.known[number]
		if !ok {
			if m, err = a.dir.mount(name); err != nil {
				return nil, err
			}
			if c.known == nil {
				c.known = map[uint64]Mount{}
			}
			c.known[number] = m
		}
		list = append(list, m)
	}
	return list, nil
}

// Automount returns the autofs mount that a path leads to, where the file system that belongs there is not mounted. To go
// further on the path mounts it, and takes as long as that does. waits is false where there is none, on Windows and on an
// overlay.
func (r *Root) Automount(path string) (m Mount, waits bool, err error) {
	real, raw, err := r.real(path)
	if real == nil || err != nil {
		return Mount{}, false, err
	}
	return real.automount(raw)
}

// TriggerAutomount uses a directory, so that what is mounted there at its first use is mounted. It returns when that is done,
// or has failed, and nothing else ends it.
func (r *Root) TriggerAutomount(path string) error {
	real, raw, err := r.real(path)
	if real == nil || err != nil {
		return err
	}
	return real.trigger(raw)
}

// real returns the file system itself, nil where this is an overlay, and the bytes of a path.
func (r *Root) real(path string) (*realRoot, string, error) {
	real, _ := r.fs.(*realRoot)
	raw, err := checkPath(path)
	return real, raw, err
}

// DetachUserMounts detaches the file systems that other users than root and the agent's mounted by FUSE on the way to resolved
// paths, and returns where these were. Nobody else can enter such a mount, root included.
func (r *Root) DetachUserMounts(paths []string) (points []string, err error) {
	real, _, err := r.real("/")
	if real == nil || err != nil {
		return nil, err
	}
	return real.detachUserMounts(paths)
}

// IsMounted reports whether the file system with this Mount.Device is mounted anywhere.
func IsMounted(device string) (bool, error) { return isMounted(device) }

// WatchMounts sends a value after file systems were mounted or unmounted, until ctx ends. On Windows it never does.
func WatchMounts(ctx context.Context) (<-chan struct{}, error) { return watchMounts(ctx) }

// MountFields splits a line of mountinfo, fstab or /proc/swaps at its blanks. All other characters are parts of names, those too
// that Unicode calls blanks: the kernel does not escape them.
func MountFields(line string) []string {
	return strings.FieldsFunc(strings.TrimRight(line, "\r\n"), func(c rune) bool { return c == ' ' || c == '\t' })
}

// UnescapeMount decodes the octal escapes that mountinfo and fstab have for blanks.
func UnescapeMount(text string) string {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] == '\\' && i+3 < len(text) {
			if code, err := strconv.ParseUint(text[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(code))
				i += 3
				continue
			}
		}
		b.WriteByte(text[i])
	}
	return b.String()
}
