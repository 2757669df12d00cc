package quiesce

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/freeze"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// left is a file system that cannot be frozen, and why.
type left struct {
	mount freeze.Mount
	why   error
}

// choose finds the file systems at mount points, each once; without points all that can be written to. mounts are all of the
// guest, and types those that are on a block device. What was asked for and cannot be frozen, or holds data and cannot, is
// told.
func choose(mounts []freeze.Mount, types map[string]bool, points []string) (systems []*system, others []left) {
	byDevice := map[string]*system{}
	for i, m := range mounts {
		if m.ReadOnly || !types[m.Type] {
			continue
		}
		if slices.ContainsFunc(mounts[i+1:], func(later freeze.Mount) bool { return fsys.Within(m.Point, later.Point) }) {
			continue // it is hidden
		}
		s := byDevice[m.Device]
		if s == nil {
			s = &system{kind: m.Type, source: m.Source}
			s.Device = m.Device
			byDevice[m.Device] = s
			systems = append(systems, s)
		}
		s.mounts = append(s.mounts, m)
	}
	for _, s := range systems {
		slices.SortStableFunc(s.mounts, func(a, b freeze.Mount) int { return len(a.Point) - len(b.Point) })
		s.use(s.mounts[0])
	}
	if len(points) == 0 {
		for _, m := range mounts {
			if _, ok := byDevice[m.Device]; !ok && holdsData(m.Type) && !m.ReadOnly {
				others = append(others, left{m, cannot(m, types)})
			}
		}
		return systems, others
	}
	var asked []*system
	for _, point := range points {
		point = filepath.Clean(point)
		i := slices.IndexFunc(systems, func(s *system) bool {
			return slices.ContainsFunc(s.mounts, func(m freeze.Mount) bool { return m.Point == point })
		})
		if i < 0 {
			others = append(others, notChosen(mounts, types, point))
			continue
		}
		if s := systems[i]; !slices.Contains(asked, s) {
			at := slices.IndexFunc(s.mounts, func(m freeze.Mount) bool { return m.Point == point })
			s.use(s.mounts[at])
			asked = append(asked, s)
		}
	}
	return asked, others
}

// use names a file system by one of its mounts.
func (s *system) use(m freeze.Mount) {
	s.Point, s.Others = m.Point, nil
	for _, other := range s.mounts {
		if other.Point != m.Point && !slices.Contains(s.Others, other.Point) {
			s.Others = append(s.Others, other.Point)
		}
	}
}

// notChosen returns why what is at a mount point cannot be frozen.
func notChosen(mounts []freeze.Mount, types map[string]bool, point string) left {
	for _, m := range slices.Backward(mounts) {
		if m.Point == point {
			return left{m, cannot(m, types)}
		}
	}
	return left{freeze.Mount{Point: point}, fault.Wrapf(fs.ErrNotExist, "no file system is mounted there")}
}

// cannot returns why a mount cannot be frozen.
func cannot(m freeze.Mount, types map[string]bool) error {
	switch {
	case strings.HasPrefix(m.Type, "fuse"):
		return fault.Unsupported("%s cannot be frozen: it is kept by a program", m.Type)
	case !types[m.Type]:
		return fault.Unsupported("%s cannot be frozen: it is not on a disk of this guest", m.Type)
	case m.ReadOnly:
		return fault.Refuse("it is read-only, so that nothing is to be frozen")
	}
	return fault.Wrapf(fs.ErrNotExist, "another file system is mounted above it")
}

// holdsData says of a type that is on no block device whether it has files that outlive the guest's memory: these are reported
// where all is frozen. Others, such as proc, tmpfs and overlays of what is frozen itself, are not.
func holdsData(kind string) bool {
	switch kind {
	case "nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "afs", "lustre", "orangefs", "coda", "beegfs", "zfs", "vboxsf",
		"fuse", "fuseblk":
		return true
	case "fuse.lxcfs", "fuse.portal", "fuse.gvfsd-fuse":
		return false
	}
	return strings.HasPrefix(kind, "fuse.")
}

// found is what a look at the mounts has found.
type found struct {
	systems []*system // opened; all must be closed
	others  []left    // that cannot be frozen
	failed  []left    // that cannot be opened
	refused error     // why those that were found may not be frozen
}

// look finds the file systems at mount points and opens them; stacked says that they are put into the order in which they are
// frozen. A path on the way may lead over a server that does not answer: that is an error, and what is opened after
// that is closed.
func (r *Room) look(ctx context.Context, points []string, stacked bool) (*found, error) {
	mounts, below, err := freeze.Mounts()
	if err != nil {
		return nil, err
	}
	types, err := freeze.OnDisk()
	if err != nil {
		return nil, err
	}
	chosen, others := choose(mounts, types, points)
	result := &found{others: others}
	var at atomic.Pointer[string]
	at.Store(new(string)) // nothing yet
	done, gone := make(chan struct{}), make(chan struct{})
	defer close(gone)
	go func() {
		r.open(result, chosen, below, &at)
		if stacked {
			result.stack(stack{mounts, "/sys"}, &at)
			if program, err := os.Executable(); err == nil {
				stack{mounts, "/sys"}.markProgram(result.systems, below+program)
			}
		}
		select {
		case done <- struct{}{}:
		case <-gone:
			closeAll(result.systems)
		}
	}()
	late := time.NewTimer(r.freezeTime)
	defer late.Stop()
	select {
	case <-done:
		return result, nil
	case <-ctx.Done():
		return nil, fault.On(*at.Load(), context.Cause(ctx))
	case <-late.C:
		late := fault.Wrapf(context.DeadlineExceeded, "a path to it does not answer within %v", r.freezeTime)
		return nil, fault.On(*at.Load(), late)
	}
}

// stack puts the systems into the order in which they are frozen.
func (f *found) stack(s stack, at *atomic.Pointer[string]) {
	f.systems = s.order(f.systems, at)
	if on, err := s.swapOn(f.systems); err != nil {
		f.refused = fault.On(on.Point, err)
	}
}

// open opens each file system by one of its mounts; at is where it is.
func (r *Room) open(f *found, systems []*system, below string, at *atomic.Pointer[string]) {
	for _, s := range systems {
		at.Store(&s.Point)
		err := r.openOne(s, below)
		if err != nil {
			f.failed = append(f.failed, left{freeze.Mount{Device: s.Device, Point: s.Point, Type: s.kind, Source: s.source}, err})
			continue
		}
		f.systems = append(f.systems, s)
	}
}

// openOne opens a file system at the first of its mounts where it is seen: something may have been mounted above it since.
func (r *Room) openOne(s *system, below string) error {
	list := slices.Clone(s.mounts)
	slices.SortStableFunc(list, func(a, b freeze.Mount) int { // its own name goes first
		switch {
		case a.Point == s.Point && b.Point != s.Point:
			return -1
		case b.Point == s.Point && a.Point != s.Point:
			return 1
		}
		return 0
	})
	var last error
	for _, m := range list {
		path := below + m.Point
		t, err := r.openTarget(path)
		if err != nil {
			last = err
			continue
		}
		if id, err := t.Mount(); err != nil || id != m.ID {
			t.Close()
			last = fault.Wrapf(fault.ErrChanged, "something else is mounted there meanwhile")
			continue
		}
		s.target, s.Path = t, path
		s.use(m)
		return nil
	}
	return fmt.Errorf("cannot be opened: %w", last)
}
