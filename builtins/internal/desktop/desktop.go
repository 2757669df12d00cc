// Package desktop finds the graphical session in front of the guest and keeps a helper in it, the only process that speaks to
// the X server, the compositor and the bus of the user.
//
//	logind, or /proc and the sockets, or the console of Windows ─► Session: whose, of which type, locked?
//	                                       │ first need
//	Call ─► request ─► socketpair or pipe ─► the helper: this program, as that user ─► reply
//	OnEvent ◄──────────────────────────────── event
//
// The helper is started at the first need, follows the user in front, and is started again when it dies. It is not trusted: it
// runs as the user. What it says is bounded in size, number and time.
//
// Not here: what requests mean (the room that they are of says that), and the helper's own side (package helper).
package desktop

import (
	"context"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/desktop/helper"
	"github.com/quantix-kvm/guest-agent/builtins/internal/desktop/ipc"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Arg is the hidden sub-command of this program that is the helper.
const Arg = "session"

// Config configures a Desktop.
type Config struct {
	// Files has the accounts of the guest. Nil: the users of sessions are known by their processes alone.
	Files *fsys.Root
	// Live says that the guest is the running machine. Else it has no desktop.
	Live bool
	// Args are the arguments by which this program is the helper; nil: Arg alone.
	Args []string
	// Warn is called with a message when a helper ends by itself, or is ended since it does not answer. Optional.
	Warn func(message string)
}

// Session is a graphical session.
type Session struct {
	// ID is its number in logind, or in Windows; empty: logind does not know it, and neither Seat nor Locked are known.
	ID string
	// Type is x11, wayland or windows.
	Type string
	// Seat is where it is, such as seat0.
	Seat string
	// Display is the X display, such as :0, or the Wayland one, such as wayland-0; empty: not known before the helper runs, or
	// there is none, as on Windows.
	Display string
	// User is whose it is.
	User *proc.User
	// Locked says that its screen is locked.
	Locked bool

	origin
}

// String returns type and user, for messages.
func (s *Session) String() string { return s.Type + " session of " + s.User.Name }

// same reports whether a helper that was started for one session serves the other.
func (s *Session) same(other *Session) bool {
	return s.ID == other.ID && s.Type == other.Type && s.User.UID == other.User.UID && s.User.Name == other.User.Name &&
		(s.Display == other.Display || s.Display == "" || other.Display == "")
}

// Desktop is the desktop of a guest. It is safe for concurrent use.
type Desktop struct {
	config Config
	finder *finder
	events map[string]event
	ctx    context.Context // ends at Close
	stop   context.CancelFunc
	work   sync.WaitGroup

	turn    chan struct{} // holds a value while nobody looks for the session or starts a helper
	changed chan struct{} // receives a value when follow must look again

	mu        sync.Mutex
	following bool
	needed    bool     // a helper was asked for, and its session was there since
	session   *Session // of link, or the last one that was found
	link      *link    // nil: no helper runs
	reason    error    // why there is no session or no helper
	kept      map[string]proto.Message
	starts    uint32
	failures  int       // helpers in a row that ended soon
	notBefore time.Time // when the next one may be started
	closed    bool

	there   bool          // what Available found last
	foundAt time.Time     // when it did
	looking chan struct{} // closed when it is found; nil: nobody looks
}

type event struct {
	prototype proto.Message
	f         func(*Session, proto.Message)
}

// New makes a desktop. Nothing is looked for before it is needed.
func New(c Config) *Desktop {
	if c.Args == nil {
		c.Args = []string{Arg}
	}
	if c.Warn == nil {
		c.Warn = func(string) {}
	}
	d := &Desktop{
		config: c, events: map[string]event{}, kept: map[string]proto.Message{},
		turn: make(chan struct{}, 1), changed: make(chan struct{}, 1),
	}
	d.ctx, d.stop = context.WithCancel(context.Background())
	d.finder = newFinder(d.ctx, c.Files, d.wake)
	d.turn <- struct{}{}
	return d
}

// OnEvent has a function called for each event of type In of the helper, one after the other: it must not wait. It is reported
// in which session that helper is. It is called before anything else of d is.
func OnEvent[In proto.Message](d *Desktop, f func(s *Session, in In)) {
	var in In
	prototype := in.ProtoReflect().Type().Zero().Interface()
	d.events[ipc.Name(prototype)] = event{prototype, func(s *Session, m proto.Message) { f(d.latest(s), m.(In)) }}
}

// latest returns what is known of a session now.
func (d *Desktop) latest(s *Session) *Session {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.session != nil && d.session.same(s) {
		return d.session
	}
	return s
}

// Request is a request to the helper, and how it is made.
type Request struct {
	// Message is the request. Required.
	Message proto.Message
	// Limit is how long it may take; 0: helper.Timeout, 2 s.
	Limit time.Duration
	// Allow refuses, with its error, the session that it would be made in. Optional.
	Allow func(*Session) error
}

// Call makes a request to the helper in the session in front, with a limit of 2 s. See Do.
func Call[Out proto.Message](ctx context.Context, d *Desktop, in proto.Message) (Out, error) {
	return Do[Out](ctx, d, Request{Message: in})
}

// Do makes a request to the helper in the session in front, which it starts where none runs. Without a graphical session, or
// with none in front, the error says so, and is of cause errors.ErrUnsupported. A session that ends meanwhile is an error, and
// so is a helper that does not answer in time, which is then ended. Errors of the helper have the causes that they had there.
func Do[Out proto.Message](ctx context.Context, d *Desktop, r Request) (Out, error) {
	var out Out
	if r.Limit == 0 {
		r.Limit = helper.Timeout
	}
	frame, err := ipc.Pack(0, r.Message)
	if err != nil {
		return out, err
	}
	d.want()
	l, err := d.ensure(ctx, r.Allow)
	if err != nil {
		return out, err
	}
	reply, err := l.call(ctx, frame, r.Limit)
	if err != nil {
		return out, err
	}
	message := out.ProtoReflect().New().Interface()
	if want := ipc.Name(message); reply.Type != want {
		return out, fault.Wrapf(fault.ErrInternal, "the session helper answers with %.100q, and not %s", reply.Type, want)
	}
	if err := ipc.Decode(reply.Body, message); err != nil {
		return out, err
	}
	return message.(Out), nil
}

// Front returns the session in front. It starts no helper.
func (d *Desktop) Front(ctx context.Context) (*Session, error) {
	if !d.config.Live {
		return nil, fault.Unsupported("there is no desktop in a tree that is not booted")
	}
	return d.finder.front(ctx)
}

// Available reports whether there is a session in front, in time for whoever lists what the guest can do: where that takes long
// it returns what was so before.
func (d *Desktop) Available() bool {
	if !d.config.Live {
		return false
	}
	d.mu.Lock()
	if time.Since(d.foundAt) < fresh || d.closed {
		defer d.mu.Unlock()
		return d.there
	}
	if d.looking == nil {
		looking := make(chan struct{})
		d.looking = looking
		d.work.Go(func() {
			_, err := d.finder.front(d.ctx)
			d.mu.Lock()
			defer d.mu.Unlock()
			d.there, d.foundAt, d.looking = err == nil, time.Now(), nil
			close(looking)
		})
	}
	looking := d.looking
	d.mu.Unlock()
	select {
	case <-looking:
	case <-time.After(glance):
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.there
}

// Keep has each helper sent a request when it starts, and the one that runs at once; replies are dropped. There is a helper
// whenever there is a session from then on. A later request of the same type takes the place of the former.
func (d *Desktop) Keep(request proto.Message) {
	d.mu.Lock()
	d.kept[ipc.Name(request)] = request
	if l := d.link; l != nil && !d.closed {
		d.work.Go(func() { l.tell(request) })
	}
	d.mu.Unlock()
	d.want()
	d.wake()
}

// Drop ends what Keep did for requests of that type. What the helper that runs has already received stays.
func (d *Desktop) Drop(request proto.Message) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.kept, ipc.Name(request))
}

// Changed says that another session may be in front, or that it is locked or unlocked, where others than the system's own
// service for that know of it.
func (d *Desktop) Changed() { d.wake() }

// Status describes the desktop. It asks nobody: of a session that no helper was needed in it knows what was found last.
func (d *Desktop) Status() *pb.DesktopStatus {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := &pb.DesktopStatus{HelperStarts: d.starts}
	if d.session != nil {
		s.Type, s.User, s.Session, s.Seat = d.session.Type, d.session.User.Name, d.session.ID, d.session.Seat
		s.Display, s.Locked = d.session.Display, d.session.Locked
	}
	if d.link != nil {
		s.HelperPid = uint32(d.link.process.pid)
	}
	if d.reason != nil {
		s.Reason = d.reason.Error()
	}
	return s
}

// Close ends the helper. No call comes after it.
func (d *Desktop) Close() error {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.stop()
	<-d.turn // nobody starts one any more
	d.end()
	d.turn <- struct{}{}
	d.work.Wait()
	return d.finder.close()
}
