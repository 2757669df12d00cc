package builtins

import (
	"context"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Call is what one invocation knows of its caller. It is made by a way in and lives as long as the call.
type Call struct {
	// ID is the message id of the request that this belongs to.
	ID string
	// Port names the channel that it came through, for policy and audit.
	Port string
	// Session names the connection that it came through, for what must not outlive it; it may be empty.
	Session string
	// Tx is the transaction; nil for a native request, which is not undone.
	Tx Tx
	// Changed is told of each thing that the operation changed, right after it did; nil: nobody asks.
	Changed func(*pb.Change)
	// Changes gives what the script that calls has changed so far, not to be written to; nil: no script calls.
	Changes func() []*pb.Change
	// Event sends an event to the host that asked; false: it was dropped. Nil: nobody listens.
	Event func(proto.Message) bool
	// TakesBack: the journal calls, to take back what was allowed when it was done.
	TakesBack bool
	// Attachments are the files that came with the script.
	Attachments map[string][]byte
	// Plan is what a dry run changes instead of the guest; nil: this is none.
	Plan *Plan
	// Scratch gives room for n bytes of the reply, which is used for others once that has been sent. Nil: make it. See Room.
	Scratch func(n int) []byte
}

// Tx is how an operation makes its changes undoable. Every method returns once what it was told is durable, so it comes
// before the change. An error means that nothing may be changed.
type Tx interface {
	// Before keeps what is at each path now, whatever it is, also nothing at all. For a path that an operation
	// replaces or whose metadata it changes. The last element of a path is not followed.
	Before(ctx context.Context, paths ...string) error
	// BeforeTree keeps all that is below each path as well, for what a command may change there.
	BeforeTree(ctx context.Context, paths ...string) error
	// BeforeTouch is BeforeTree for a command that can change nothing but the paths, and the names in the directories
	// that they are in: it notes what these are.
	BeforeTouch(ctx context.Context, paths ...string) error
	// UndeclaredChanges gives what has been made of those names since, by path, with op as their operation. A rollback names it. It comes
	// when the command has ended; if it never does, because the agent was killed, a rollback looks for itself.
	UndeclaredChanges(ctx context.Context, op string) ([]*pb.Change, error)
	// Take keeps the tree at path by moving it away: afterwards nothing is there.
	Take(ctx context.Context, path string) error
	// Undo names the operation, and its arguments, that takes back what the caller is about to do. It must be
	// idempotent and bear that the change never happened.
	Undo(ctx context.Context, op string, args proto.Message) error
	// Irreversible says that the caller is about to do what nothing takes back, so that a rollback names it.
	Irreversible(ctx context.Context, change *pb.Change) error
	// NotBegun says that what the caller announced last did not begin, so that nothing has to take it back.
	NotBegun()
}

// Before is Tx.Before, or nothing outside a transaction.
func (c *Call) Before(ctx context.Context, paths ...string) error {
	if c.Tx == nil {
		return nil
	}
	return c.Tx.Before(ctx, paths...)
}

// Room gives n bytes for the reply, of any content, that nobody may keep.
func (c *Call) Room(n int) []byte {
	if c.Scratch == nil {
		return make([]byte, n)
	}
	return c.Scratch(n)
}

// Report tells of a change.
func (c *Call) Report(change *pb.Change) {
	if c.Changed != nil {
		c.Changed(change)
	}
}

// ErrStopping is the cause of a context that ends because the agent stops. What may outlive the agent is then left
// alone.
var ErrStopping = fault.Wrapf(context.Canceled, "the agent is stopping")
