// Package all is the index of the program: the list of its rooms. What an agent can do is in here, or it cannot.
//
// Not here: anything else.
package all

import (
	"context"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/exec"
	"github.com/quantix-kvm/guest-agent/builtins/file"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/host"
	"github.com/quantix-kvm/guest-agent/builtins/telemetry"
	"github.com/quantix-kvm/guest-agent/builtins/tx"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

//go:generate go run ./internal/gen

// Config is what rooms are made of.
type Config struct {
	// Root is the file system to act on; nil in a program that only lists the rooms.
	Root *fsys.Root
	File file.Config
	Exec exec.Config
	Host host.Config
}

// Unsupported are the tables of functions, and single functions, that scripts may name and that no room serves yet.
var Unsupported = []string{"account", "clipboard", "host.mount", "netplan", "package", "power", "service", "tx.notify", "tx.on_commit"}

// Rooms are the rooms of one agent.
type Rooms struct {
	file      *file.Room
	exec      *exec.Room
	host      *host.Room
	telemetry *telemetry.Sampler
}

// New opens the rooms.
func New(c Config) *Rooms {
	c.Host.Files = c.Root
	return &Rooms{
		file:      file.New(c.Root, c.File),
		exec:      exec.New(c.Exec),
		host:      host.New(c.Host),
		telemetry: telemetry.New(),
	}
}

// Ops are the operations of all rooms.
func (r *Rooms) Ops() []builtins.Op {
	var ops []builtins.Op
	for _, room := range [][]builtins.Op{
		r.file.Ops(),
		r.exec.Ops(),
		r.host.Ops(),
		tx.Ops(),
	} {
		ops = append(ops, room...)
	}
	return ops
}

// Ready tells of the guest, for agent_ready.
func (r *Rooms) Ready(ctx context.Context) *pb.AgentReadyEvent { return r.host.Ready(ctx) }

// Telemetry measures the guest.
func (r *Rooms) Telemetry(ctx context.Context) *pb.TelemetryReport { return r.telemetry.Report(ctx) }

// Features are details for get_capabilities.
func (r *Rooms) Features() map[string]string {
	return map[string]string{"user_context_exec": "true", "exec.confinement": r.exec.Confinement()}
}

// Left drops what only a connection that has ended could have finished.
func (r *Rooms) Left(port, session string) {
	r.file.Left(port, session)
	r.exec.Left(port, session)
}

// Sends says that a command runs whose output goes to a connection under an id.
func (r *Rooms) Sends(port, session, id string) bool { return r.exec.Sends(port, session, id) }

// Sweep ends what scripts of an earlier agent process left running. It comes before anything of theirs is taken back.
func (r *Rooms) Sweep(ctx context.Context) error { return r.exec.Sweep(ctx) }

// Release lets go of commands that outlive the agent; their calls return. It waits for the other commands to end.
func (r *Rooms) Release() error { return r.exec.Release() }

// Close ends what the rooms have running.
func (r *Rooms) Close() error { return r.file.Close() }
