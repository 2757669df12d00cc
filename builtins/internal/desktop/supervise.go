package desktop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// The supervision of the helper.
const (
	grace       = 500 * time.Millisecond // beyond its limit, within which a helper says that a request took too long
	firstPause  = 200 * time.Millisecond // before a helper that ended is started again; doubled each time
	longestWait = 30 * time.Second       // the longest such pause
	callerWaits = time.Second            // a request waits for a pause that is no longer
	healthy     = 10 * time.Second       // a helper that ran for that long did not fail at its start
	settle      = 20 * time.Millisecond  // changes of sessions come in bursts
	retryFirst  = time.Second            // while a session has no helper though one is needed
	retryLast   = 5 * time.Second
	fresh       = 2 * time.Second        // what Available returns is no older
	glance      = 300 * time.Millisecond // and it takes no longer, even where logind does not answer
)

// want starts follow.
func (d *Desktop) want() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.following || d.closed || !d.config.Live {
		return
	}
	d.following = true
	d.work.Go(d.follow)
}

// wake has follow look again.
func (d *Desktop) wake() {
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

// wakeTwice has follow look now, and once more when logind has seen as well that a session has ended.
func (d *Desktop) wakeTwice() {
	d.wake()
	time.AfterFunc(time.Second, d.wake)
}

// follow keeps a helper in the session in front for as long as one is needed.
func (d *Desktop) follow() {
	retry := time.NewTimer(time.Hour)
	defer retry.Stop()
	pause := retryFirst
	for {
		select {
		case <-d.ctx.Done():
			return
		case <-d.changed:
			pause = retryFirst
			select {
			case <-time.After(settle):
			case <-d.ctx.Done():
				return
			}
		case <-retry.C:
			pause = min(2*pause, retryLast)
		}
		retry.Stop()
		d.mu.Lock()
		keep := len(d.kept) > 0
		needed := d.needed || keep
		d.mu.Unlock()
		if !needed {
			continue
		}
		_, err := d.ensure(d.ctx, nil)
		if err != nil && (keep || !errors.Is(err, errors.ErrUnsupported)) && !d.finder.tells(err) {
			retry.Reset(max(pause, time.Until(d.mayStart())))
		}
	}
}

func (d *Desktop) mayStart() time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.notBefore
}

var errStopping = fault.Wrapf(context.Canceled, "the agent is stopping")

// ensure returns the helper in the session in front.
func (d *Desktop) ensure(ctx context.Context, allow func(*Session) error) (*link, error) {
	if !d.config.Live {
		return nil, fault.Unsupported("there is no desktop in a tree that is not booted")
	}
	select {
	case <-d.turn:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-d.ctx.Done():
		return nil, errStopping
	}
	defer func() { d.turn <- struct{}{} }()
	if d.ctx.Err() != nil {
		return nil, errStopping
	}
	session, err := d.finder.front(ctx)
	if err != nil {
		if errors.Is(err, errors.ErrUnsupported) { // and not because nobody could be asked
			d.end()
			d.note(nil, err)
		}
		return nil, err
	}
	if allow != nil {
		if err := allow(session); err != nil {
			return nil, err
		}
	}
	d.mu.Lock()
	l := d.link
	d.mu.Unlock()
	if l != nil && l.alive() && l.session.same(session) {
		session.Display = l.session.Display
		d.note(session, nil)
		return l, nil
	}
	d.end()
	if err := d.pause(ctx); err != nil {
		d.note(session, err)
		return nil, err
	}
	l, err = d.start(session)
	d.note(session, err)
	return l, err
}

// note keeps what was found, for Status.
func (d *Desktop) note(session *Session, reason error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.session, d.reason = session, reason
	d.needed = session != nil
}

// pause waits until a helper may be started, or says that this takes too long.
func (d *Desktop) pause(ctx context.Context) error {
	wait := time.Until(d.mayStart())
	switch {
	case wait <= 0:
		return nil
	case wait > callerWaits:
		return fault.Wrapf(fault.ErrBusy, "the session helper ends again and again; it is started again in %v",
			wait.Round(time.Second))
	}
	select {
	case <-time.After(wait):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// start starts a helper in a session.
func (d *Desktop) start(session *Session) (*link, error) {
	env, err := d.finder.environment(session)
	if err != nil {
		return nil, err
	}
	process, err := d.finder.startHelper(d.config.Args, env, session)
	if err != nil {
		d.failed()
		return nil, fault.On("session helper", err)
	}
	l := newLink(process, session, d.events)
	d.mu.Lock()
	d.link = l
	d.starts++
	kept := make([]proto.Message, 0, len(d.kept))
	for _, request := range d.kept {
		kept = append(kept, request)
	}
	d.mu.Unlock()
	for _, request := range kept {
		l.tell(request)
	}
	if unwatch, err := watchEnd(session.leader, d.wakeTwice); err == nil { // else logind reports it, later
		d.work.Go(func() { <-l.gone; unwatch() })
	}
	d.work.Go(func() { l.read() })
	d.work.Go(func() { d.watch(l) })
	return l, nil
}

// failed lengthens the time until the next start.
func (d *Desktop) failed() {
	d.mu.Lock()
	defer d.mu.Unlock()
	pause := min(firstPause<<min(d.failures, 10), longestWait)
	d.failures++
	d.notBefore = time.Now().Add(pause)
}

// watch waits for the end of a helper, and reports it unless it was to end.
func (d *Desktop) watch(l *link) {
	<-l.process.done
	l.close(fault.Wrapf(errEnded, "the session helper ended (%s)", l.how()))
	d.mu.Lock()
	unexpected := d.link == l
	if unexpected {
		d.link = nil
		if time.Since(l.started) > healthy {
			d.failures = 0
		}
	}
	d.mu.Unlock()
	if !unexpected {
		return
	}
	d.failed()
	d.config.Warn(fmt.Sprintf(
		"the helper in the %v ended: %s; what it had put on the clipboard is gone; it is started again", l.session, l.how()))
	d.wake()
}

// end ends the helper that runs.
func (d *Desktop) end() {
	d.mu.Lock()
	l := d.link
	d.link = nil
	d.mu.Unlock()
	if l == nil {
		return
	}
	l.close(fault.Wrapf(errEnded, "the session has ended, or another one is in front"))
	select {
	case <-l.process.done:
	case <-time.After(grace):
		l.process.kill()
		<-l.process.done
	}
}

// errEnded is the cause of what a helper that ended leaves undone. It is an os.ErrProcessDone, and busy: the same request may
// succeed with the next helper.
var errEnded = fmt.Errorf("%w: %w", fault.ErrBusy, os.ErrProcessDone)
