package desktop

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins/internal/desktop/helper"
	"github.com/quantix-kvm/guest-agent/builtins/internal/desktop/ipc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// What a helper may say that nobody waits for.
const (
	maxEvents    = 100     // in a second: events, and replies to calls that were given up. One that sends more is read more slowly
	maxUnasked   = 1 << 20 // their bytes in a second, beyond which the same holds
	maxGivenUp   = 256     // calls that were given up and are not answered yet. One that has more of them does not answer
	maxErrorText = 1 << 10 // bytes of an error's text, and of its details
)

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
	gone    chan struct{} // closed when no reply will come any more
	writing chan struct{} // holds a value while a frame is written

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan *pb.SessionFrame
	givenUp map[uint64]struct{} // the calls whose replies will come, and that nobody waits for
	killed  string              // why the agent killed the helper; empty: it did not
	err     error               // why gone is closed
}

func newLink(p *process, session *Session, events map[string]event) *link {
	return &link{
		process: p, session: session, started: time.Now(), events: events,
		gone: make(chan struct{}), writing: make(chan struct{}, 1),
		waiting: map[uint64]chan *pb.SessionFrame{}, givenUp: map[uint64]struct{}{},
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
func (l *link) hangs() { l.end("it did not answer, and was killed") }

// end kills the helper, and keeps why for the message about that.
func (l *link) end(why string) {
	l.mu.Lock()
	if l.killed == "" {
		l.killed = why
	}
	l.mu.Unlock()
	l.process.kill()
}

// how says how the helper ended, once it has.
func (l *link) how() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.killed != "" {
		return l.killed
	}
	return l.process.how()
}

// call sends a request and waits for its reply.
func (l *link) call(ctx context.Context, frame *pb.SessionFrame, limit time.Duration) (*pb.SessionFrame, error) {
	reply := make(chan *pb.SessionFrame, 1)
	deadline := time.Now().Add(limit + grace)
	l.mu.Lock()
	l.next++
	frame.Id, frame.TimeoutMs = l.next, uint32(limit.Milliseconds())
	l.waiting[frame.Id] = reply
	l.mu.Unlock()
	begun, err := l.write(ctx, frame, deadline)
	defer func() { l.forget(frame.Id, begun) }()
	if err != nil {
		return nil, err
	}
	timer := time.NewTimer(time.Until(deadline))
	defer timer.Stop()
	select {
	case answer := <-reply:
		if answer.Error != nil {
			return nil, fault.FromDetail(shorten(answer.Error))
		}
		return answer, nil
	case <-timer.C:
		l.hangs()
		return nil, l.late(limit)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-l.gone:
		return nil, l.err
	}
}

func (l *link) late(limit time.Duration) error {
	return fault.Wrapf(context.DeadlineExceeded, "the session helper does not answer (waited for %v)",
		limit.Round(time.Millisecond))
}

// forget ends the wait for a reply. One that will come all the same, to a call that was given up, is expected.
func (l *link) forget(id uint64, begun bool) {
	l.mu.Lock()
	_, waiting := l.waiting[id]
	delete(l.waiting, id)
	if waiting && begun {
		l.givenUp[id] = struct{}{}
	}
	tooMany := len(l.givenUp) > maxGivenUp
	l.mu.Unlock()
	if tooMany {
		l.hangs()
	}
}

// shorten cuts the texts of an error, which the helper chose.
func shorten(detail *pb.ErrorDetail) *pb.ErrorDetail {
	for _, s := range []*string{&detail.Code, &detail.Op, &detail.Object, &detail.Message} {
		*s = text.Truncate(*s, maxErrorText)
	}
	size := 0
	for name, value := range detail.Details {
		if size += len(name) + len(value); size > maxErrorText {
			detail.Details = nil
			break
		}
	}
	return detail
}

// write sends a frame, unless ctx or the time for it ends first. begun says that the helper may have received it.
func (l *link) write(ctx context.Context, frame *pb.SessionFrame, deadline time.Time) (begun bool, err error) {
	limit := time.Until(deadline)
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case l.writing <- struct{}{}:
	case <-timer.C: // it has read nothing for as long
		l.hangs()
		return false, l.late(limit)
	case <-ctx.Done():
		return false, context.Cause(ctx)
	case <-l.gone:
		return false, l.err
	}
	written := make(chan error, 1)
	go func() { // ends with the channel, or at the deadline
		defer func() { <-l.writing }()
		written <- l.put(frame, deadline)
	}()
	select {
	case err := <-written:
		return err == nil, err
	case <-ctx.Done(): // half a frame is of no use: the rest of it is written all the same
		return true, context.Cause(ctx)
	}
}

func (l *link) put(frame *pb.SessionFrame, deadline time.Time) error {
	err := l.process.channel.SetWriteDeadline(deadline)
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
		l.givenUp[frame.Id] = struct{}{}
		l.mu.Unlock()
		begun, _ := l.write(context.Background(), frame, time.Now().Add(helper.Timeout)) // after an error the next helper gets it
		if !begun {
			l.mu.Lock()
			delete(l.givenUp, frame.Id)
			l.mu.Unlock()
		}
	}
}

// read takes what the helper says until the channel ends, or what it says is against the rules.
func (l *link) read() {
	in := &counter{r: l.process.channel}
	var err error
	for err == nil {
		err = l.readSecond(in)
	}
	if fault.Code(err) == "invalid" || errors.Is(err, fault.ErrTooLarge) {
		l.end("it said what no helper says, and was killed: " + err.Error())
	}
	select {
	case <-l.gone: // by close
	case <-l.process.done:
	case <-time.After(grace): // it closed the channel, and runs on
		l.hangs()
	}
}

// counter counts the bytes that are read.
type counter struct {
	r io.Reader
	n int
}

func (c *counter) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += n
	return n, err
}

// readSecond takes the frames until as much as a second may have came that nobody waits for: then it waits for the end of the
// second.
func (l *link) readSecond(in *counter) error {
	end := time.Now().Add(time.Second)
	for frames, size := 0, 0; frames < maxEvents && size < maxUnasked; {
		in.n = 0
		frame, err := ipc.Read(in)
		if err != nil {
			return err
		}
		if time.Now().After(end) {
			end, frames, size = time.Now().Add(time.Second), 0, 0
		}
		asked, err := l.take(frame)
		if err != nil {
			return err
		}
		if !asked {
			frames, size = frames+1, size+in.n
		}
	}
	select {
	case <-time.After(time.Until(end)):
	case <-l.gone:
	}
	return nil
}

// take takes one frame, and reports whether somebody waits for it.
func (l *link) take(frame *pb.SessionFrame) (asked bool, err error) {
	if frame.Id == 0 {
		return false, l.event(frame)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	reply, waiting := l.waiting[frame.Id]
	_, late := l.givenUp[frame.Id]
	delete(l.waiting, frame.Id)
	delete(l.givenUp, frame.Id)
	if waiting {
		reply <- frame
	} else if !late {
		return false, fault.Invalid("a reply to no request (%d)", frame.Id)
	}
	return waiting, nil
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
