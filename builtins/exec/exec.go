// Package exec runs commands in the guest.
//
//	native  execute ──────────► any command, as anybody; lives apart from the agent
//	        exec_start/_input ► the same with its output as it comes, input, signals, a terminal; ends with its connection
//	        detached          ► a job: lives, and is kept, apart from the agent (list_jobs)
//	script  exec.run, exec.sh ► a command that says what it does to the guest, so that a transaction can hold
//	        exec.undo ────────► what takes one of those back; called by the journal alone
//
// A script's command is one of four kinds. readonly changes nothing, and is held to it where the kernel can. touches
// changes the paths it names and nothing else: they are kept before it runs, and the rest is read-only for it. undo
// names the command that takes it back, kept before it runs. irreversible cannot be taken back, and a rollback says so.
// Whatever a script's command leaves running ends with the call: nothing of it writes behind the transaction's back. A
// daemon belongs to a service.
//
// Not here: how a process is started and ended (internal/proc), whether a command may run, and secrets in its arguments,
// which whoever tells of a change removes.
package exec

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Config says how the room works. The zero value works.
type Config struct {
	// Root is the directory that is "/" for commands, users and paths; empty: "/". Another needs root and Reexec.
	Root string
	// MaxTimeout is the longest that a native command may take, and what it gets when it does not ask; 0: 300 s.
	MaxTimeout time.Duration
	// MaxOutput bounds what is kept of each stream, in bytes, whatever a request asks for; 0: 8 MiB.
	MaxOutput int64
	// Grace is the time between TERM and KILL; 0: 2 s.
	Grace time.Duration
	// Name is what control groups begin with; empty: quantix-kvm.
	Name string
	// Cgroup is the cgroup v2 directory for scripts' commands; empty: the agent's own; "none": none.
	Cgroup string
	// JobCgroup is the one for native commands; empty: Name-jobs at the top of the hierarchy; "none": none.
	JobCgroup string
	// Jobs is the directory where detached commands are kept; empty: there are none.
	Jobs string
	// FreezeLimit is how long a file system stays frozen that a command froze with fsfreeze; 0: 60 s.
	FreezeLimit time.Duration
	// FreezeFile is where ThawLeft of a later agent finds what is frozen, gone with the guest's next boot; empty: nowhere.
	FreezeFile string
	// Thawed is told in words when that time was up. Nil: nobody asks.
	Thawed func(words string)
	// Reexec says that main calls ChildMain first of all, which confinement and Root need.
	Reexec bool
	// Answer stands for every command of a script, so that none is started: for tests of scripts. Nil: they run.
	Answer func(ctx context.Context, command Command) (*pb.RunResult, error)
}

// Command is a command of a script that is to be answered.
type Command struct {
	// Line is the command as a shell would read it.
	Line string
	// Undo says that a rollback runs it.
	Undo bool
	// Readonly, Touches and Irreversible are what it says of itself.
	Readonly, Irreversible bool
	Touches                []string
}

// Room holds the operations. Release ends its use.
type Room struct {
	config  Config
	run     *proc.Runner
	streams streams
	jobs    jobs
	freezes freezes
}

// New makes the room. It starts nothing.
func New(config Config) *Room {
	if config.Root == "" {
		config.Root = "/"
	}
	if config.MaxTimeout == 0 {
		config.MaxTimeout = 300 * time.Second
	}
	if config.FreezeLimit == 0 {
		config.FreezeLimit = defaultFreeze
	}
	run := proc.New(proc.Config{Name: config.Name, Cgroup: config.Cgroup, JobCgroup: config.JobCgroup,
		Grace: config.Grace, MaxOutput: config.MaxOutput, Reexec: config.Reexec})
	return &Room{config: config, run: run, jobs: jobs{dir: config.Jobs}, freezes: freezes{file: config.FreezeFile, armed: map[string]*due{}}}
}

// Ops are the rows of the room. exec.undo is for the journal, not for scripts.
func (r *Room) Ops() []builtins.Op {
	return []builtins.Op{
		builtins.Native("execute", "run a command and wait for it, or start it and leave it", r.execute).Runs(executed, "command", "args").
			Mutating().Announce("execute").OnError(func(err error) proto.Message {
			return &pb.ExecuteResponse{ExitCode: -1, Error: err.Error()}
		}),
		builtins.Native("exec_start", "start a command and send its output as it comes", r.execStart).Runs(executed, "command", "args").
			Mutating().Announce("exec_stream"),
		builtins.Native("exec_input", "give a started command input, a signal, a window size, or an end", r.execInput).
			Mutating().KeepsNothing().Ordered(inputOrder).Continues(onlyFeeds),
		builtins.Native("list_jobs", "list the commands that are left to themselves, and show what they write", r.listJobs).Announce("jobs"),
		builtins.Script("exec.run", "argv", "", "run a program that says what it does to the guest", r.script).Runs(ran, "argv", "undo").Writes("touches").Mutating().LeavesPart().Plans().
			Unless(func(in proto.Message) bool { return in.(*pb.RunArgs).Readonly }),
		builtins.Script("exec.sh", "command", "", "run a line of shell that says what it does to the guest", r.shell).Runs(lined, "command", "undo").Writes("touches").Mutating().LeavesPart().Plans().
			Unless(func(in proto.Message) bool { return in.(*pb.ShellArgs).Readonly }),
		builtins.Script("exec.undo", "argv", "", "take back what a command did", r.undo).Mutating().Hidden(),
	}
}

// Confinement says how readonly and touches are enforced: "mount-namespace", or "none: " and why not. The first call
// tries it out, which takes some milliseconds.
func (r *Room) Confinement() string { return r.run.Confinement() }

// Sweep ends what scripts' commands of a former agent process left running. It comes before a transaction of that process
// is undone. What does not die within 10 s is an error of cause fault.ErrBusy.
func (r *Room) Sweep(ctx context.Context) error { return r.run.Sweep(ctx) }

// Release lets go of native commands when the agent stops: calls that wait for them return at once, the commands run on,
// and their output is read by a process of its own. Commands that exec_start started are ended, but for jobs; what a command
// froze is thawed. Scripts' commands must have been ended by their ctx before. It waits until no call is left.
func (r *Room) Release() error {
	r.freezes.release()
	r.streams.stop()
	return r.run.Release()
}

// Left ends the commands whose output goes to a connection that has ended. It does not wait for that.
func (r *Room) Left(port, session string) { r.streams.left(port, session) }

// Sends says that a command runs whose output goes to a connection under an id.
func (r *Room) Sends(port, session, id string) bool {
	return r.streams.get(streamKey{port, session, id}) != nil
}

// ChildMain serves the hidden sub-commands exec-confined, exec-drain and exec-job, by which the program calls itself. main
// calls it before anything else, flags too, and ends where it returns true.
func ChildMain() bool { return proc.ChildMain() || jobMain() }
