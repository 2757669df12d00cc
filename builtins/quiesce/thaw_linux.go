package quiesce

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/freeze"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// thaw thaws what a token, or anything on the caller's port, has frozen. It answers within a second whatever hangs.
func (r *Room) thaw(_ context.Context, call *builtins.Call, in *pb.ThawFilesystemsRequest) (*pb.ThawFilesystemsResponse, error) {
	if err := r.served(); err != nil {
		return nil, err
	}
	if dir := in.PostThawScriptDir; dir != "" && filepath.Clean(dir) != filepath.Clean(r.config.ThawHooks) {
		return nil, fault.On(dir, fault.Refuse("hooks are in %s alone", r.config.ThawHooks))
	}
	began := time.Now()
	sets, e, err := r.meant(call, in)
	if err != nil {
		return nil, err
	}
	t := &thawRequest{room: r, reply: &pb.ThawFilesystemsResponse{}, points: cleaned(in.MountPoints), began: began}
	if e != nil {
		return nil, t.tooEarly(e)
	}
	for _, f := range sets {
		r.mu.Lock()
		f.after = f.after || in.RunPostThawScripts
		r.mu.Unlock()
		t.set(f)
	}
	if in.QuiesceToken == "" {
		t.others()
	}
	return t.end()
}

// cleaned returns mount points without what does not change them.
func cleaned(points []string) (list []string) {
	for _, point := range points {
		list = append(list, filepath.Clean(point))
	}
	return list
}

// meant returns the sets that a request is about, or the one that was thawed early.
func (r *Room) meant(call *builtins.Call, in *pb.ThawFilesystemsRequest) (sets []*set, e *early, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if token := in.QuiesceToken; token != "" {
		if i := slices.IndexFunc(r.ended, func(e *early) bool { return e.token == token }); i >= 0 {
			r.ended[i].asked = true
			return nil, r.ended[i], nil
		}
		if i := slices.IndexFunc(r.late, func(f *set) bool { return f.token == token }); i >= 0 {
			return []*set{r.late[i]}, nil, nil
		}
		f := r.sets[token]
		if f == nil || f.failed || f.over() && !f.since.IsZero() {
			return nil, nil, fault.Wrapf(fs.ErrNotExist, "no freeze has the token %q; nothing was thawed", token)
		}
		return []*set{f}, nil, nil
	}
	for _, f := range r.sets {
		if call.MaySee(f.port) && !(f.over() && !f.since.IsZero()) {
			sets = append(sets, f)
		}
	}
	for _, f := range r.late { // nothing is frozen, since a thaw has ended meanwhile
		if len(sets) == 0 && call.MaySee(f.port) {
			return []*set{f}, nil, nil
		}
	}
	if len(sets) > 0 || len(in.MountPoints) > 0 {
		return sets, nil, nil
	}
	for _, e := range slices.Backward(r.ended) { // nothing is frozen, since it was thawed before
		if !e.asked && call.MaySee(e.port) {
			e.asked = true
			return nil, e, nil
		}
	}
	return nil, nil, nil
}

// thawRequest is one request to thaw on its way.
type thawRequest struct {
	room   *Room
	reply  *pb.ThawFilesystemsResponse
	points []string // empty: all
	began  time.Time
	since  time.Time // when the first of what is thawed was frozen
	faults []error
	found  map[string]bool // of points
}

// left is how much longer the request may take.
func (t *thawRequest) left() time.Duration {
	return max(thawTime-time.Since(t.began), time.Millisecond)
}

// wants reports whether a file system is to be thawed.
func (t *thawRequest) wants(s *system) bool {
	if len(t.points) == 0 {
		return true
	}
	for _, point := range append([]string{s.Point}, s.Others...) {
		if slices.Contains(t.points, point) {
			if t.found == nil {
				t.found = map[string]bool{}
			}
			t.found[point] = true
			return true
		}
	}
	return false
}

// set thaws what is meant of one set. One that is still being frozen is given up.
func (t *thawRequest) set(f *set) {
	r := t.room
	if t.interrupts(f) {
		t.awaitEnd(f)
		return
	}
	list, begun := t.split(f)
	r.mu.Lock()
	if since := f.since; len(list)+len(begun) > 0 && (t.since.IsZero() || since.Before(t.since)) {
		t.since = since
	}
	r.mu.Unlock()
	results := r.thawSystems(list, t.left())
	results = append(results, t.await(f, begun)...)
	var byOthers []string
	for _, done := range results {
		point := done.system.Point
		switch {
		case !done.ended:
			t.faults = append(t.faults, fault.On(point, fault.Wrapf(fault.ErrBusy, "its thaw has begun and has not ended yet")))
		case done.err != nil:
			t.faults = append(t.faults, fault.On(point, fault.Wrapf(done.err, "cannot be thawed: %v", done.err)))
		case !done.was:
			byOthers = append(byOthers, point)
		default:
			t.reply.ThawedMountPoints = append(t.reply.ThawedMountPoints, point)
		}
	}
	if len(byOthers) > 0 {
		t.reply.ThawedEarly = true
		t.faults = append(t.faults, fault.Wrapf(fault.ErrChanged, "thawed early: %s: another program did it", strings.Join(byOthers, ", ")))
	}
	r.owe(f, results)
	select {
	case <-f.gone:
		t.hooks(f)
	default: // something of it stays frozen
	}
}

// split returns what is to be thawed of a set, and what an earlier request has begun to thaw and was answered before the end of
// that.
func (t *thawRequest) split(f *set) (list, begun []*system) {
	t.room.mu.Lock()
	defer t.room.mu.Unlock()
	for _, s := range f.systems {
		switch {
		case s.phase == frozen && t.wants(s):
			list = append(list, s)
		case s.owed && t.wants(s):
			begun = append(begun, s)
		}
	}
	return list, begun
}

// await waits for thaws that an earlier request has begun.
func (t *thawRequest) await(f *set, begun []*system) (results []result) {
	if len(begun) == 0 {
		return nil
	}
	timer := time.NewTimer(t.left())
	defer timer.Stop()
	select {
	case <-f.gone:
	case <-timer.C:
	}
	t.room.mu.Lock()
	defer t.room.mu.Unlock()
	for _, s := range begun {
		results = append(results, s.result)
	}
	return results
}

// owe notes which thaws have not ended when a request for them is answered: their end is reported to who asks again.
func (r *Room) owe(f *set, results []result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, done := range results {
		done.system.owed = !done.ended
	}
	f.owed = slices.ContainsFunc(f.systems, func(s *system) bool { return s.owed })
	r.late = slices.DeleteFunc(r.late, func(has *set) bool { return has == f })
	if f.owed && f.over() { // it has ended meanwhile
		r.keepLate(f)
	}
}

// keepLate keeps a set whose end was not reported. The caller holds mu.
func (r *Room) keepLate(f *set) {
	r.late = append(r.late, f)
	r.late = r.late[max(0, len(r.late)-maxEnded):]
}

// interrupts ends a freeze that is under way, if it is and the request means it.
func (t *thawRequest) interrupts(f *set) bool {
	t.room.mu.Lock()
	defer t.room.mu.Unlock()
	if f.ready {
		return false
	}
	if len(t.points) == 0 || slices.ContainsFunc(f.systems, t.wants) {
		f.cancel(fault.Wrapf(context.Canceled, "a thaw came before everything was frozen"))
		return true
	}
	return false
}

// awaitEnd waits for the end of a freeze that was interrupted: what it froze already is thawed by the request that asked for
// it.
func (t *thawRequest) awaitEnd(f *set) {
	timer := time.NewTimer(t.left())
	defer timer.Stop()
	select {
	case <-f.gone:
	case <-timer.C:
	}
	r := t.room
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range f.systems {
		switch {
		case !t.wants(s):
		case s.phase == thawed:
			t.reply.ThawedMountPoints = append(t.reply.ThawedMountPoints, s.Point)
		default:
			why := fault.Wrapf(fault.ErrBusy, "its freeze has not ended, and is followed by a thaw when it does")
			t.faults = append(t.faults, fault.On(s.Point, why))
		}
	}
	t.faults = append(t.faults, fault.Wrapf(fault.ErrChanged, "thawed early: not everything was frozen yet"))
	t.reply.ThawedEarly = true
}

// hooks waits for the hooks of a set, as long as there is time.
func (t *thawRequest) hooks(f *set) {
	timer := time.NewTimer(t.left())
	defer timer.Stop()
	select {
	case <-f.done:
	case <-timer.C:
		t.reply.HooksRunning = true
	}
	r := t.room
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, told := range copyOf(f.told) {
		if told.Phase != phaseFreeze {
			t.reply.Hooks = append(t.reply.Hooks, told)
		}
	}
	if took := f.thawed.Sub(f.since); !f.thawed.IsZero() {
		t.reply.FrozenDurationMs = max(t.reply.FrozenDurationMs, uint64(took.Milliseconds()))
	}
}

// others thaws what no request has frozen: all that commands have, or what is named.
func (t *thawRequest) others() {
	points := t.room.config.Frozen.Watched()
	if len(t.points) > 0 {
		points = nil
		for _, point := range t.points {
			if !t.found[point] {
				points = append(points, point)
			}
		}
	}
	if len(points) == 0 {
		return
	}
	mounts, below, err := freeze.Freezable()
	if err != nil {
		t.faults = append(t.faults, err)
		return
	}
	for _, point := range points {
		if !slices.ContainsFunc(mounts, func(m freeze.Mount) bool { return m.Point == point }) {
			why := fault.Wrapf(fs.ErrNotExist, "no file system that can be frozen is mounted there")
			t.faults = append(t.faults, fault.On(point, why))
			continue
		}
		if err := t.other(below, point); err != nil {
			t.faults = append(t.faults, fault.On(point, err))
			continue
		}
		t.reply.ThawedMountPoints = append(t.reply.ThawedMountPoints, point)
	}
}

// other thaws one file system that no request has frozen.
func (t *thawRequest) other(below, point string) error {
	done := make(chan error, 1)
	go func() {
		target, err := t.room.openTarget(below + point)
		if err != nil {
			done <- err
			return
		}
		defer target.Close()
		was, err := target.Thaw()
		if err == nil && !was {
			err = fault.Wrapf(fs.ErrNotExist, "it is not frozen")
		}
		done <- err
	}()
	timer := time.NewTimer(t.left())
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		return fault.Wrapf(fault.ErrBusy, "its thaw has begun and has not ended yet")
	}
}

// tooEarly is the error for a set that was thawed before.
func (t *thawRequest) tooEarly(e *early) error {
	t.reply.ThawedEarly, t.reply.ThawedAt = true, timestamppb.New(onClock(e.at))
	t.reply.FrozenDurationMs = uint64(e.duration.Milliseconds())
	t.reply.ThawedMountPoints = nil
	return &failure{fault.Wrapf(fault.ErrChanged, "%s", e.text()), t.reply}
}

// end makes the reply.
func (t *thawRequest) end() (*pb.ThawFilesystemsResponse, error) {
	if t.reply.FrozenDurationMs == 0 && !t.since.IsZero() {
		t.reply.FrozenDurationMs = uint64(time.Since(t.since).Milliseconds())
	}
	slices.Sort(t.reply.ThawedMountPoints)
	if len(t.faults) == 0 && len(t.reply.ThawedMountPoints) == 0 {
		t.faults = append(t.faults, fault.Wrapf(fs.ErrNotExist, "nothing is frozen"))
	}
	for _, told := range t.reply.Hooks {
		if told.Error != "" {
			why := fault.Wrapf(fault.ErrOutput, "the file systems are thawed, but the hook failed: %s", told.Error)
			t.faults = append(t.faults, fault.On(told.Name, why))
		}
	}
	if len(t.faults) > 0 {
		return nil, &failure{errors.Join(t.faults...), t.reply}
	}
	t.reply.Success = true
	return t.reply, nil
}
