package quiesce

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/freeze"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// stack knows which file systems lie in files of others: on a loop device, with what device mapper or md makes of that, also a
// swap device. The freeze of such a one writes into the file, so it has to come before that of the other, and its thaw after.
type stack struct {
	mounts []freeze.Mount
	sys    string // where sysfs is
}

// order sorts file systems so that what lies on another comes first; at is where it is.
func (s stack) order(systems []*system, at *atomic.Pointer[string]) []*system {
	lower := map[*system][]string{}
	for _, each := range systems {
		at.Store(&each.Point)
		lower[each] = s.below(each)
	}
	var sorted []*system
	seen := map[*system]bool{}
	var visit func(*system)
	visit = func(at *system) {
		if seen[at] {
			return
		}
		seen[at] = true
		for _, above := range systems {
			if slices.Contains(lower[above], at.Device) {
				visit(above)
			}
		}
		sorted = append(sorted, at)
	}
	for _, each := range systems {
		visit(each)
	}
	return sorted
}

// below returns the device numbers of the file systems that one lies on.
func (s stack) below(of *system) []string {
	devices := []string{of.Device}
	if major, _, _ := strings.Cut(of.Device, ":"); major == "0" { // as of btrfs, which may have several
		devices = s.members(of.source)
	}
	var found []string
	for _, device := range devices {
		s.walk(device, map[string]bool{}, &found)
	}
	return found
}

// members returns the block devices of a file system that has no device number of its own: the one that it was mounted by, and
// those that btrfs has beside it.
func (s stack) members(source string) []string {
	var at unix.Stat_t
	if unix.Stat(source, &at) != nil || at.Mode&unix.S_IFMT != unix.S_IFBLK {
		return nil
	}
	own := number(at.Rdev)
	sets, _ := filepath.Glob(filepath.Join(s.sys, "fs/btrfs/*/devices"))
	for _, set := range sets {
		entries, _ := os.ReadDir(set)
		var all []string
		for _, e := range entries {
			if text, err := freeze.ReadKernel(filepath.Join(set, e.Name(), "dev")); err == nil {
				all = append(all, strings.TrimSpace(text))
			}
		}
		if slices.Contains(all, own) {
			return all
		}
	}
	return []string{own}
}

func number(device uint64) string {
	return fmt.Sprintf("%d:%d", unix.Major(device), unix.Minor(device))
}

// walk goes down from a block device to the files that it is made of, and adds the file systems of those.
func (s stack) walk(device string, seen map[string]bool, found *[]string) {
	if seen[device] {
		return
	}
	seen[device] = true
	link := filepath.Join(s.sys, "dev/block", device)
	dir, err := os.Readlink(link)
	if err != nil {
		return
	}
	dir = filepath.Join(filepath.Dir(link), dir)
	if text, err := freeze.ReadKernel(filepath.Join(dir, "loop/backing_file")); err == nil {
		if of := s.holding(strings.TrimSuffix(text, "\n"), filepath.Base(dir)); of != "" {
			*found = append(*found, of)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		if text, err := freeze.ReadKernel(filepath.Join(filepath.Dir(dir), "dev")); err == nil {
			s.walk(strings.TrimSpace(text), seen, found)
		}
	}
	slaves, _ := os.ReadDir(filepath.Join(dir, "slaves"))
	for _, slave := range slaves {
		if text, err := freeze.ReadKernel(filepath.Join(dir, "slaves", slave.Name(), "dev")); err == nil {
			s.walk(strings.TrimSpace(text), seen, found)
		}
	}
}

// holding returns the file system that the file of a loop device is on: by the name of the file, or, where that was removed or
// is not seen here, by what the kernel says of it.
func (s stack) holding(file, loop string) string {
	if device := s.device(freeze.MountOf(file)); device != "" {
		return device
	}
	fd, err := unix.Open("/dev/"+loop, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	info, err := unix.IoctlLoopGetStatus64(fd)
	if err != nil {
		return ""
	}
	return number(info.Device)
}

// device returns the device number of a mount; empty: it is not known.
func (s stack) device(mount uint64) string {
	if i := slices.IndexFunc(s.mounts, func(m freeze.Mount) bool { return m.ID == mount }); i >= 0 {
		return s.mounts[i].Device
	}
	return ""
}

// markProgram says of each file system whether the agent's program is on it.
func (s stack) markProgram(systems []*system, program string) {
	device := s.device(freeze.MountOf(program))
	below := s.below(&system{System: freeze.System{Device: device}})
	for _, each := range systems {
		each.Program = device == "" || device == each.Device || slices.Contains(below, each.Device)
	}
}

// swapOn refuses a file system that carries a swap device by a loop device: what the kernel then swaps out waits for the thaw,
// and so may the agent. A swap file is written past its file system, and is no danger.
func (s stack) swapOn(systems []*system) (*system, error) {
	text, err := freeze.ReadKernel("/proc/swaps")
	if err != nil {
		return nil, nil // a kernel without swap
	}
	for line := range strings.Lines(text) {
		fields := fsys.MountFields(line)
		if len(fields) < 2 || fields[1] != "partition" {
			continue
		}
		var at unix.Stat_t
		if unix.Stat(fsys.UnescapeMount(fields[0]), &at) != nil {
			continue
		}
		var carriers []string
		s.walk(number(at.Rdev), map[string]bool{}, &carriers)
		for _, each := range systems {
			if slices.Contains(carriers, each.Device) {
				return each, fault.Refuse("the swap device %s is a file on it, and would hang with it", fields[0])
			}
		}
	}
	return nil, nil
}
