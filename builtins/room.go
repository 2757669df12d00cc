package builtins

import "context"

// Room is one capability of the guest: its operations, and what it wants to hear of the agent's life. Only Name and Ops are
// required.
type Room struct {
	// Name is what its script rows begin with. A room that scripts do not see has a name as well.
	Name string
	// Ops are its rows.
	Ops []Op
	// Scope says what a script's need "name:object" limits its calls to.
	Scope Scope

	// Features are details for get_capabilities, by name.
	Features func() map[string]string
	// Start begins what the room does by itself in an agent that serves hosts, such as what an earlier process of the agent was
	// about to do. It is called once, before the first call, and does not wait.
	Start func()
	// SessionClosed is called when a connection has ended: what only that could finish is dropped. It does not wait.
	SessionClosed func(port, session string)
	// HasStream reports whether a connection will get more events under the id of a request that was answered.
	HasStream func(port, session, id string) bool
	// Sweep ends what scripts of an earlier agent process left running, and removes what its calls left. It comes before
	// anything of theirs is taken back, and an error keeps that from being done: it is one that something runs which may change
	// files still.
	Sweep func(ctx context.Context) error
	// Restored is told which paths a recovery at early boot has restored, so that whoever read them before reads them again.
	Restored func(ctx context.Context, paths []string) error
	// Release releases what outlives the agent, so that the calls that wait for it return.
	Release func() error
	// Close ends what the room has running. No call comes after it.
	Close func() error
}

// Scope is what a need "room:object" speaks of: paths, commands, or else a kind of Access.Objects, such as "unit".
type Scope string

// The scopes of rooms. ScopeNone: the room can be needed as a whole only.
const (
	ScopeNone     Scope = ""
	ScopePaths    Scope = "path"
	ScopeCommands Scope = "command"
)
