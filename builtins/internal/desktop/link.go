package desktop

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins/internal/desktop/helper"
	"github.com/quantix-kvm/guest-agent/builtins/internal/desktop/ipc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// maxEvents are the events in a second that a helper may send. One that sends more is read more slowly.
const maxEvents = 100

// process is a helper that runs.
type process struct {
	channel interface {
		io.ReadWriteCloser
		SetWriteDeadline(time.Time) error
	}
	pid  int
	done <-chan struct{} // closed at its end
	how  func() string   // how it ended
	kill func()
}

// link is the channel to one helper.
type link struct {
	process *process
	session *Session
	started time.Time
	events  map[string]event
	silent  atomic.Bool   // it was killed since it did not answer
	gone    chan struct{} // closed when no reply will come any more

	writing sync.Mutex

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan *pb.SessionFrame
	err     error // why gone is closed
}

func newLink(p *process, session *Session, events map[string]event) *link {
	return &link{
		process: p, session: session, started: time.Now(), events: events,
		gone: make(chan struct{}), waiting: map[uint64]chan *pb.SessionFrame{},
	}
}

// close closes the channel, which ends the helper. The calls that wait return err.
func (l *link) close(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return
	}
	l.err = err
	close(l.gone)
	l.process.channel.Close()
}

func (l *link) alive() bool {
	select {
	case <-l.gone:
		return false
	case <-l.process.done:
		return false
	default:
		return true
	}
}

// hangs ends a helper that does not answer.
func (l *link) hangs() {
	l.silent.Store(true)
	l.process.kill()
}

// call sends a request and waits for its reply.
func (l *link) call(ctx context.Context, frame *pb.SessionFrame, limit time.Duration) (*pb.SessionFrame, error) {
	reply := make(chan *pb.SessionFrame, 1)
	l.mu.Lock()
	l.next++
	frame.Id, frame.TimeoutMs = l.next, uint32(limit.Milliseconds())
	l.waiting[frame.Id] = reply
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.waiting, frame.Id)
		l.mu.Unlock()
	}()
	timer := time.NewTimer(limit + grace)
	defer timer.Stop()
	if err := l.write(frame, limit+grace); err != nil {
		return nil, err
	}
	select {
	case answer := <-reply:
		if answer.Error != nil {
			return nil, fault.FromDetail(answer.Error)
		}
		return answer, nil
	case <-timer.C:
		l.hangs()
		return nil, fault.Wrapf(context.DeadlineExceeded, "the session helper does not answer (waited for %v)", limit)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-l.gone:
		return nil, l.err
	}
}

func (l *link) write(frame *pb.SessionFrame, limit time.Duration) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	err := l.process.channel.SetWriteDeadline(time.Now().Add(limit))
	if err == nil {
		err = ipc.Write(l.process.channel, frame)
	}
	if err == nil || errors.Is(err, fault.ErrTooLarge) {
		return err
	}
	l.hangs() // half a frame may have been written
	select {
	case <-l.gone:
		return l.err
	default:
		return fault.Wrapf(errEnded, "the session helper reads nothing: %v", err)
	}
}

// tell sends a request whose reply does not matter.
func (l *link) tell(request proto.Message) {
	if frame, err := ipc.Pack(0, request); err == nil {
		l.mu.Lock()
		l.next++
		frame.Id = l.next
		l.mu.Unlock()
		l.write(frame, helper.Timeout) //nolint:errcheck // the next helper is told again
	}
}

// read takes what the helper says until the channel ends.
func (l *link) read() {
	var err error
	for err == nil {
		err = l.readSecond()
	}
	select {
	case <-l.gone: // by close
	case <-l.process.done:
	case <-time.After(grace): // it closed the channel, or says what it must not, and runs on
		l.hangs()
	}
}

// readSecond takes the frames until a second is over or maxEvents events have come: then it waits for the end of the second.
func (l *link) readSecond() error {
	end := time.Now().Add(time.Second)
	for events := 0; events < maxEvents; {
		frame, err := ipc.Read(l.process.channel)
		if err != nil {
			return err
		}
		if time.Now().After(end) {
			end, events = time.Now().Add(time.Second), 0
		}
		if frame.Id == 0 {
			events++
			if err := l.event(frame); err != nil {
				return err
			}
			continue
		}
		l.mu.Lock()
		reply := l.waiting[frame.Id]
		delete(l.waiting, frame.Id)
		l.mu.Unlock()
		if reply != nil { // else nobody waits any more
			reply <- frame
		}
	}
	select {
	case <-time.After(time.Until(end)):
	case <-l.gone:
	}
	return nil
}

func (l *link) event(frame *pb.SessionFrame) error {
	e, known := l.events[frame.Type]
	if !known {
		return nil
	}
	message := e.prototype.ProtoReflect().New().Interface()
	if err := ipc.Decode(frame.Body, message); err != nil {
		return err
	}
	e.f(l.session, message)
	return nil
}
