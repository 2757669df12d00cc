package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	wiretext "github.com/quantix-kvm/guest-agent/wire/text"
)

// mountLine is a line of mountinfo, see proc_pid_mountinfo(5).
type mountLine struct {
	number                   uint64
	dir, point, kind, source string
	options, super           []string
	layers                   int // how many file systems are mounted at the point, one above the other; set by mountedAt
}

// all are its options, each once: what is of the mount goes before what is of the file system.
func (m *mountLine) all() []string {
	list := slices.Clone(m.options)
	for _, option := range m.super {
		if option != "rw" && option != "seclabel" && !slices.Contains(list, option) {
			list = append(list, option)
		}
	}
	if slices.Contains(list, "ro") {
		list = slices.DeleteFunc(list, func(option string) bool { return option == "rw" })
	}
	return list
}

// readOnly reports whether nothing can be written by it.
func (m *mountLine) readOnly() bool {
	return slices.Contains(m.options, "ro") || slices.Contains(m.super, "ro")
}

// mountedAt returns what is mounted at a target of the running machine; nil: nothing, or what waits to be mounted at its first
// use. Below another root nothing is.
func (r *Room) mountedAt(target string) (*mountLine, error) {
	if !r.guest.Live {
		return nil, nil
	}
	var x unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, target, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &x)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, os.NewSyscallError("statx", err)
	}
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var top *mountLine
	layers := 0
	for line := range strings.Lines(string(data)) {
		m, ok := parseMountLine(line)
		if !ok || m.point != target || m.kind == autofs {
			continue
		}
		layers++
		if m.number == x.Mnt_id {
			top = m
		}
	}
	if top != nil {
		top.layers = layers
	}
	return top, nil
}

func parseMountLine(line string) (*mountLine, bool) {
	first, second, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
	fields, more := fsys.MountFields(first), strings.Split(second, " ")
	if !ok || len(fields) < 6 || len(more) < 3 {
		return nil, false
	}
	number, err := strconv.ParseUint(fields[0], 10, 64)
	return &mountLine{
		number: number, dir: fsys.UnescapeMount(fields[3]), point: fsys.UnescapeMount(fields[4]),
		options: strings.Split(fields[5], ","),
		kind:    more[0], source: fsys.UnescapeMount(more[1]), super: strings.Split(fsys.UnescapeMount(more[2]), ","),
	}, err == nil
}

// kind is what mountinfo calls the type of what an entry mounts; empty: that is not known.
func (e fstabEntry) kind() string {
	if e.fstype == "auto" || isBind(e.options) || e.fstype == "nfs" || hasDaemon(e.fstype) {
		return ""
	}
	return e.fstype
}

// isMounted returns why what is mounted is not what an entry says; nil: it is.
func (r *Room) isMounted(ctx context.Context, entry fstabEntry, have *mountLine) error {
	same, err := r.sameSource(ctx, entry, have)
	if err != nil {
		return err
	}
	if !same || !sameType(entry, have) {
		return fault.Refuse("%s (%s) is mounted there", wiretext.EscapePath(have.source), have.kind)
	}
	return sameFlags(entry, have)
}

func sameType(entry fstabEntry, have *mountLine) bool {
	return entry.fstype == "auto" || isBind(entry.options) || entry.fstype == have.kind ||
		entry.fstype == "nfs" && have.kind == "nfs4" || hasDaemon(entry.fstype) && strings.HasPrefix(have.kind, "fuse")
}

// sameSource reports whether what is mounted is of the source that an entry names.
func (r *Room) sameSource(ctx context.Context, entry fstabEntry, have *mountLine) (bool, error) {
	if isBind(entry.options) {
		source, err := os.Stat(entry.source)
		if err != nil {
			return false, nil
		}
		target, err := os.Stat(entry.target)
		return err == nil && os.SameFile(source, target), nil
	}
	if entry.source == have.source || strings.TrimSuffix(entry.source, "/") == have.source {
		return true, nil
	}
	if file := backingFile(have.source); file != "" {
		want, err := os.Stat(entry.source)
		is, also := os.Stat(file)
		if err == nil && also == nil && os.SameFile(want, is) {
			return true, nil
		}
	}
	device := entry.source
	if name, value, tagged := strings.Cut(device, "="); tagged && tags[name] != "" {
		device = filepath.Join(tags[name], escapeLink(value))
		if _, err := os.Stat(device); err != nil { // without udev
			result, err := r.guest.Run(ctx, guest.Command{Line: "findfs", Readonly: true},
				proc.Spec{Argv: []string{"findfs", entry.source}, Tied: true})
			if err != nil || result.Err() != nil {
				return false, nil // there is no such disk, or nobody knows
			}
			device = strings.TrimSpace(string(result.Stdout))
		}
	}
	return sameDisk(device, have.source), nil
}

// escapeLink is how udev writes a tag as the name of a link: all but letters, digits and some signs as \xNN.
func escapeLink(tag string) string {
	var b strings.Builder
	for i := range len(tag) {
		switch c := tag[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c >= 0x80, strings.IndexByte("#+-.:=@_", c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, `\x%02x`, c)
		}
	}
	return b.String()
}

// backingFile returns the file that a loop device is made of; empty: it is none.
func backingFile(device string) string {
	if !strings.HasPrefix(device, "/dev/loop") {
		return ""
	}
	text, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "loop/backing_file"))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(text), "\n")
}

func sameDisk(a, b string) bool {
	var one, other unix.Stat_t
	return unix.Stat(a, &one) == nil && unix.Stat(b, &other) == nil && one.Mode&unix.S_IFMT == unix.S_IFBLK &&
		other.Mode&unix.S_IFMT == unix.S_IFBLK && one.Rdev == other.Rdev
}

// sameFlags returns what of the options that protect is not as an entry says: mount(8) mounts a disk that cannot be written
// read-only, and succeeds.
func sameFlags(entry fstabEntry, have *mountLine) error {
	readOnly := false
	for option := range strings.SplitSeq(entry.options, ",") {
		switch option {
		case "ro":
			readOnly = true
		case "rw", "defaults":
			readOnly = false
		case "nosuid", "nodev", "noexec":
			if !slices.Contains(have.options, option) {
				return fault.Refuse("it is mounted without %s", option)
			}
		}
	}
	switch never := []string{"squashfs", "erofs", "iso9660", "udf", "cramfs"}; {
	case readOnly && !have.readOnly():
		return fault.Refuse("it is mounted so that it can be written")
	case !readOnly && have.readOnly() && !slices.Contains(never, have.kind):
		return fault.Refuse("it is mounted read-only")
	}
	return nil
}
