// Package power shuts the guest down: at once or at a time, for hosts and after the commit of a script.
//
//	shutdown ──────────────────────────────► pending: one at a time, noted in memory that outlives the agent ─► due
//	power.reboot ─► after the commit ─► power.shutdown ──┘                                                       │
//	                                                                                                             ▼
//	  the init of this machine ◄── nothing else writes ◄── thaw ◄── the open transaction has ended ◄── the reply has left
//
// The time is that of the clock that counts from the boot and through suspends, so a step of the guest's clock does not move
// it.
//
// Not here: what the agent does when the init then stops it, and transactions.
package power

import (
	"context"
	"crypto/rand"
	"strings"
	"sync"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// kind is that of the objects in Access: their names are poweroff, reboot, halt and cancel.
const kind = "power"

// maxMessage is the most bytes of a message to the users: some screens full.
const maxMessage = 4096

// Config says how the room works. The zero value shuts nothing down.
type Config struct {
	// Machine says that the agent is the one of the running machine, and so may shut that down.
	Machine bool
	// Note is the file, in memory that is lost with the guest's next boot, in which a later agent process finds what is
	// pending; empty: it finds nothing.
	Note string
	// BootID identifies this boot of the guest. Required with Note.
	BootID func() string
	// Lock makes the caller the one writer, and waits for the open transaction within ctx; an error of cause fault.ErrBusy
	// says that it has not ended. Nil: there are no transactions.
	Lock func(ctx context.Context) (release func(), err error)
	// Thaw thaws whatever is frozen. Nil: nothing can be.
	Thaw func()
	// Open returns the transaction that is open; nil: none is. Nil: there are no transactions.
	Open func() *pb.TransactionInfo
}

// Room holds the operations. It is safe for concurrent use.
type Room struct {
	guest   *guest.Guest
	config  Config
	machine machine

	work sync.WaitGroup // of what is pending

	mu      sync.Mutex
	closed  bool
	pending *shutdown
	failed  *pb.PendingShutdown      // the last that failed; nil: none has since
	calls   map[string]chan struct{} // of scripts, closed when the reply of the script has left
}

// machine is what shuts the running machine down. Tests have their own: theirs must not.
type machine struct {
	// why returns why this machine cannot be shut down; nil if it can.
	why func() error
	// tell writes to the terminals of the users who are logged in, within ctx, as far as that can be done.
	tell func(ctx context.Context, text string)
	// act has the init do it, and returns when that has begun.
	act func(ctx context.Context, what string) error
}

// New makes the room for a guest. It starts nothing.
func New(g *guest.Guest, config Config) *Room {
	if config.Thaw == nil {
		config.Thaw = func() {}
	}
	return &Room{guest: g, config: config, machine: running(g), calls: map[string]chan struct{}{}}
}

// Room is what the table, the executor and the agent know of the room.
func (r *Room) Room() builtins.Room {
	room := builtins.Room{Name: "power", Scope: kind, Start: r.start, Close: r.close, Ops: []builtins.Op{
		{
			Name: "shutdown", Summary: "shut the guest down, now or later; or drop what is pending",
			Mutates: true, Access: builtins.Of(shutdownAccess), Handler: builtins.Handle(r.shutdown),
		},
		{
			Name: "power.reboot", Usage: "([delay])", Summary: "boot the guest again, after the commit",
			Mutates: true, Predictable: true, Access: always("reboot"), Handler: builtins.Handle(r.afterCommit("reboot")),
		},
		{
			Name: "power.poweroff", Usage: "([delay])", Summary: "switch the guest off, after the commit",
			Mutates: true, Predictable: true, Access: always("poweroff"), Handler: builtins.Handle(r.afterCommit("poweroff")),
		},
		{
			Name: "power.shutdown", Usage: "(type, [delay])", Summary: "shut the guest down since a transaction has committed",
			Mutates: true, Internal: true, Access: builtins.Of(actionAccess), Handler: builtins.Handle(r.committed),
		},
	}}
	if r.served() == nil {
		room.Ops[0].Capability = "shutdown"
		room.Features = func() map[string]string { return map[string]string{"shutdown": "delay,message,cancel"} }
	}
	return room
}

// types are the names of what can be asked for.
var types = map[pb.ShutdownType]string{
	pb.ShutdownType_SHUTDOWN_TYPE_POWEROFF: "poweroff",
	pb.ShutdownType_SHUTDOWN_TYPE_REBOOT:   "reboot",
	pb.ShutdownType_SHUTDOWN_TYPE_HALT:     "halt",
}

func object(name string) builtins.Access {
	return builtins.Access{Objects: []builtins.Object{{Kind: kind, Name: name}}}
}

func shutdownAccess(in *pb.ShutdownRequest) builtins.Access {
	if in.Cancel {
		return object("cancel")
	}
	if name, ok := types[in.Type]; ok {
		return object(name)
	}
	return builtins.Access{} // the operation refuses it
}

func always(name string) func(message) builtins.Access {
	return func(message) builtins.Access { return object(name) }
}

func actionAccess(in *pb.PowerAction) builtins.Access { return object(in.Type) }

// served returns why a request cannot be served here.
func (r *Room) served() error {
	switch {
	case !r.guest.Live:
		return fault.Unsupported("not supported: a tree that is not booted cannot be shut down")
	case !r.config.Machine:
		return fault.Unsupported("not supported: this agent is not the one that the machine is installed with")
	}
	if err := r.machine.why(); err != nil {
		return fault.Unsupported("not supported: %v", err)
	}
	return nil
}

// check returns what is wrong with a wish.
func check(message string) error {
	if len(message) > maxMessage {
		return fault.Invalid("the message has %d bytes, at most %d are shown", len(message), maxMessage)
	}
	return nil
}

func (r *Room) shutdown(_ context.Context, call *builtins.Call, in *pb.ShutdownRequest) (*pb.ShutdownResponse, error) {
	if err := r.served(); err != nil {
		return nil, err
	}
	if err := check(in.Message); err != nil {
		return nil, err
	}
	if in.Cancel {
		old, err := r.cancel(in.Message)
		if err != nil {
			return nil, err
		}
		return &pb.ShutdownResponse{Accepted: true, Replaced: old}, nil
	}
	what, ok := types[in.Type]
	if !ok {
		return nil, fault.Invalid("%d is no type of shutdown: poweroff (0), reboot (1) and halt (2) are", in.Type)
	}
	if err := mayDo(what); err != nil {
		return nil, err
	}
	next := newShutdown(what, in.DelaySeconds, in.Message)
	next.event = call.Event
	old, err := r.accept(next)
	if err != nil {
		return nil, err
	}
	call.OnceReplied(next.release)
	return &pb.ShutdownResponse{Accepted: true, Pending: r.Pending(), Replaced: old}, nil
}

// afterCommit makes the function of a row that shuts down once the transaction has committed.
func (r *Room) afterCommit(what string) func(context.Context, *builtins.Call, *pb.PowerArgs) (*pb.Nothing, error) {
	return func(_ context.Context, call *builtins.Call, in *pb.PowerArgs) (*pb.Nothing, error) {
		if r.guest.Answer == nil {
			if err := r.served(); err != nil {
				return nil, err
			}
		}
		if err := check(in.Message); err != nil {
			return nil, err
		}
		action := &pb.PowerAction{Type: what, Delay: in.Delay, Message: in.Message, Call: rand.Text()}
		err := call.AfterCommit(builtins.Action{Op: "power.shutdown", Args: action, SameBoot: true, Target: what})
		if err != nil {
			return nil, err
		}
		if call.DryRun == nil && call.AfterReply != nil {
			r.expect(action.Call, call.AfterReply)
		}
		call.ReportApplied(&pb.Change{Op: "power." + what, Target: "the guest", Action: "scheduled"})
		return &pb.Nothing{}, nil
	}
}

// expect remembers a call until the reply of its script has left.
func (r *Room) expect(id string, afterReply func(func())) {
	replied := make(chan struct{})
	r.mu.Lock()
	r.calls[id] = replied
	r.mu.Unlock()
	afterReply(func() {
		close(replied)
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.calls, id)
	})
}

// committed shuts down since a transaction has committed. Done again, as by a recovery, it only replaces what it made pending.
func (r *Room) committed(_ context.Context, _ *builtins.Call, in *pb.PowerAction) (*pb.Nothing, error) {
	if r.guest.Answer != nil {
		return &pb.Nothing{}, nil
	}
	if err := r.served(); err != nil {
		return nil, err
	}
	if in.Type != "reboot" && in.Type != "poweroff" {
		return nil, fault.Invalid("%q is no type of shutdown", in.Type)
	}
	next := newShutdown(in.Type, in.Delay, in.Message)
	r.mu.Lock()
	replied := r.calls[in.Call]
	r.mu.Unlock()
	if replied == nil {
		next.release()
	} else {
		go func() { <-replied; next.release() }()
	}
	_, err := r.accept(next)
	return &pb.Nothing{}, err
}

// Pending returns what is pending, or the last that failed; nil: nothing is and none has.
func (r *Room) Pending() *pb.PendingShutdown {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pending == nil {
		return r.failed
	}
	return r.pending.told(r.waitsFor(r.pending))
}

// waitsFor returns what a shutdown waits for beside its time. The caller holds mu.
func (r *Room) waitsFor(s *shutdown) string {
	if s.acting || r.config.Open == nil {
		return ""
	}
	return waitingFor(r.config.Open())
}

// waitingFor describes an open transaction.
func waitingFor(open *pb.TransactionInfo) string {
	if open == nil {
		return ""
	}
	words := "transaction " + open.TransactionId
	if awaits(open) {
		words += ", which awaits a confirmation"
	}
	return words
}

func awaits(open *pb.TransactionInfo) bool { return strings.HasPrefix(open.GetPhase(), "awaiting") }

// seconds is a delay in words.
func seconds(d time.Duration) string {
	if d <= 0 {
		return "now"
	}
	return "in " + d.Round(time.Second).String()
}
