// Package quiesce freezes file systems for a snapshot of the disk, and sees to it that none stays frozen.
//
//	quiesce ─► hooks ─► changes under way end ─► freeze, one after the other: what lies on another first
//	              │                                 │ one fails, or its time is up: all of them thaw
//	              │                                 ▼
//	              │                              frozen, until ─► thaw, of who has the token
//	              │                                 │           ─► timeout_seconds, the end of the agent, or the next agent
//	              ▼                                 ▼
//	           hooks ◄──────────────────────────── thawed: the first that was frozen is the last
//
//	trim ────► the disk learns what is unused
//
// A freeze, and a thaw, is a system call that nothing ends: each is made by a goroutine of its own, on a file that was opened
// before, and what waits for it has a deadline. A freeze that comes to its end too late is thawed by the goroutine that made
// it.
//
// Not here: what is known of frozen file systems beyond this room, and the watch of commands that freeze (internal/freeze,
// exec).
package quiesce

import (
	"context"
	"errors"
	"io/fs"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/freeze"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// kind is that of the objects in Access: their names are mount points, and * for all.
const kind = "filesystem"

// Config says how the room works.
type Config struct {
	// Machine says that the agent is the one of the running machine, and so may freeze its file systems.
	Machine bool
	// Frozen is where it is noted what is frozen. Required.
	Frozen *freeze.State
	// Left is what an agent that was killed left frozen and this one has thawed.
	Left freeze.Left
	// FreezeHooks and ThawHooks are the directories of hooks. Empty: there are none.
	FreezeHooks, ThawHooks string
	// Bundled are hooks that every agent has. Nil: none.
	Bundled fs.FS
	// RunScript runs a Lua hook as a script with the parameter phase, for the host that a call came from. Nil: there are no
	// scripts.
	RunScript func(ctx context.Context, call *builtins.Call, name string, source []byte, phase string) error
	// Thawed is called with a message when something was thawed early. Optional.
	Thawed func(words string)
}

// Room holds the operations. It is safe for concurrent use.
type Room struct {
	config Config
	guest  *guest.Guest
	state
}

// New makes the room for a guest. It starts nothing.
func New(g *guest.Guest, config Config) *Room {
	r := &Room{config: config, guest: g}
	r.init()
	return r
}

// Room is what the table, the executor and the agent know of the room.
func (r *Room) Room() builtins.Room {
	room := builtins.Room{Name: "quiesce", Scope: kind, Start: r.start, Release: r.release, Close: r.release, Ops: []builtins.Op{
		{
			Name: "quiesce", Summary: "freeze file systems for a snapshot, until they are thawed or the time is up",
			Mutates: true, Access: builtins.Of(quiesceAccess), Handler: builtins.Handle(r.quiesce), OnError: failedReply,
		},
		{
			Name: "thaw", Summary: "thaw what was frozen, and report whether it was frozen all the time",
			Mutates: true, Access: builtins.Of(thawAccess), Handler: builtins.Handle(r.thaw), OnError: failedThaw,
		},
		{
			Name: "trim", Summary: "discard the unused blocks of file systems on their disks",
			Mutates: true, Access: builtins.Of(trimAccess), Handler: builtins.Handle(r.trim), OnError: failedTrim,
		},
	}}
	if r.served() == nil {
		for i, capability := range []string{"quiesce", "thaw", "trim"} {
			room.Ops[i].Capability = capability
		}
		room.Features = func() map[string]string {
			return map[string]string{"fsfreeze": "true", "quiesce": "token,hooks,thawed_early"}
		}
	}
	return room
}

func objects(points []string) (access builtins.Access) {
	if len(points) == 0 {
		points = []string{"*"}
	}
	for _, point := range points {
		access.Objects = append(access.Objects, builtins.Object{Kind: kind, Name: point})
	}
	return access
}

// quiesceAccess names no directory of hooks: only those of the configuration are read.
func quiesceAccess(in *pb.QuiesceFilesystemsRequest) builtins.Access { return objects(in.MountPoints) }
func thawAccess(in *pb.ThawFilesystemsRequest) builtins.Access       { return objects(in.MountPoints) }
func trimAccess(in *pb.TrimRequest) builtins.Access                  { return objects(in.MountPoints) }

// failure is an error with the reply that has the details.
type failure struct {
	error
	reply proto.Message
}

// Unwrap returns the cause.
func (f *failure) Unwrap() error { return f.error }

// failedReply is the reply to a freeze that failed.
func failedReply(err error) proto.Message {
	reply := &pb.QuiesceFilesystemsResponse{}
	var f *failure
	if errors.As(err, &f) {
		reply = f.reply.(*pb.QuiesceFilesystemsResponse)
	}
	reply.Success, reply.Error = false, err.Error()
	return reply
}

// failedThaw is the reply to a thaw that failed.
func failedThaw(err error) proto.Message {
	reply := &pb.ThawFilesystemsResponse{}
	var f *failure
	if errors.As(err, &f) {
		reply = f.reply.(*pb.ThawFilesystemsResponse)
	}
	reply.Success, reply.Error = false, err.Error()
	return reply
}

// failedTrim is the reply to a trim that failed.
func failedTrim(err error) proto.Message {
	reply := &pb.TrimResponse{}
	var f *failure
	if errors.As(err, &f) {
		reply = f.reply.(*pb.TrimResponse)
	}
	reply.Error = err.Error()
	return reply
}
