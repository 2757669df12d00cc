package builtins

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Call is what one invocation knows of its caller. It lives as long as the call.
type Call struct {
	// ID is the message id of the request that this belongs to.
	ID string
	// Port names the channel that it came through, for policy and audit.
	Port string
	// Session names the connection that it came through, for what must not outlive it; it may be empty.
	Session string
	// Tx is the transaction; nil for a native request that has none, which is not undone.
	Tx Tx
	// Sees reports whether the caller may see, and end, what the hosts on another port began; nil: whatever it is. The
	// executor sets it.
	Sees func(port string) bool
	// Deferred receives what AfterCommit is given; nil: there is no transaction. The executor sets it.
	Deferred func(Action) error
	// Pending receives what BeforeCommit is given; nil: no script calls. The executor sets it.
	Pending func(Pending) error
	// Confirm requires a confirmation of the current native operation: without one within that time it is rolled back. Confirm has
	// no effect if the operation fails or changes nothing. Before the reply is sent, told is called with the ID of the
	// transaction and the deadline, which the operation copies into its reply. Nil if the operation runs without a transaction of
	// its own. The executor sets it.
	Confirm func(within time.Duration, told func(id string, until time.Time)) error
	// Changed is called for each thing that the operation changed, right after the change; nil: nobody asks.
	Changed func(*pb.Change)
	// Contents is called right after Changed for a change with a diff, with the contents of the file before and after it.
	// Optional.
	Contents func(Contents)
	// Changes returns what the script that calls has changed so far, not to be written to; nil: no script calls.
	Changes func() []*pb.Change
	// Warned receives warnings that the reply must carry, such as that a command declared readonly was not confined. Nil: they
	// are dropped. See Warn.
	Warned func(text string)
	// Event sends an event to the host that asked; false: it was dropped. Nil: nobody listens.
	Event func(proto.Message) bool
	// AfterReply calls f, on a goroutine of its own, when the reply to the request that this belongs to has left, or cannot.
	// Nil: nobody knows when that is. See OnceReplied.
	AfterReply func(f func())
	// Sent is when the request was sent, by the clock of its sender; the zero time: it does not say. Received is when it had
	// come, with a reading of the monotonic clock; the zero time: not known.
	Sent, Received time.Time
	// Undo: the journal calls, to take back what was allowed when it was done, or to do what a commit decided.
	Undo bool
	// Idle is set by an operation that the journal calls, and that found nothing to take back.
	Idle bool
	// Attachment returns the content of a file that came with the script; fs.ErrNotExist: none of this name did. Nil: none did.
	Attachment func(name string) ([]byte, error)
	// ReleaseRequest returns all but keep bytes of a large request's share of the memory budget, for which other requests wait.
	// The request's bytes must not be used afterwards. Nil: the request has no share.
	ReleaseRequest func(keep int)
	// HoldReply waits until there is memory for a reply of n bytes, for 10 s at most: before one that is large is made. Nil: it
	// has no bound, or another one.
	HoldReply func(n int) error
	// Checked is what the paths of the request led to when rules were checked; nil: no rule is about paths.
	Checked *fsys.CheckedPaths
	// Kept returns fault.ErrBusy where an open transaction has changed the object at a resolved path: what the operation has
	// found, maybe through a link, is asked for before it is changed. See CheckKept. Nil: none has.
	Kept func(path string) error
	// DryRun is what a dry run changes instead of the guest; nil: this is none.
	DryRun *DryRun
	// MaxChunk is the most bytes of a file that the reply may have; 0: as many as every channel takes at once.
	MaxChunk int
	// Scratch returns n bytes for the reply, which are used for others once that has been sent. Nil: make them. See Buffer.
	Scratch func(n int) []byte
}

// Contents is what a change made of a file.
type Contents struct {
	Change *pb.Change
	// Old and New are what the file held before and holds now, not to be written to; nil: it is not there.
	Old, New []byte
	// Diff makes the diff of two contents of the file; truncated says that it is not complete.
	Diff func(old, new []byte) (text string, truncated bool)
}

// SpoolPrefix begins the name of the directory, at the root of a mount, where a transaction keeps what was removed there.
// Scripts do not see it.
const SpoolPrefix = ".quantix-tx-"

// Tx is how an operation makes its changes undoable. Every method returns once what it recorded is durable, so it comes
// before the change. An error means that nothing may be changed.
type Tx interface {
	// Before keeps what is at each path now, whatever it is, also nothing at all. For a path that an operation
	// replaces or whose metadata it changes. The last element of a path is not followed.
	Before(ctx context.Context, paths ...string) error
	// BeforeAppend keeps the length of the file at path, and what shows that the content up to there is still the same:
	// for an operation that appends to it in place, and changes its attributes at most.
	BeforeAppend(ctx context.Context, path string) error
	// Kept returns what the last call of Before or BeforeAppend kept at a resolved path; false: it kept nothing there. A caller
	// that holds its place open compares: who may exchange a directory on the way can lead two looks to two places.
	Kept(path string) (Touched, bool)
	// BeforeTree keeps all that is below each path as well, for what a command may change there.
	BeforeTree(ctx context.Context, paths ...string) error
	// BeforeTouch is BeforeTree for a command that can change nothing but the paths, and the names in the directories
	// that they are in: it notes what these are, and the attributes of the directories. It returns what it kept of each path.
	BeforeTouch(ctx context.Context, paths ...string) ([]Touched, error)
	// UndeclaredChanges returns what has been made of those names and directories since, by path, with op as their operation.
	// A rollback names it. It comes when the command has ended; if it never does, because the agent was killed, a rollback
	// looks for itself.
	UndeclaredChanges(ctx context.Context, op string) ([]*pb.Change, error)
	// Take keeps the tree at path by moving it away: afterwards nothing is there. seen is what the caller has found there:
	// another object is fault.ErrChanged. Without a kind it may be any.
	Take(ctx context.Context, path string, seen fsys.Meta) error
	// Undo names the operation, and its arguments, that takes back what the caller is about to do: its row's Inverse. It
	// must be idempotent and bear that the change never happened.
	Undo(ctx context.Context, op string, args proto.Message) error
	// UndoLast is Undo for what is no file, and depends on files, such as a service that runs: a rollback takes it back
	// when it has taken back all that was announced in another way.
	UndoLast(ctx context.Context, op string, args proto.Message) error
	// Irreversible says that the caller is about to do what nothing takes back, so that a rollback names it.
	Irreversible(ctx context.Context, change *pb.Change) error
	// HeldNames returns how many names of a file are the transaction's own: those that it took away, and those by which it
	// keeps a file that has several. None of them is seen by others.
	HeldNames(file fsys.Meta) uint32
	// NotBegun says that what the caller announced last did not begin, so that nothing has to take it back.
	NotBegun()
}

// Touched is what a transaction kept for a command that may change it.
type Touched struct {
	// Path is resolved; where directories are missing on the way, the first of these.
	Path string
	// Ino is the inode of what is there; 0: nothing is, or its file system has none.
	Ino uint64
	// Dir is that of the directory that it is in; 0: that is missing too, or its file system has none.
	Dir uint64
}

// Action is something to be done before or after a commit.
type Action struct {
	// Op and Args name the operation, an internal row or a script's; after a commit it must bear to be done again.
	Op   string
	Args proto.Message
	// SameBoot drops it if the guest was booted again since the commit. It means nothing before one.
	SameBoot bool
	// Target is what people call it.
	Target string
}

// Pending is something to be done before a commit.
type Pending struct {
	Action
	// Check is done once all such actions are, and only checks the outcome of this one. Optional.
	Check *Action
	// Covers says that the action does what other ones for its Op and Target with a lower value do: they are left out.
	Covers int
	// Outlives has it done also if the call that asks for it fails and is taken back. It is for an action that only looks:
	// whether the script has made good what the call failed at.
	Outlives bool
}

// Before is Tx.Before, or nothing outside a transaction.
func (c *Call) Before(ctx context.Context, paths ...string) error {
	if c.Tx == nil {
		return nil
	}
	return c.Tx.Before(ctx, paths...)
}

// AfterCommit registers an operation that runs at least once after the transaction has committed, in a recovery if necessary.
// The same operation registered twice runs once. It is dropped if the transaction or the call is rolled back; a dry run only
// reports it. Without a transaction it returns an error.
func (c *Call) AfterCommit(action Action) error {
	switch {
	case c.Deferred != nil:
		return c.Deferred(action)
	case c.DryRun != nil:
		return nil
	}
	return fault.Refuse("there is no transaction")
}

// OnceReplied calls f, on a goroutine of its own, when the reply has left: for what would keep it from that, such as a
// shutdown. Where nobody knows when that is f is called at once.
func (c *Call) OnceReplied(f func()) {
	if c.AfterReply == nil {
		go f()
		return
	}
	c.AfterReply(f)
}

// CheckKept returns fault.ErrBusy where an open transaction that the call is not part of has changed the object at a resolved
// path, and would take the change back.
func (c *Call) CheckKept(path string) error {
	if c.Kept == nil {
		return nil
	}
	return c.Kept(path)
}

// BeforeCommit has an operation done, as a call of the script, once its last line has run and before the transaction commits;
// one that was given before, or that another one covers, is not done again. An error of it, or of its check, is the script's,
// so that all is rolled back. In a dry run it is predicted at the same point. Where no script calls it is refused.
func (c *Call) BeforeCommit(p Pending) error {
	if c.Pending == nil {
		return fault.Refuse("there is no script")
	}
	return c.Pending(p)
}

// MaySee reports whether the caller may see, and end, what the hosts on a port began.
func (c *Call) MaySee(port string) bool { return c.Sees == nil || c.Sees(port) }

// Buffer returns n bytes for the reply, of any content, that nobody may keep.
func (c *Call) Buffer(n int) []byte {
	if c.Scratch == nil {
		return make([]byte, n)
	}
	return c.Scratch(n)
}

// Warn has the reply of the script say something that is no error. What was said before is not said again.
func (c *Call) Warn(text string) {
	if c.Warned != nil {
		c.Warned(text)
	}
}

// Report reports a change.
func (c *Call) Report(change *pb.Change) {
	if c.Changed != nil {
		c.Changed(change)
	}
}

// ReportApplied reports a change that was made: in a transaction it is reversible, and in a dry run it would be made.
func (c *Call) ReportApplied(change *pb.Change) {
	change.State, change.Reversible = pb.ChangeState_CHANGE_STATE_APPLIED, c.Tx != nil
	if c.DryRun != nil {
		change.State, change.Reversible = pb.ChangeState_CHANGE_STATE_WOULD, true
	}
	c.Report(change)
}

// ErrStopping is the cause of a context that ends because the agent stops. What may outlive the agent is then left
// alone.
var ErrStopping = fault.Wrapf(context.Canceled, "the agent is stopping")
