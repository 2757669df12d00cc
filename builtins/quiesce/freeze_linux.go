package quiesce

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// quiesce freezes file systems, all or none.
func (r *Room) quiesce(
	ctx context.Context, call *builtins.Call, in *pb.QuiesceFilesystemsRequest,
) (*pb.QuiesceFilesystemsResponse, error) {
	if err := r.served(); err != nil {
		return nil, err
	}
	timeout := defaultTimeout
	if in.TimeoutSeconds > 0 {
		timeout = time.Duration(in.TimeoutSeconds) * time.Second
	}
	if timeout > maxTimeout {
		return nil, fault.Invalid("timeout_seconds is %d, and may be %d", in.TimeoutSeconds, int(maxTimeout.Seconds()))
	}
	hooks, err := r.hooksFor(in)
	if err != nil {
		return nil, err
	}
	ctx, stop := inTime(ctx, call)
	defer stop()
	f, ctx, err := r.newSet(ctx, call)
	if err != nil {
		return nil, err
	}
	defer f.cancel(nil)
	reply := &pb.QuiesceFilesystemsResponse{}
	if err := r.freezeSet(ctx, f, in, hooks, timeout, reply); err != nil {
		return nil, &failure{r.giveUp(f, err), r.describe(f, reply)}
	}
	reply = r.describe(f, reply)
	reply.Success, reply.QuiesceToken, reply.AutoThawAt = true, f.token, timestamppb.New(onClock(f.until))
	return reply, nil
}

// inTime bounds a request by what its sender waits for the reply: what is frozen after that, nobody would know of.
func inTime(ctx context.Context, call *builtins.Call) (context.Context, context.CancelFunc) {
	late := fault.Wrapf(context.DeadlineExceeded, "it took longer than the sender of the request waits")
	if deadline, ok := ctx.Deadline(); ok {
		return context.WithDeadlineCause(ctx, deadline.Add(-replySpare), late)
	}
	from := call.Received
	if from.IsZero() {
		from = time.Now()
	}
	return context.WithDeadlineCause(ctx, from.Add(replyTime), late)
}

// newSet begins a set. Its cancel ends the ctx that is returned.
func (r *Room) newSet(ctx context.Context, call *builtins.Call) (*set, context.Context, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	id := fmt.Sprintf("%x", token())
	f := &set{
		token: fmt.Sprintf("%s-%s-%s-%s-%s", id[:8], id[8:12], id[12:16], id[16:20], id[20:]), port: call.Port, caller: call,
		cancel: cancel, gone: make(chan struct{}), done: make(chan struct{}),
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		cancel(nil)
		return nil, nil, builtins.ErrStopping
	}
	r.sets[f.token] = f
	return f, ctx, nil
}

// token returns the bytes of a random UUID (RFC 9562, version 4).
func token() [16]byte {
	var b [16]byte
	rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return b
}

// freezeSet runs the hooks and freezes. What it has begun when it fails is for giveUp.
func (r *Room) freezeSet(
	ctx context.Context, f *set, in *pb.QuiesceFilesystemsRequest, hooks []hook, timeout time.Duration,
	reply *pb.QuiesceFilesystemsResponse,
) error {
	sorted, err := r.find(ctx, in.MountPoints, reply)
	if err != nil {
		return err
	}
	adopted := false
	defer func() {
		if !adopted {
			closeAll(sorted)
		}
	}()
	if err := r.freezeHooks(ctx, f, in, hooks); err != nil {
		return err
	}
	if err := r.syncAll(ctx, sorted[1:]); err != nil { // the first writes everything by itself, before anything is frozen
		return err
	}
	r.mu.Lock()
	f.systems, adopted = sorted, true
	hold := f.held()
	r.mu.Unlock()
	running, err := r.config.Frozen.Hold(hold)
	if err == nil {
		err = awaitChanges(ctx, running)
	}
	if err != nil {
		return err
	}
	r.mu.Lock()
	f.until = time.Now().Add(timeout)
	f.timer = time.AfterFunc(timeout, func() { r.end(f, fmt.Sprintf("its time of %v was up", timeout)) }) // before anything is frozen
	r.mu.Unlock()
	for _, s := range sorted {
		err := r.freezeOne(ctx, f, s)
		if err != nil && !(errors.Is(err, errors.ErrUnsupported) && len(in.MountPoints) == 0) { // of all, what cannot be frozen is reported
			return fault.On(s.Point, err)
		}
	}
	if len(f.frozen(r)) == 0 && context.Cause(ctx) == nil {
		return fault.Wrapf(fs.ErrNotExist, "there is no file system that can be frozen")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	err = context.Cause(ctx) // its time may have been up, or a thaw may have come
	f.ready = err == nil
	return err
}

// find finds the file systems that a request means, opened, in the order in which they are frozen. Those that it leaves out are
// told in the reply.
func (r *Room) find(ctx context.Context, points []string, reply *pb.QuiesceFilesystemsResponse) (sorted []*system, err error) {
	found, err := r.look(ctx, points, true)
	if err != nil {
		return nil, err
	}
	for _, l := range slices.Concat(found.others, found.failed) {
		reply.Frozen = append(reply.Frozen, l.described())
	}
	switch {
	case len(points) > 0 && len(found.others) > 0:
		err = fault.On(found.others[0].mount.Point, found.others[0].why)
	case len(found.failed) > 0:
		err = fault.On(found.failed[0].mount.Point, found.failed[0].why)
	case len(found.systems) == 0:
		err = fault.Wrapf(fs.ErrNotExist, "there is no file system that can be frozen")
	default:
		err = found.refused
	}
	if err != nil {
		closeAll(found.systems)
		return nil, err
	}
	return found.systems, nil
}

func closeAll(systems []*system) {
	for _, s := range systems {
		s.target.Close()
	}
}

// syncAll writes what waits to be written, all file systems at once, so that what is frozen before them waits less. One that
// hangs is an error, and left behind.
func (r *Room) syncAll(ctx context.Context, systems []*system) error {
	done := make([]chan struct{}, len(systems))
	for i, s := range systems {
		done[i] = make(chan struct{})
		go func() {
			defer close(done[i])
			_ = s.target.Sync() // the freeze finds out as well
		}()
	}
	late := time.NewTimer(r.freezeTime)
	defer late.Stop()
	for i, s := range systems {
		select {
		case <-done[i]:
		case <-ctx.Done():
			return fault.On(s.Point, context.Cause(ctx))
		case <-late.C:
			return fault.On(s.Point, fault.Wrapf(context.DeadlineExceeded, "what it has to write is not written within %v", r.freezeTime))
		}
	}
	return context.Cause(ctx)
}

// awaitChanges waits for what would else be half done in the snapshot.
func awaitChanges(ctx context.Context, running []<-chan struct{}) error {
	late := time.NewTimer(changeTime)
	defer late.Stop()
	for _, done := range running {
		select {
		case <-done:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-late.C:
			return fault.Wrapf(fault.ErrBusy, "busy: a change of the guest is under way and has not ended within %v", changeTime)
		}
	}
	return nil
}

// freezeOne freezes one file system, by a goroutine that nothing ends but the freeze. If that comes after its time the
// goroutine thaws again.
func (r *Room) freezeOne(ctx context.Context, f *set, s *system) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	r.mu.Lock()
	s.phase = freezing
	r.mu.Unlock()
	done := make(chan error, 1)
	go func() {
		err := s.target.Freeze()
		r.mu.Lock()
		late := s.abandoned
		switch {
		case err != nil:
			s.phase = thawed
		case !late:
			s.phase = frozen
			if f.since.IsZero() {
				f.since = time.Now()
			}
		}
		r.mu.Unlock()
		if err == nil && !late {
			done <- nil
			return
		}
		if err == nil {
			_, _ = s.target.Thaw()
			r.mu.Lock()
			s.phase = thawed
			r.mu.Unlock()
		}
		s.target.Close()
		r.settle(f)
		done <- err
	}()
	timer := time.NewTimer(r.freezeTime)
	defer timer.Stop()
	err := fault.Wrapf(context.DeadlineExceeded, "it has not frozen within %v", r.freezeTime)
	select {
	case err = <-done:
		switch {
		case errors.Is(err, unix.EBUSY):
			err = fault.Wrapf(fault.ErrBusy, "it is frozen already, by another program")
		case errors.Is(err, unix.EOPNOTSUPP):
			err = fault.Unsupported("%s cannot be frozen: its driver cannot", s.kind)
		}
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-timer.C:
	}
	if err == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s.abandoned, s.why = s.phase == freezing, err.Error()
	return err
}

// giveUp thaws what a request has frozen that failed, and returns why.
func (r *Room) giveUp(f *set, why error) error {
	r.mu.Lock()
	f.failed = true
	for _, s := range f.systems {
		if s.phase == idle {
			s.phase = thawed
			s.target.Close()
		}
	}
	r.mu.Unlock()
	r.thawSystems(f.frozen(r), thawTime)
	r.settle(f)
	late := time.NewTimer(thawTime)
	defer late.Stop()
	select {
	case <-f.done:
		return why
	case <-late.C:
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if i := slices.IndexFunc(f.systems, func(s *system) bool { return s.phase != thawed }); i >= 0 {
		return fmt.Errorf("%w; %s is thawed as soon as its freeze has ended", why, f.systems[i].Point)
	}
	return why
}

// describe adds to a reply what became of each file system and each hook.
func (r *Room) describe(f *set, reply *pb.QuiesceFilesystemsResponse) *pb.QuiesceFilesystemsResponse {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range f.systems {
		reply.Frozen = append(reply.Frozen, s.described())
	}
	slices.SortStableFunc(reply.Frozen, func(a, b *pb.FrozenFilesystem) int {
		switch {
		case a.Frozen && !b.Frozen:
			return -1
		case b.Frozen && !a.Frozen:
			return 1
		}
		return 0
	})
	reply.Hooks = copyOf(f.told)
	return reply
}
