// Package script runs scripts: it finds the source, opens the transaction, feeds the runner, and says what became of it.
//
//	run_script ─► find source ─► read declaration ─► journal.Begin ─► sandbox.Pool.Run
//	                                                                  │ each call
//	                                            runtime/call ◄────────┘
//	reply: status, result, changes ◄── commit or rollback
//
// Not here: Lua and processes (runtime/sandbox), undo (runtime/journal), and what a builtin does.
package script

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/runtime/call"
	"github.com/quantix-kvm/guest-agent/runtime/journal"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Config is what scripts need.
type Config struct {
	// Pool runs them. Required.
	Pool *sandbox.Pool
	// Library finds them by name. Required.
	Library *Library
	// Journal makes a run a transaction. Required.
	Journal *journal.Journal
	// Secret keys the fingerprints of requests; it must be the same from start to start. Required.
	Secret func() []byte
	// Calls runs what scripts call. Required.
	Calls *call.Executor
	// Overlay returns the file system that a dry run changes instead of the guest's. The manager closes it. Required.
	Overlay func() (*fsys.Root, error)
	// Files is the file system that scripts act on, by which their rights are checked. Required.
	Files *fsys.Root
	// Unsupported are the tables of functions that scripts may name and this agent does not have.
	Unsupported []string
	// Spool is a directory where the files that come with scripts are while they wait or run, so that they take no memory.
	// Optional; empty: there is none.
	Spool string
	// Enter begins what writes to Spool, until leave; see journal.Config. Optional.
	Enter func(ctx context.Context) (leave func(), err error)
	// Timeout bounds a run, waiting included, that says nothing else: 0: the limit of the pool.
	Timeout time.Duration
}

// Manager runs scripts, one that may change the guest at a time.
type Manager struct {
	config Config

	mu      sync.Mutex
	running map[*run]context.CancelCauseFunc
	spooled int64           // bytes of all spools
	keys    map[string]*run // what runs, by its key
	// described are the scripts of the last listing, by their digest: a declaration is a function of the source.
	described map[string]*pb.ScriptInfo
}

// New makes a manager.
func New(config Config) *Manager {
	return &Manager{config: config, running: map[*run]context.CancelCauseFunc{}, keys: map[string]*run{}}
}

// Room is what the table knows of the requests about scripts.
func (m *Manager) Room() builtins.Room {
	return builtins.Room{Name: "script", Ops: []builtins.Op{
		{
			Name: "run_script", Summary: "run a Lua script as one transaction", Capability: "run_script",
			Mutates: true, Delegates: true, OnError: refusal, Handler: builtins.Handle(m.runScript),
		},
		{
			Name: "list_scripts", Summary: "list the scripts that can be run by name", Capability: "list_scripts",
			Handler: builtins.Handle(m.listScripts),
		},
		{
			Name: "transactions", Summary: "list or show transactions", Capability: "transactions",
			Handler: builtins.Handle(m.transactions),
		},
		{
			Name: "clean_transactions", Summary: "remove what is left of transactions that could not be rolled back completely",
			Capability: "clean_transactions", Mutates: true, Access: builtins.Of(cleanAccess),
			Handler: builtins.Handle(m.cleanTransactions),
		},
	}}
}

// Running returns how many scripts run, or wait to.
func (m *Manager) Running() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.running)
}

// Cancel stops the runs that a key or a transaction id names, of owners that sees reports true for. It reports whether there
// were any.
func (m *Manager) Cancel(request *pb.CancelRequest, sees func(port string) bool) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	found := false
	for r, cancel := range m.running {
		named := request.Key != "" && r.request.Key == request.Key || request.TransactionId != "" && r.id == request.TransactionId
		if named && sees(r.call.Port) {
			cancel(context.Canceled)
			found = true
		}
	}
	return found
}

// refusal is the reply to a request that did not come as far as runScript.
func refusal(err error) proto.Message {
	reply := builtins.ErrorReply((&pb.RunScriptResponse{}).ProtoReflect().Type(), err).(*pb.RunScriptResponse)
	reply.Status = pb.ScriptStatus_SCRIPT_STATUS_REFUSED
	return reply
}

// refused is a reply to a script that did not run.
func refused(kind, message string) *pb.RunScriptResponse {
	return &pb.RunScriptResponse{
		Status: pb.ScriptStatus_SCRIPT_STATUS_REFUSED, Error: &pb.ScriptError{Kind: kind, Message: message},
		Stats: &pb.ScriptStats{},
	}
}

// runScript never fails as an operation: what went wrong is in the reply.
func (m *Manager) runScript(ctx context.Context, call *builtins.Call, request *pb.RunScriptRequest) (*pb.RunScriptResponse, error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	r := &run{manager: m, call: call, request: request, started: time.Now()}
	m.mu.Lock()
	m.running[r] = stop
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.running, r)
	}()
	return r.do(ctx), nil
}

// identify finds the source of a request and names it.
func (m *Manager) identify(request *pb.RunScriptRequest) (Script, *pb.RunScriptResponse) {
	var s Script
	switch {
	case request.Name == "" && len(request.Source) == 0:
		return s, refused("params", "give a script's name or its source")
	case len(request.Source) == 0:
		found, err := m.config.Library.Find(request.Name)
		if err != nil {
			return s, refused(builtins.ErrorKind(err), err.Error())
		}
		s = found
	default:
		s = Script{Name: scriptName(request), Source: request.Source, SHA256: digest(request.Source)}
	}
	if why := unusable(request, m.config.Pool.Limits()); why != "" {
		return s, refused("params", why)
	}
	return s, unexpected(request, s.SHA256)
}

// scriptName returns what a script is called in messages.
func scriptName(request *pb.RunScriptRequest) string {
	if request.Name == "" {
		return "script.lua"
	}
	return request.Name
}

// unexpected refuses a script that is not the one that the request expects; nil: it is.
func unexpected(request *pb.RunScriptRequest, sha256 string) *pb.RunScriptResponse {
	if want := request.ExpectSha256; want != "" && !strings.EqualFold(want, sha256) {
		return refused("policy", "the script's SHA-256 is "+sha256+", not "+want)
	}
	return nil
}

// maxKey bounds the key of a run, which is stored with it, in bytes.
const maxKey = 256

// unusable names what in a request cannot be met.
func unusable(request *pb.RunScriptRequest, limits sandbox.Limits) string {
	if n := request.MemoryLimitBytes; n > limits.Memory {
		return fmt.Sprintf("memory_limit_bytes %d is more than the agent allows, %d", n, limits.Memory)
	} else if n > 0 && n < 16<<20 {
		return fmt.Sprintf("memory_limit_bytes %d is less than 16 MiB", n)
	}
	seen := map[string]bool{}
	for _, a := range request.Attachments {
		if seen[a.Name] {
			return fmt.Sprintf("two attachments are named %q", a.Name)
		}
		seen[a.Name] = true
	}
	return ""
}

func digest(source []byte) string {
	sum := sha256.Sum256(source)
	return hex.EncodeToString(sum[:])
}

// declares reports whether a script may be a declared one, which names the function script; only a runner knows for sure.
func declares(source []byte) bool { return bytes.Contains(source, []byte("script")) }

// describeTime is how long scripts may take to say what they are: it is but a table.
const describeTime = 5 * time.Second

// declaration asks a runner what a script says of itself. Nil for a plain one.
func (m *Manager) declaration(ctx context.Context, s Script, modules map[string][]byte) (*pb.ScriptDeclaration, *pb.ScriptError) {
	if !declares(s.Source) {
		return nil, nil
	}
	start := &pb.RunnerStart{Name: s.Name, Source: s.Source, Describe: true, Modules: modules, Functions: m.functions(), Unsupported: m.config.Unsupported}
	ctx, cancel := context.WithTimeout(ctx, describeTime)
	defer cancel()
	outcome := m.config.Pool.Run(ctx, sandbox.Job{Start: start, Call: noCall})
	return outcome.Declaration, outcome.Error
}

// noCall answers a script that is only to say what it is.
func noCall(context.Context, *pb.RunnerCall) *pb.RunnerReply {
	return &pb.RunnerReply{Error: &pb.RunnerError{Code: "refused", Message: "a declaration calls nothing"}}
}

// functions are the builtins that scripts may call.
func (m *Manager) functions() []*pb.RunnerFunction {
	var list []*pb.RunnerFunction
	for _, op := range m.config.Calls.Table().Functions() {
		list = append(list, &pb.RunnerFunction{Name: op.Name})
	}
	return list
}
