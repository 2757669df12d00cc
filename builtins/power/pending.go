package power

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	// transactionTime is how long a transaction that is open may go on; then the init stops the agent, which takes it back.
	transactionTime = 60 * time.Second
	// tellTime bounds the time for messages to the users.
	tellTime = 2 * time.Second
	// actTime bounds the talk with the init, and downTime how long the guest then takes to go down: the units of a guest may
	// take 90 s each to stop.
	actTime  = 60 * time.Second
	downTime = 10 * time.Minute
	// lateTime is how late a shutdown may be that an agent finds when it starts. A later one is dropped: nobody awaits it any
	// more.
	lateTime = 5 * time.Minute
)

// message is a request of any row.
type message = proto.Message

// shutdown is one that was accepted. The room's lock guards acting.
type shutdown struct {
	what    string
	due     time.Duration // since the boot
	message string
	event   func(proto.Message) bool // sends an event to the host that asked; may be nil

	replied  chan struct{} // closed when the reply has left
	release  func()        // closes it; may be called again
	cancel   context.CancelCauseFunc
	acting   bool // the init was asked
	restored bool // an earlier agent process accepted it
}

func newShutdown(what string, delay uint32, text string) *shutdown {
	s := &shutdown{
		what: what, due: bootTime() + time.Duration(delay)*time.Second, message: text, replied: make(chan struct{}),
	}
	s.release = sync.OnceFunc(func() { close(s.replied) })
	return s
}

// told describes it.
func (s *shutdown) told(waitingFor string) *pb.PendingShutdown {
	left := max(0, s.due-bootTime())
	return &pb.PendingShutdown{
		Type: s.what, Due: timestamppb.New(time.Now().Add(left)), RemainingMs: uint64(left.Milliseconds()), Message: s.message,
		WaitingFor: waitingFor,
	}
}

var errReplaced = errors.New("it was replaced or cancelled")

// accept makes a shutdown the pending one, and returns the one that it replaces. A second one of the kind that is under way
// already changes nothing.
func (r *Room) accept(next *shutdown) (old *pb.PendingShutdown, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, fault.Wrapf(fault.ErrBusy, "the agent is stopping")
	}
	if p := r.pending; p != nil && p.acting {
		if p.what == next.what {
			return nil, nil
		}
		return nil, fault.Wrapf(fault.ErrBusy, "a %s is under way already", p.what)
	}
	if err := r.writeNote(next); err != nil && next.due > bootTime() {
		return nil, err // one that is due now needs no note
	}
	if p := r.pending; p != nil {
		old = p.told("")
		p.cancel(errReplaced)
	}
	r.begin(next)
	return old, nil
}

// begin makes a shutdown the pending one. The caller holds mu.
func (r *Room) begin(s *shutdown) {
	ctx, cancel := context.WithCancelCause(context.Background())
	s.cancel = cancel
	r.pending, r.failed = s, nil
	r.work.Go(func() {
		defer cancel(nil)
		r.run(ctx, s)
	})
}

// cancel drops the pending shutdown and returns it.
func (r *Room) cancel(text string) (*pb.PendingShutdown, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pending
	switch {
	case p == nil:
		return nil, fault.Wrapf(fs.ErrNotExist, "no shutdown is pending")
	case p.acting:
		return nil, fault.Wrapf(fault.ErrBusy, "a %s is under way already", p.what)
	}
	if err := r.removeNote(); err != nil {
		return nil, err // a later agent would do it all the same
	}
	p.cancel(errReplaced)
	r.pending = nil
	r.work.Go(func() { r.tell(context.Background(), text, "The "+p.what+" of this system was cancelled.") })
	return p.told(""), nil
}

// run does a shutdown when its time has come, unless ctx ends before.
func (r *Room) run(ctx context.Context, s *shutdown) {
	delayed := s.due > bootTime()
	if !s.restored {
		r.tell(ctx, s.message, verbs[s.what]+" "+seconds(s.due-bootTime())+".")
	}
	if waitUntil(ctx, s.due) != nil {
		return
	}
	select {
	case <-s.replied:
	case <-ctx.Done():
		return
	}
	r.config.Thaw() // what the transaction waits for may be frozen
	unlock, ended := r.awaitTransaction(ctx)
	if ended || !r.act(s) {
		unlock()
		return
	}
	if delayed || s.restored {
		r.tell(ctx, s.message, verbs[s.what]+" now.")
	}
	r.config.Thaw()
	limited, cancel := context.WithTimeout(ctx, actTime)
	err := r.machine.act(limited, s.what)
	cancel()
	if err == nil {
		r.mu.Lock()
		_ = r.removeNote()
		r.mu.Unlock()
		if waitUntil(ctx, bootTime()+downTime) != nil {
			return // the init stops the agent; what would begin meanwhile would have no time to end, so nothing may
		}
		err = fmt.Errorf("the init was asked for it, and the guest is still up after %v", downTime)
	}
	if ctx.Err() != nil {
		return
	}
	unlock()
	r.fail(s, err)
}

// verbs begin the messages to users.
var verbs = map[string]string{
	"poweroff": "The system will be powered off", "reboot": "The system will reboot", "halt": "The system will be halted",
}

// tell sends a message to the users who are logged in.
func (r *Room) tell(ctx context.Context, text, line string) {
	limited, cancel := context.WithTimeout(ctx, tellTime)
	defer cancel()
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString(printable(strings.TrimRight(line, "\r\n")) + "\r\n")
	}
	r.machine.tell(limited, b.String()+line+"\r\n")
}

// printable returns a line with escapes in place of what could command a terminal.
func printable(s string) string {
	var b strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) || r == '\t' {
			b.WriteRune(r)
			continue
		}
		quoted := strconv.QuoteRune(r)
		b.WriteString(quoted[1 : len(quoted)-1])
	}
	return b.String()
}

// awaitTransaction waits until no transaction is open, and keeps others from beginning until unlock is called. One that
// awaits a confirmation has a deadline of its own; any other is waited for within transactionTime. ended: ctx has.
func (r *Room) awaitTransaction(ctx context.Context) (unlock func(), ended bool) {
	unlock = func() {}
	if r.config.Lock == nil {
		return unlock, ctx.Err() != nil
	}
	for until := bootTime() + transactionTime; ; {
		limited, cancel := context.WithTimeout(ctx, time.Second)
		release, err := r.config.Lock(limited)
		cancel()
		switch {
		case err == nil:
			return release, false
		case ctx.Err() != nil:
			return unlock, true
		case !errors.Is(err, fault.ErrBusy): // no transaction can be open where none may begin
			return unlock, false
		}
		confirm := r.config.Open != nil && awaits(r.config.Open())
		if !confirm && bootTime() >= until {
			return unlock, false
		}
		if waitUntil(ctx, bootTime()+50*time.Millisecond) != nil { // some errors come at once
			return unlock, true
		}
	}
}

// act says that the init is about to be asked; false: the shutdown was replaced or cancelled.
func (r *Room) act(s *shutdown) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed || r.pending != s {
		return false
	}
	s.acting = true
	return true
}

// fail gives a shutdown up.
func (r *Room) fail(s *shutdown, err error) {
	r.mu.Lock()
	_ = r.removeNote()
	failed := s.told("")
	failed.Error = err.Error()
	if r.pending == s {
		r.pending, r.failed = nil, failed
	}
	r.mu.Unlock()
	if s.event != nil {
		s.event(&pb.ErrorEvent{
			Severity: pb.ErrorSeverity_ERROR_SEVERITY_CRITICAL, Code: "shutdown",
			Message: "the " + s.what + " failed: " + err.Error(),
		})
	}
}

// start goes on with what an earlier agent process accepted.
func (r *Room) start() {
	if r.config.Note == "" || r.served() != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s, err := r.readNote()
	if s == nil && err == nil || r.pending != nil {
		return
	}
	late := false
	if s != nil {
		late = bootTime()-s.due > lateTime
	}
	if err == nil && !late {
		s.restored = true
		s.release()
		r.begin(s)
		return
	}
	_ = r.removeNote()
	if late {
		r.failed = s.told("")
		r.failed.Error = "no agent ran at that time; it was dropped"
	}
}

// close lets go of what is pending: a later agent process goes on with it.
func (r *Room) close() error {
	r.mu.Lock()
	r.closed = true
	if r.pending != nil {
		r.pending.cancel(errReplaced)
	}
	r.mu.Unlock()
	r.work.Wait()
	return nil
}

// The note is one line: the version of its format, the boot, the type, the time since the boot in nanoseconds, and the
// message as Go quotes it.
const noteFormat = "1"

func (r *Room) writeNote(s *shutdown) error {
	if r.config.Note == "" {
		return nil
	}
	text := fmt.Sprintf("%s %s %s %d %q\n", noteFormat, r.config.BootID(), s.what, s.due, s.message)
	temp := r.config.Note + ".new"
	err := os.WriteFile(temp, []byte(text), 0o600)
	if err == nil {
		err = os.Rename(temp, r.config.Note)
	}
	return fault.Cause(err)
}

func (r *Room) removeNote() error {
	if r.config.Note == "" {
		return nil
	}
	if err := os.Remove(r.config.Note); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.Cause(err)
	}
	return nil
}

var errNote = errors.New("the note of a pending shutdown cannot be read")

// readNote returns what is noted of this boot; nil: nothing.
func (r *Room) readNote() (*shutdown, error) {
	text, err := os.ReadFile(r.config.Note)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	fields := strings.SplitN(strings.TrimSuffix(string(text), "\n"), " ", 5)
	if len(fields) != 5 || fields[0] != noteFormat || fields[1] == "" || verbs[fields[2]] == "" {
		return nil, errNote
	}
	due, dueErr := strconv.ParseInt(fields[3], 10, 64)
	words, wordsErr := strconv.Unquote(fields[4])
	switch {
	case dueErr != nil || wordsErr != nil:
		return nil, errNote
	case fields[1] != r.config.BootID():
		return nil, errNote
	}
	s := newShutdown(fields[2], 0, words)
	s.due = time.Duration(due)
	return s, nil
}
