package exec

import (
	"cmp"
	"context"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// A file system whose server does not answer, of the network or in user space, keeps a thread that asks it where
// nothing can end that, not even SIGKILL. So a probe asks it before an operation does.

// answerTime is what a remote file system takes for an answer at most, else it counts as hung.
const answerTime = 2 * time.Second

// remotes are the file systems with a server.
type remotes struct {
	table mountTable

	mu    sync.Mutex
	probe *probe // waits for the next request; nil: none
	// hung are the mount points, and the paths that lead to one by a link, until the probe that waits there has its
	// answer.
	hung map[string]bool
}

// HasRemotes reports whether a file system is mounted that may hang.
func (r *Room) HasRemotes() bool { return len(r.remoteMounts()) > 0 }

func (r *Room) remoteMounts() []proc.Mount {
	if !r.guest.Live || !r.config.Commands.Reexec || r.guest.Answer != nil {
		return nil
	}
	return r.remotes.table.remote()
}

// CheckRemotes returns an error of cause fault.ErrBusy if a request would meet a remote file system that does not
// answer. It names the path and the mount.
func (r *Room) CheckRemotes(ctx context.Context, access builtins.Access) error {
	mounts := r.remoteMounts()
	if len(mounts) == 0 {
		return nil
	}
	paths := pathsToAsk(access, mounts)
	if len(paths) == 0 {
		return nil
	}
	s := &r.remotes
	s.mu.Lock()
	for _, path := range paths {
		if m := mountOf(path, mounts); s.hung[cmp.Or(m.Point, path)] {
			s.mu.Unlock()
			return hangs(path, m)
		}
	}
	p := s.probe
	s.probe = nil
	s.mu.Unlock()
	if p == nil || !p.reserve() {
		var err error
		if p, err = r.startProbe(); err != nil {
			return nil // as for want of memory: the operation has to find out
		}
	}
	waiting := p.ask(ctx, probeRequest{Paths: paths, Stat: true}, answerTime, time.Second)
	if len(waiting) == 0 {
		s.keep(p)
		return nil
	}
	first := -1
	points := make([]string, len(paths))
	s.mu.Lock()
	for i := range paths {
		if _, ok := waiting[i]; !ok {
			continue
		}
		if first < 0 {
			first = i
		}
		points[i] = cmp.Or(mountOf(paths[i], mounts).Point, paths[i])
		s.hung[points[i]] = true
	}
	s.mu.Unlock()
	go p.follow(points, waiting, func(point string) { s.mu.Lock(); defer s.mu.Unlock(); delete(s.hung, point) })
	return hangs(paths[first], mountOf(paths[first], mounts))
}

func hangs(path string, m proc.Mount) error {
	if m.Point == "" {
		return &fault.Error{Object: path, Err: fault.Wrapf(fault.ErrBusy, "the file system that it leads to does not answer")}
	}
	cause := fault.Wrapf(fault.ErrBusy, "the file system of type %s at %s does not answer", m.Type, m.Point)
	return &fault.Error{Object: path, Err: cause}
}

// keep leaves a probe to the next request.
func (s *remotes) keep(p *probe) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.probe != nil {
		s.probe.end()
	}
	p.rest()
	s.probe = p
}

// pathsToAsk returns the paths of a request, and the remote mounts below those that are taken as trees.
func pathsToAsk(access builtins.Access, mounts []proc.Mount) []string {
	trees := access.Trees
	for _, pattern := range access.Patterns {
		dir, _ := builtins.Static(pattern)
		trees = append(slices.Clip(trees), dir)
	}
	var paths []string
	wanted := slices.Concat(access.Reads, access.Writes, trees)
	for _, c := range access.Commands { // a start looks at the directory and for the program
		wanted = append(wanted, c.Dir)
		if len(c.Argv) > 0 {
			wanted = append(wanted, c.Argv[0])
		}
		for _, list := range c.Paths {
			wanted = append(wanted, filepath.SplitList(list)...)
		}
	}
	for _, path := range wanted {
		if fsys.IsAbs(path) && !strings.Contains(path, "\x00") {
			paths = append(paths, fsys.Clean(path))
		}
	}
	for _, tree := range trees {
		for _, m := range mounts {
			if fsys.IsAbs(tree) && fsys.Within(m.Point, fsys.Clean(tree)) {
				paths = append(paths, m.Point)
			}
		}
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

// mountOf returns the remote mount that a path is on by its name; the zero Mount if it leads there by a link only.
func mountOf(path string, mounts []proc.Mount) (best proc.Mount) {
	for _, m := range mounts {
		if len(m.Point) > len(best.Point) && fsys.Within(path, m.Point) {
			best = m
		}
	}
	return best
}
