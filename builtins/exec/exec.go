// Package exec runs commands in the guest.
//
//	native  execute ──────────► any command, as anybody; lives apart from the agent
//	        exec_start/_input ► the same with its output as it comes, input, signals, a terminal; ends with its connection
//	        detached          ► a job: lives, and is kept, apart from the agent (list_jobs)
//	script  exec.run, exec.sh ► a command that says what it does to the guest, so that a transaction can hold
//	        exec.undo ────────► what takes one of those back; called by the journal alone
//	        exec.on_commit ───► what is run when a script has committed; called by the journal alone
//
// A script's command is one of four kinds. readonly changes nothing, and is held to it where the kernel can. touches
// changes the paths it names and nothing else: they are kept before it runs, and the rest is read-only for it. undo
// names the command that takes it back, kept before it runs. irreversible cannot be taken back, and a rollback says so.
// Whatever a script's command leaves running ends with the call: nothing of it writes behind the transaction's back. A
// daemon belongs to a service.
//
// Not here: how a process is started and ended (internal/proc), whether a command may run, and secrets in its arguments,
// which reports of changes remove.
package exec

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/freeze"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Config says how the room works. The zero value works.
type Config struct {
	// MaxTimeout is the longest that a native command may take, and what it gets when it does not ask; 0: 300 s.
	MaxTimeout time.Duration
	// Commands says how processes are run; jobs run theirs likewise.
	Commands proc.Config
	// Jobs is the directory where detached commands are kept; empty: there are none.
	Jobs string
	// FreezeLimit is how long a file system stays frozen that a command froze; 0: 60 s.
	FreezeLimit time.Duration
	// Thawed is called with a message when that time was up. Optional.
	Thawed func(words string)
	// Frozen is where it is noted what commands froze. Nil: the room's own.
	Frozen *freeze.State
}

// Room holds the operations.
type Room struct {
	config  Config
	guest   *guest.Guest
	streams streams
	jobs    jobs
	freezes freezes
	remotes remotes
}

// New makes the room for the commands of a guest, which share its Runner. It starts nothing.
func New(g *guest.Guest, config Config) *Room {
	if config.MaxTimeout == 0 {
		config.MaxTimeout = 300 * time.Second
	}
	if config.FreezeLimit == 0 {
		config.FreezeLimit = defaultFreeze
	}
	if config.Frozen == nil {
		config.Frozen = freeze.New(freeze.Config{})
	}
	return &Room{
		config: config, guest: g, jobs: jobs{dir: config.Jobs},
		freezes: freezes{state: config.Frozen, known: map[string]*frozen{}},
		remotes: remotes{hung: map[string]bool{}},
	}
}

// Room is what the table, the executor and the agent know of the room.
func (r *Room) Room() builtins.Room {
	return builtins.Room{
		Name: "exec", Scope: builtins.ScopeCommands, Ops: append(r.native(), r.scripts()...),
		Features: r.features, SessionClosed: r.streams.sessionClosed,
		HasStream: r.hasStream, Sweep: r.sweep, Release: r.release,
	}
}

// native are the rows that hosts call.
func (r *Room) native() []builtins.Op {
	return []builtins.Op{
		{
			Name: "execute", Summary: "run a command and wait for it, or start it and leave it", Capability: "execute",
			Mutates: true, Access: nativeAccess, Handler: builtins.Handle(r.execute),
			OnError: func(err error) proto.Message { return &pb.ExecuteResponse{ExitCode: -1, Error: err.Error()} },
		},
		{
			Name: "exec_start", Summary: "start a command and send its output as it comes", Capability: "exec_stream",
			Mutates: true, Access: nativeAccess, Handler: builtins.Handle(r.execStart),
		},
		{
			Name: "exec_input", Summary: "give a started command input, a signal, a window size, or an end",
			Mutates: true, Transient: true, Order: inputOrder, Routine: onlyFeeds, Handler: builtins.Handle(r.execInput),
		},
		{
			Name: "list_jobs", Capability: "jobs",
			Summary: "list the commands that are left to themselves, and show what they write",
			Handler: builtins.Handle(r.listJobs),
		},
	}
}

// scripts are the rows that scripts call, and those that the journal alone does.
func (r *Room) scripts() []builtins.Op {
	return []builtins.Op{
		{
			Name: "exec.run", Usage: "(argv)", Summary: "run a program that says what it does to the guest",
			Mutates: true, Partial: true, Predictable: true, Inverse: "exec.undo",
			Readonly: builtins.Of(func(in *pb.RunArgs) bool { return in.Readonly && !in.Unconfined }),
			Access:   builtins.Of(runAccess), Handler: builtins.Handle(r.script),
		},
		{
			Name: "exec.sh", Usage: "(command)", Summary: "run a line of shell that says what it does to the guest",
			Mutates: true, Partial: true, Predictable: true, Inverse: "exec.undo",
			Readonly: builtins.Of(func(in *pb.ShellArgs) bool { return in.Readonly && !in.Unconfined }),
			Access:   builtins.Of(shellAccess), Handler: builtins.Handle(r.shell),
		},
		{
			Name: "exec.undo", Usage: "(argv)", Summary: "take back what a command did",
			Mutates: true, Internal: true, Access: builtins.Of(runAccess), Handler: builtins.Handle(r.undo),
		},
		{
			Name: "exec.on_commit", Usage: "(argv)", Summary: "run a command once a script has committed",
			Mutates: true, Internal: true, Access: builtins.Of(runAccess), Handler: builtins.Handle(r.onCommit),
		},
	}
}

func (r *Room) features() map[string]string {
	return map[string]string{"user_context_exec": "true", "exec.confinement": r.confinement()}
}

// confinement says how readonly and touches are enforced: "mount-namespace", or "none: " and why not. The first call
// tries it out, which takes some milliseconds.
func (r *Room) confinement() string { return r.guest.Runner.Confinement() }

// sweep ends what scripts' commands of a former agent process left running. It comes before a transaction of that process
// is undone. What does not die within 10 s is an error of cause fault.ErrBusy.
func (r *Room) sweep(ctx context.Context) error { return r.guest.Runner.Sweep(ctx) }

// release lets go of native commands when the agent stops: calls that wait for them return at once, the commands run on,
// and their output is read by a process of its own. Commands that exec_start started are ended, but for jobs; what a command
// froze is thawed. Scripts' commands must have been ended by their ctx before. It waits until no call is left.
func (r *Room) release() error {
	r.thawAll()
	r.remotes.table.close()
	r.streams.stop()
	return r.guest.Runner.Release()
}

// hasStream reports whether a command runs whose output goes to a connection under an id.
func (r *Room) hasStream(port, session, id string) bool {
	return r.streams.get(streamKey{port, session, id}) != nil
}

// ChildMain serves the hidden sub-commands exec-confined, exec-drain, exec-job and exec-probe, by which the program
// calls itself. main calls it before anything else, flags too, and ends where it returns true.
func ChildMain() bool { return proc.ChildMain() || jobMain() || probeMain() }
