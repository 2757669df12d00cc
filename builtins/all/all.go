// Package all is the index of the program: the list of its rooms. What an agent can do is in here, or it cannot.
//
// Not here: anything else.
package all

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/account"
	"github.com/quantix-kvm/guest-agent/builtins/clipboard"
	"github.com/quantix-kvm/guest-agent/builtins/clock"
	"github.com/quantix-kvm/guest-agent/builtins/display"
	"github.com/quantix-kvm/guest-agent/builtins/exec"
	"github.com/quantix-kvm/guest-agent/builtins/file"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/host"
	"github.com/quantix-kvm/guest-agent/builtins/internal/desktop"
	"github.com/quantix-kvm/guest-agent/builtins/internal/desktop/helper"
	"github.com/quantix-kvm/guest-agent/builtins/internal/freeze"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/builtins/inventory"
	"github.com/quantix-kvm/guest-agent/builtins/netplan"
	"github.com/quantix-kvm/guest-agent/builtins/pkg"
	"github.com/quantix-kvm/guest-agent/builtins/power"
	"github.com/quantix-kvm/guest-agent/builtins/process"
	"github.com/quantix-kvm/guest-agent/builtins/quiesce"
	"github.com/quantix-kvm/guest-agent/builtins/registry"
	"github.com/quantix-kvm/guest-agent/builtins/service"
	"github.com/quantix-kvm/guest-agent/builtins/telemetry"
	"github.com/quantix-kvm/guest-agent/builtins/tx"
	"github.com/quantix-kvm/guest-agent/builtins/update"
	"github.com/quantix-kvm/guest-agent/builtins/wait"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

//go:generate go run ./internal/gen

// Config is what rooms are made of. The zero value is for a program that only lists them.
type Config struct {
	// Files is the file system to act on, and Dir the directory of the agent's own that it lies in; empty: "/".
	Files *fsys.Root
	Dir   string
	// Version is the agent's own. Optional.
	Version string
	// Name is what control groups of commands begin with; empty: quantix-kvm.
	Name string
	// Secret returns what later agents of the same state have too, and nobody else; it may return nothing yet. Optional.
	Secret func() []byte
	// Reexec says that main calls ChildMain first of all, which confinement and another Dir need.
	Reexec bool
	// Answer stands for every command of a script, so that none is started: for tests of scripts. Nil: they run.
	Answer func(ctx context.Context, command Command) (*pb.RunResult, error)
	// Burst is called with true when many commands are run at once, and with false when no further ones have come for a
	// while. Optional.
	Burst func(many bool)
	// Protected are paths of the agent's own, which no operation on files changes and no command may say to touch.
	// Optional.
	Protected []string
	// MaxTimeout bounds a native command; 0: 300 s.
	MaxTimeout time.Duration
	// Jobs is the directory where detached commands are kept; empty: there are none.
	Jobs string
	// Leftovers is where the next agent finds in which directories uploads may have been left half done; empty: nowhere.
	Leftovers string
	// FreezeFile is where ThawLeft of a later agent finds what is frozen; empty: nowhere. Left is what it found. State is the
	// agent's own directory, in which transactions write; empty: there are none.
	FreezeFile string
	Left       Left
	State      string
	// Spool is a directory, on the same file system, for long output of commands. Optional.
	Spool string
	// FreezeHooks and ThawHooks are the directories of hooks that run before a freeze and after a thaw. BundledHooks are the
	// hooks that come with the agent. RunScript runs a hook that is a Lua script. All are optional.
	FreezeHooks, ThawHooks string
	BundledHooks           fs.FS
	RunScript              func(ctx context.Context, call *builtins.Call, name string, source []byte, phase string) error
	// Thawed is called with a message when a file system was thawed because its time was up. Optional.
	Thawed func(words string)
	// Clipboard says who may use the clipboard of the desktop in front.
	Clipboard Clipboard
	// DesktopWarn is called with a message when the helper in a desktop session has ended by itself. Optional.
	DesktopWarn func(message string)
	// Machine says that the agent is the one of the running machine, which it may shut down and whose clock and network it may
	// set.
	Machine bool
	// ShutdownFile is where a later agent finds what shutdown is pending; empty: nowhere.
	ShutdownFile string
	// Lock makes the caller the one writer, as a journal's does, and OpenTransaction returns the transaction that is open;
	// nil: there are no transactions.
	Lock            func(ctx context.Context) (release func(), err error)
	OpenTransaction func() *pb.TransactionInfo
	// Update says how the agent is replaced; its Lock is filled in here.
	Update UpdateConfig
	// Frozen is called with true when a file system was found frozen, and with false when none is any more. Optional.
	Frozen func(bool)
	// ProgramFrozen is called in the same way where the agent's own program is on what is frozen, or may be. Optional.
	ProgramFrozen func(bool)
}

// UpdateConfig says how the agent is replaced.
type UpdateConfig = update.Config

// Clipboard says who may use the clipboard.
type Clipboard = clipboard.Config

// Command is a command of a script that is to be answered.
type Command = guest.Command

// Left is what an agent that was killed left frozen.
type Left = freeze.Left

// ThawLeft thaws what an agent that was killed left frozen, as it noted in its Config.FreezeFile. It must be called before
// anything is written to a disk. While that agent lives it does nothing.
func ThawLeft(file string) Left { return freeze.ThawLeft(file) }

// HelperArg is the first argument of this program as the helper in a desktop session.
const HelperArg = desktop.Arg

// HelperMain is the main program of that helper, with what each room does there. It returns the exit code.
func HelperMain() int {
	return helper.Main(func(r *helper.Registry) {
		display.Serve(r)
		clipboard.Serve(r)
	})
}

// Unsupported are the tables of functions, and single functions, that scripts may name and that no room serves yet.
var Unsupported []string

// Rooms are the rooms of one agent.
type Rooms struct {
	list      []builtins.Room
	host      *host.Room
	telemetry *telemetry.Sampler
	commands  *exec.Room
	power     *power.Room
	frozen    *freeze.State
	quiesce   *quiesce.Room
	update    *update.Room
	desktop   *desktop.Desktop
	clipboard *clipboard.Room
}

// New opens the rooms.
func New(c Config) *Rooms {
	frozen := freeze.New(freeze.Config{Note: c.FreezeFile, Own: c.State, Changed: c.Frozen, ProgramFrozen: c.ProgramFrozen})
	processes := proc.Config{
		Name: c.Name, Reexec: c.Reexec, Admit: frozen.CheckCommand, Secret: c.Secret, Burst: c.Burst,
		Spool: proc.Spool{Dir: c.Spool, Enter: frozen.TryEnterOwn},
	}
	live := c.Dir == "" || fsys.IsRoot(c.Dir)
	g := &guest.Guest{
		Files: c.Files, Dir: c.Dir, Live: live, Runner: proc.New(processes), Answer: c.Answer, Protected: c.Protected,
	}
	about := host.New(g, c.Version)
	commands := exec.New(g, exec.Config{
		Commands: processes, MaxTimeout: c.MaxTimeout, Jobs: c.Jobs, Thawed: c.Thawed, Frozen: frozen,
	})
	quiescing := quiesce.New(g, quiesce.Config{
		Machine: c.Machine, Frozen: frozen, Left: c.Left, FreezeHooks: c.FreezeHooks, ThawHooks: c.ThawHooks, Bundled: c.BundledHooks,
		RunScript: c.RunScript, Thawed: c.Thawed,
	})
	down := power.New(g, power.Config{
		Machine: c.Machine, Note: c.ShutdownFile, BootID: about.BootID, Lock: c.Lock, Thaw: frozen.ThawAll, Open: c.OpenTransaction,
	})
	c.Update.Lock = c.Lock
	updates := update.New(g, c.Update)
	front := desktop.New(desktop.Config{Files: c.Files, Live: live, Warn: c.DesktopWarn})
	if c.Clipboard.Warn == nil {
		c.Clipboard.Warn = c.DesktopWarn
	}
	pasting := clipboard.New(front, c.Clipboard)
	return &Rooms{
		desktop: front, clipboard: pasting, update: updates,
		commands: commands, host: about, telemetry: telemetry.New(g.Root()), power: down, frozen: frozen, quiesce: quiescing,
		list: []builtins.Room{
			quiescing.Room(), // first: when it closes it reports by commands, which close after it
			file.New(g, file.Config{Leftovers: c.Leftovers, EnterLeftovers: frozen.TryEnterOwn}).Room(),
			commands.Room(),
			about.Room(),
			process.New(g, commands.Owner).Room(),
			down.Room(),
			clock.New(g, clock.Config{Machine: c.Machine}).Room(),
			account.New(g).Room(),
			inventory.New(g).Room(),
			pkg.New(g).Room(),
			registry.New(g).Room(),
			service.New(g).Room(),
			netplan.New(g, netplan.Config{Machine: c.Machine}).Room(),
			display.New(g, display.InSession(front)).Room(),
			tx.Room(),
			updates.Room(),
			wait.New(g).Room(),
			pasting.Room(),
		},
	}
}

// Frozen is what hosts have frozen.
func (r *Rooms) Frozen() *freeze.State { return r.frozen }

// FrozenStatus describes it, for get_status.
func (r *Rooms) FrozenStatus() []*pb.FrozenStatus { return r.quiesce.Status() }

// Notices returns the events that are sent to each host that connects.
func (r *Rooms) Notices() []*pb.ErrorEvent { return append(r.quiesce.Notices(), r.update.Notices()...) }

// UpdateStatus returns the state of an update of the agent, for get_status.
func (r *Rooms) UpdateStatus() *pb.UpdateStatus { return r.update.Status() }

// ConfirmUpdate makes the program of this process the installed one, where it is on trial. GiveUpUpdate notes that no host was
// heard in time, so that the next start is of the former one.
func (r *Rooms) ConfirmUpdate() error { return r.update.Confirm() }

// GiveUpUpdate is the contrary of ConfirmUpdate.
func (r *Rooms) GiveUpUpdate(why error) error { return r.update.GiveUp(why) }

// SessionsChanged says that a user has logged on or off, or that another one is in front.
func (r *Rooms) SessionsChanged() { r.desktop.Changed() }

// Desktop describes the desktop in front, for get_status.
func (r *Rooms) Desktop() *pb.DesktopStatus { return r.desktop.Status() }

// HasRemotes reports whether a file system is mounted whose server may not answer.
func (r *Rooms) HasRemotes() bool { return r.commands.HasRemotes() }

// CheckRemotes returns an error, of cause fault.ErrBusy, if a request would meet a file system whose server does not
// answer.
func (r *Rooms) CheckRemotes(ctx context.Context, access builtins.Access) error {
	return r.commands.CheckRemotes(ctx, access)
}

// List are the rooms. The slice is Rooms' own.
func (r *Rooms) List() []builtins.Room { return r.list }

// Named returns the room of a name; one that is not there is a programmer's mistake.
func (r *Rooms) Named(name string) builtins.Room {
	for _, room := range r.list {
		if room.Name == name {
			return room
		}
	}
	panic("there is no room " + name)
}

// Ready describes the guest, for agent_ready.
func (r *Rooms) Ready(ctx context.Context) *pb.AgentReadyEvent {
	ready := r.host.Ready(ctx)
	if pending := r.power.Pending(); pending.GetError() == "" { // what failed is for get_status
		ready.PendingShutdown = pending
	}
	return ready
}

// PendingShutdown returns the shutdown that is pending, or the last one that failed; nil: there is none.
func (r *Rooms) PendingShutdown() *pb.PendingShutdown { return r.power.Pending() }

// Start begins what rooms do by themselves in an agent that serves hosts.
func (r *Rooms) Start() {
	for _, room := range r.list {
		if room.Start != nil {
			room.Start()
		}
	}
}

// Telemetry measures the guest.
func (r *Rooms) Telemetry(ctx context.Context) *pb.TelemetryReport { return r.telemetry.Report(ctx) }

// Watch returns two channels that are served until ctx ends: changed receives when links, addresses or disks have changed in
// what Telemetry returns, and events receives an event for processes that the kernel killed because memory was short.
func (r *Rooms) Watch(ctx context.Context) (changed <-chan struct{}, events <-chan *pb.ErrorEvent) {
	return r.telemetry.Watch(ctx)
}

// Events returns the events for a connection to which the capability is announced, until ctx ends; nil if there are none.
func (r *Rooms) Events(ctx context.Context) (capability string, events <-chan proto.Message) {
	return clipboard.WatchCapability, r.clipboard.Events(ctx)
}

// MachineID identifies this guest, and BootID this boot of it; empty where that is not known. A clone has another machine ID.
func (r *Rooms) MachineID() string { return r.host.MachineID() }

// BootID is the running kernel's.
func (r *Rooms) BootID() string { return r.host.BootID() }

// OEMStrings are what the maker of the machine left in its SMBIOS tables; none where they cannot be read.
func (r *Rooms) OEMStrings() []string { return inventory.OEMStrings() }

// Features are details for get_capabilities, of all rooms.
func (r *Rooms) Features() map[string]string {
	all := map[string]string{}
	for _, room := range r.list {
		if room.Features != nil {
			maps.Copy(all, room.Features())
		}
	}
	return all
}

// SessionClosed drops what only a connection that has ended could have finished.
func (r *Rooms) SessionClosed(port, session string) {
	for _, room := range r.list {
		if room.SessionClosed != nil {
			room.SessionClosed(port, session)
		}
	}
}

// HasStream reports whether a connection will get more events under the id of a request that was answered.
func (r *Rooms) HasStream(port, session, id string) bool {
	for _, room := range r.list {
		if room.HasStream != nil && room.HasStream(port, session, id) {
			return true
		}
	}
	return false
}

// Sweep ends what scripts of an earlier agent process left running. It comes before anything of theirs is taken back.
func (r *Rooms) Sweep(ctx context.Context) (err error) {
	for _, room := range r.list {
		if room.Sweep != nil {
			err = errors.Join(err, room.Sweep(ctx))
		}
	}
	return err
}

// Restored passes on which paths a recovery at early boot has restored.
func (r *Rooms) Restored(ctx context.Context, paths []string) (err error) {
	for _, room := range r.list {
		if room.Restored != nil {
			err = errors.Join(err, room.Restored(ctx, paths))
		}
	}
	return err
}

// Release releases what outlives the agent, so that the calls that wait for it return.
func (r *Rooms) Release() (err error) {
	for _, room := range r.list {
		if room.Release != nil {
			err = errors.Join(err, room.Release())
		}
	}
	return err
}

// Close ends what the rooms have running. No call comes after it.
func (r *Rooms) Close() (err error) {
	for _, room := range r.list {
		if room.Close != nil {
			err = errors.Join(err, room.Close())
		}
	}
	return errors.Join(err, r.desktop.Close(), r.telemetry.Close())
}
