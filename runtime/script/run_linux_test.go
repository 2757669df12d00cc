package script_test

import (
	"context"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/runtime/call"
	"github.com/quantix-kvm/guest-agent/runtime/journal"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/runtime/script"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// site is a manager with a journal, of rows that are made up.
type site struct {
	t       *testing.T
	dir     string
	journal *journal.Journal
	calls   *call.Executor
	manager *script.Manager
	overlay error // why there is none
	ids     int
	entries []call.Entry
	done    []string // by test.undo, test.notified and test.settled
	fails   string   // what test.notified and test.settled do not do
}

func newSite(t *testing.T) *site {
	s := &site{t: t, dir: t.TempDir()}
	files, err := fsys.Open(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { files.Close() })
	inverses := call.New(call.Config{Table: builtins.NewTable(s.room()), Files: files, Audit: func(e call.Entry) { s.entries = append(s.entries, e) }})
	if s.journal, err = journal.Open(journal.Config{Dir: filepath.Join(t.TempDir(), "tx"), Root: files, Run: inverses.Undo}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.journal.Close() })
	pool := sandbox.New(sandbox.Config{})
	t.Cleanup(pool.Close)
	overlays := t.TempDir()
	calls := inverses.WithJournal(s.journal, inverses.Table())
	t.Cleanup(calls.Close)
	s.manager = script.New(script.Config{
		Pool: pool, Library: script.NewLibrary(1 << 10), Journal: s.journal, Secret: func() []byte { return []byte("key") }, Files: files,
		Calls: calls, Unsupported: []string{"netplan"},
		Overlay: func() (*fsys.Root, error) {
			if s.overlay != nil {
				return nil, s.overlay
			}
			s.ids++
			return files.Overlay(filepath.Join(overlays, string(rune('a'+s.ids))))
		},
	})
	s.calls = calls.WithRoom(calls.Room()).WithRoom(s.manager.Room())
	return s
}

// room has test.change, which makes a file, test.blind, which no dry run knows, and test.later, which comes after the commit.
func (s *site) room() builtins.Room {
	change := func(ctx context.Context, call *builtins.Call, in *pb.PathArgs) (*pb.Changed, error) {
		if call.DryRun == nil {
			if err := errors.Join(call.Before(ctx, in.Path), os.WriteFile(filepath.Join(s.dir, in.Path), nil, 0o644)); err != nil {
				return nil, err
			}
		}
		call.ReportApplied(&pb.Change{Op: "test.change", Target: in.Path, Action: "created"})
		return &pb.Changed{Changed: true}, nil
	}
	later := func(_ context.Context, call *builtins.Call, in *pb.PathArgs) (*pb.Changed, error) {
		return &pb.Changed{}, call.AfterCommit(builtins.Action{Op: "test.undo", Args: in, Target: in.Path})
	}
	undo := func(_ context.Context, _ *builtins.Call, in *pb.PathArgs) (*pb.Changed, error) {
		s.done = append(s.done, in.Path)
		return &pb.Changed{}, nil
	}
	notify := func(_ context.Context, call *builtins.Call, in *pb.ServiceNotifyArgs) (*pb.Nothing, error) {
		if in.Action == "fail" {
			outlives := builtins.Pending{Action: builtins.Action{Op: "test.settled", Args: in, Target: in.Unit}, Outlives: true}
			return nil, errors.Join(errors.New("it fails"), call.BeforeCommit(outlives))
		}
		return &pb.Nothing{}, call.BeforeCommit(builtins.Pending{
			Action: builtins.Action{Op: "test.notified", Args: in, Target: in.Unit},
			Check:  &builtins.Action{Op: "test.settled", Args: in, Target: in.Unit},
			Covers: map[string]int{"restart": 2, "reload": 1, "start": 1}[in.Action],
		})
	}
	act := func(what string, changes bool) builtins.Handler {
		return builtins.Handle(func(_ context.Context, call *builtins.Call, in *pb.ServiceNotifyArgs) (*pb.Nothing, error) {
			if call.DryRun == nil {
				s.done = append(s.done, what+in.Action+" "+in.Unit)
			}
			if s.fails == what+in.Unit {
				return nil, errors.New("it does not start")
			}
			if changes {
				call.ReportApplied(&pb.Change{Op: "test.notify", Target: in.Unit, Action: in.Action})
			}
			return &pb.Nothing{}, nil
		})
	}
	named := func(name string, h builtins.Handler, f func(*builtins.Op)) builtins.Op {
		op := builtins.Op{
			Name: name, Usage: "(unit, [action])", Summary: "for the test", Handler: h, Mutates: true, Predictable: true,
			Access: builtins.Of(func(in *pb.ServiceNotifyArgs) builtins.Access {
				return builtins.Access{Objects: []builtins.Object{{Kind: "unit", Name: in.Unit}}}
			}),
		}
		f(&op)
		return op
	}
	panics := func(context.Context, *builtins.Call, *pb.PathArgs) (*pb.Changed, error) { panic("oops") }
	look := func(context.Context, *builtins.Call, *pb.PathArgs) (*pb.Changed, error) { return &pb.Changed{}, nil }
	row := func(name string, h builtins.Handler, f func(*builtins.Op)) builtins.Op {
		op := builtins.Op{
			Name: name, Usage: "(path) changed", Summary: "for the test", Handler: h, Mutates: true, Predictable: true, Access: builtins.WritesPath,
		}
		if f != nil {
			f(&op)
		}
		return op
	}
	return builtins.Room{Name: "test", Scope: builtins.ScopePaths, Ops: []builtins.Op{
		row("test.change", builtins.Handle(change), nil),
		row("test.blind", builtins.Handle(change), func(op *builtins.Op) { op.Predictable = false }),
		row("test.later", builtins.Handle(later), nil),
		row("test.panics", builtins.Handle(panics), nil),
		row("test.look", builtins.Handle(look), func(op *builtins.Op) { op.Mutates, op.Access = false, builtins.ReadsPath }),
		row("test.undo", builtins.Handle(undo), func(op *builtins.Op) { op.Internal = true }),
		named("test.notify", builtins.Handle(notify), func(op *builtins.Op) { op.Defers = "test.notified" }),
		named("test.notified", act("", true), func(op *builtins.Op) { op.Internal = true }),
		named("test.settled", act("look ", false), func(op *builtins.Op) { op.Internal, op.Mutates = true, false }),
	}}
}

func (s *site) run(id string, request *pb.RunScriptRequest) *pb.RunScriptResponse {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	reply, err := s.calls.Execute(ctx, &builtins.Call{ID: id, Port: "port"}, s.calls.Native(request), request)
	if err != nil {
		s.t.Fatal(err)
	}
	return reply.(*pb.RunScriptResponse)
}

func source(text string) *pb.RunScriptRequest { return &pb.RunScriptRequest{Source: []byte(text)} }

func (s *site) there(path string) bool {
	_, err := os.Lstat(filepath.Join(s.dir, path))
	return !errors.Is(err, fs.ErrNotExist)
}

// transactions are those that are stored.
func (s *site) transactions() int {
	s.t.Helper()
	list, _, err := s.journal.List("", 100, func(string) bool { return true })
	if err != nil {
		s.t.Fatal(err)
	}
	return len(list)
}

func TestHowARunEnds(t *testing.T) {
	s := newSite(t)
	const committed, rolledBack, refused = pb.ScriptStatus_SCRIPT_STATUS_COMMITTED, pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK, pb.ScriptStatus_SCRIPT_STATUS_REFUSED
	for name, c := range map[string]struct {
		request *pb.RunScriptRequest
		status  pb.ScriptStatus
		kind    string
		stays   bool // what it changed
		known   bool // it has the id of a transaction
	}{
		"well":                    {source(`return test.change("/well")`), committed, "", true, true},
		"error":                   {source(`test.change("/error") error("x")`), rolledBack, "runtime", false, true},
		"syntax":                  {source(`this is none`), refused, "syntax", false, false},
		"params":                  {&pb.RunScriptRequest{Source: []byte("return 1"), Params: number(math.NaN())}, refused, "params", false, false},
		"readonly":                {source(`return script {name = "a", readonly = true, run = function() return test.look("/x") end}`), committed, "", false, false},
		"readonly params":         {&pb.RunScriptRequest{Source: []byte(`return script {name = "a", readonly = true, run = function() end}`), Params: number(math.NaN())}, refused, "params", false, false},
		"readonly change":         {source(`return script {name = "a", readonly = true, run = function() test.change("/readonly change") end}`), rolledBack, "builtin", false, false},
		"panic":                   {source(`test.change("/panic") test.panics("/x")`), rolledBack, "builtin", false, true},
		"internal":                {source(`test.change("/internal") test.undo("/x")`), rolledBack, "", false, true},
		"confirm, and nothing to": {source(`return script {name = "a", confirm = 5, run = function() end}`), committed, "", false, true},
		"confirm for too long":    {source(`return script {name = "a", confirm = "9000h", run = function() end}`), refused, "params", false, false},
		"needs nothing known":     {source(`return script {name = "a", needs = {"nothing"}, run = function() end}`), refused, "source", false, false},
		"allows nothing known":    {&pb.RunScriptRequest{Source: []byte("return 1"), Allow: []string{"nothing"}}, refused, "params", false, false},
		"allows another path":     {&pb.RunScriptRequest{Source: []byte(`test.change("/allows another path")`), Allow: []string{"test:/other"}}, rolledBack, "policy", false, true},
		"caught":                  {&pb.RunScriptRequest{Source: []byte(`test.change("/caught") pcall(test.change, "/x")`), Allow: []string{"test:/caught"}}, committed, "", true, true},
	} {
		reply := s.run("id "+name, c.request)
		if reply.Status != c.status || c.kind != "" && reply.GetError().GetKind() != c.kind || (reply.Error == nil) != (c.status == committed) ||
			(reply.TransactionId != "") != c.known || s.there("/"+name) != c.stays || reply.Script == nil {
			t.Errorf("%s: %v", name, reply)
		}
		for _, change := range reply.Changes {
			if want := map[bool]pb.ChangeState{true: pb.ChangeState_CHANGE_STATE_APPLIED, false: pb.ChangeState_CHANGE_STATE_UNDONE}[c.stays]; change.State != want {
				t.Errorf("%s: %v", name, change)
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	release, err := s.journal.Lock(ctx)
	if err != nil {
		t.Fatal("one of them is the writer still: ", err)
	}
	release()
	if s.there("/x") {
		t.Error("what was refused was done")
	}
}

func number(n float64) *structpb.Struct {
	return &structpb.Struct{Fields: map[string]*structpb.Value{"n": structpb.NewNumberValue(n)}}
}

func TestHowADryRunEnds(t *testing.T) {
	s := newSite(t)
	const would, unknown = pb.ChangeState_CHANGE_STATE_WOULD, pb.ChangeState_CHANGE_STATE_UNKNOWN
	for name, c := range map[string]struct {
		text   string
		status pb.ScriptStatus
		kind   string
		states []pb.ChangeState
		result bool
	}{
		"well":    {`return test.change("/x")`, pb.ScriptStatus_SCRIPT_STATUS_DRY_RUN, "", []pb.ChangeState{would}, true},
		"error":   {`test.change("/x") error("x")`, pb.ScriptStatus_SCRIPT_STATUS_DRY_RUN, "runtime", []pb.ChangeState{would}, false},
		"ends":    {`test.change("/x") test.blind("/y") return 1`, pb.ScriptStatus_SCRIPT_STATUS_DRY_RUN, "", []pb.ChangeState{would, unknown}, false},
		"caught":  {`pcall(test.blind, "/y") test.change("/x") return 1`, pb.ScriptStatus_SCRIPT_STATUS_DRY_RUN, "", []pb.ChangeState{unknown}, false},
		"later":   {`test.later("/x") return 1`, pb.ScriptStatus_SCRIPT_STATUS_DRY_RUN, "", nil, true},
		"syntax":  {`this is none`, pb.ScriptStatus_SCRIPT_STATUS_REFUSED, "syntax", nil, false},
		"unknown": {`nothing.at_all()`, pb.ScriptStatus_SCRIPT_STATUS_DRY_RUN, "runtime", nil, false},
	} {
		request := source(c.text)
		request.DryRun = true
		reply := s.run("id", request) // always the same: nothing of it is known by a key
		var states []pb.ChangeState
		for _, change := range reply.Changes {
			states = append(states, change.State)
		}
		if reply.Status != c.status || reply.GetError().GetKind() != c.kind || !slices.Equal(states, c.states) || reply.TransactionId != "" ||
			reply.Replayed || (reply.Result != nil) != c.result {
			t.Errorf("%s: %v", name, reply)
		}
		if after := reply.AfterCommit; (name == "later") != (len(after) == 1 && after[0].State == would && after[0].Target == "/x") {
			t.Errorf("%s: after the commit would come %v", name, after)
		}
	}
	request := source("return 1")
	request.DryRun, request.Params = true, number(math.Inf(1))
	if reply := s.run("id", request); reply.Status != pb.ScriptStatus_SCRIPT_STATUS_REFUSED || reply.GetError().GetKind() != "params" {
		t.Error(reply)
	}
	s.overlay = fault.Unsupported("no overlays here")
	if reply := s.run("id", request); reply.Status != pb.ScriptStatus_SCRIPT_STATUS_REFUSED || reply.GetError().GetKind() != "unsupported" {
		t.Error(reply)
	}
	if s.there("/x") || s.there("/y") || s.transactions() > 0 || len(s.done) > 0 {
		t.Error("a dry run did something")
	}
	for _, e := range s.entries {
		if !e.DryRun || e.Transaction != "" {
			t.Errorf("audited as %s %+v", e.Operation, e)
		}
	}
}

// A request is done once: its key, or else its id, names it from then on.
func TestARequestIsDoneOnce(t *testing.T) {
	s := newSite(t)
	with := func(key, text string) *pb.RunScriptRequest {
		request := source(text)
		request.Key = key
		return request
	}
	const well, fails = `return test.change("/x")`, `test.change("/y") error("x")`
	for i, c := range []struct {
		id      string
		request *pb.RunScriptRequest
		want    string
		stored  int // transactions afterwards
	}{
		{"1", source(well), "COMMITTED", 1},
		{"1", source(well), "replayed COMMITTED", 1},
		{"1", source(well + " "), "key_conflict", 1},
		{"2", with("1", well), "replayed COMMITTED", 1},
		{"3", with("key", fails), "ROLLED_BACK", 2},
		{"3", with("key", fails), "replayed ROLLED_BACK", 2},
		{"3", with("key", well), "key_conflict", 2},
		{"4", with("key", fails), "ROLLED_BACK", 3},
		{"5", with("syntax", "this is none"), "syntax", 3},
		{"5", with("syntax", well), "COMMITTED", 4}, // what was refused has used no key
	} {
		reply := s.run(c.id, c.request)
		words := strings.TrimPrefix(reply.Status.String(), "SCRIPT_STATUS_")
		if reply.Status == pb.ScriptStatus_SCRIPT_STATUS_REFUSED {
			words = reply.GetError().GetKind()
		}
		if reply.Replayed {
			words = "replayed " + words
		}
		if words != c.want || s.transactions() != c.stored {
			t.Errorf("%d: %q, %d transactions, want %q, %d: %v", i, words, s.transactions(), c.want, c.stored, reply)
		}
	}
}

// What comes after the commit is named in the reply, and stored with it.
func TestWhatComesAfterTheCommitOfAScript(t *testing.T) {
	s := newSite(t)
	reply := s.run("1", source(`test.later("/x") pcall(function() test.later("/y") error("x") end)`))
	if len(reply.AfterCommit) != 2 || !slices.Equal(s.done, []string{"/x", "/y"}) {
		t.Errorf("%q was done: %v", s.done, reply)
	}
	s.done = nil
	if reply := s.run("2", source(`test.later("/x") error("x")`)); len(reply.AfterCommit) > 0 || len(s.done) > 0 {
		t.Errorf("%q was done: %v", s.done, reply)
	}
	request := &pb.TransactionsRequest{}
	out, err := s.calls.Execute(t.Context(), &builtins.Call{}, s.calls.Native(request), request)
	if list := out.(*pb.TransactionsResponse).GetTransactions(); err != nil || len(list) != 2 {
		t.Fatal(list, err)
	}
	request.TransactionId = "none"
	if _, err := s.calls.Execute(t.Context(), &builtins.Call{}, s.calls.Native(request), request); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// Each call of a script is audited with the transaction, and the run with what came of it.
func TestTheAuditOfAScript(t *testing.T) {
	s := newSite(t)
	request := source(`test.look("/x") test.change("/y") pcall(test.change, "/z") pcall(test.change)`)
	request.Allow = []string{"test:/x", "test:/y"}
	reply := s.run("id", request)
	var got []string
	for _, e := range s.entries {
		got = append(got, strings.Join([]string{e.Operation, strings.Join(e.Paths, " "), e.Outcome}, ","))
		if e.Transaction != reply.TransactionId || e.ID != "id" || e.Port != "port" || (e.Cause != "") != (e.Outcome == "refused") {
			t.Errorf("%+v", e)
		}
	}
	want := []string{"test.look,/x,ok", "test.change,/y,ok", "test.change,/z,refused", "test.change,,invalid", "run_script,,ok"}
	if reply.Error != nil || !slices.Equal(got, want) {
		t.Errorf("%q, want %q: %v", got, want, reply)
	}
}

func TestCancel(t *testing.T) {
	s := newSite(t)
	if s.manager.Cancel(&pb.CancelRequest{Key: "key"}, func(string) bool { return true }) || s.manager.Cancel(&pb.CancelRequest{}, func(string) bool { return true }) {
		t.Error("cancelled what does not run")
	}
	release, err := s.journal.Lock(t.Context()) // so that the run waits
	if err != nil {
		t.Fatal(err)
	}
	request := source("return 1")
	request.Key = "key"
	replies := make(chan *pb.RunScriptResponse)
	go func() { replies <- s.run("id", request) }()
	for !s.manager.Cancel(&pb.CancelRequest{Key: "key"}, func(string) bool { return true }) {
		time.Sleep(time.Millisecond)
	}
	if reply := <-replies; reply.Status != pb.ScriptStatus_SCRIPT_STATUS_REFUSED || reply.GetError().GetKind() != "cancelled" {
		t.Error(reply)
	}
	release()
}

// What is notified is collected, done once after the last line and before the commit, where a restart stands for a reload, and
// only then looked at.
func TestWhatComesBeforeTheCommit(t *testing.T) {
	const notes = `test.notify("a", "reload") test.change("/x") test.notify("b", "restart") test.notify("a", "restart")
test.notify("c", "start") test.notify("c", "reload") test.notify("c", "start") test.notify("b", "reload") `
	did := []string{"restart a", "restart b", "start c", "reload c"}
	for name, c := range map[string]struct {
		text, fails string
		dry         bool
		status      pb.ScriptStatus
		done        []string
		changes     int
		there       bool
	}{
		"well": {
			notes, "", false, pb.ScriptStatus_SCRIPT_STATUS_COMMITTED,
			append(slices.Clone(did), "look restart a", "look restart b", "look start c", "look reload c"), 5, true,
		},
		"error": {notes + `error("x")`, "", false, pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK, nil, 1, false},
		"fails": {notes, "b", false, pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK, did[:2], 2, false},
		"falls": {notes, "look a", false, pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK, append(slices.Clone(did), "look restart a"), 5, false},
		"outlives": {
			`test.change("/x") pcall(test.notify, "a", "fail")`, "", false, pb.ScriptStatus_SCRIPT_STATUS_COMMITTED, []string{"look fail a"}, 1, true,
		},
		"outlives and fails": {
			`test.change("/x") pcall(test.notify, "a", "fail")`, "look a", false, pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK, []string{"look fail a"}, 1, false,
		},
		"dry run":   {notes, "", true, pb.ScriptStatus_SCRIPT_STATUS_DRY_RUN, nil, 5, false},
		"dry error": {notes, "b", true, pb.ScriptStatus_SCRIPT_STATUS_DRY_RUN, nil, 2, false},
		"caught":    {`pcall(function() test.notify("a", "restart") error("x") end) test.change("/x")`, "", false, pb.ScriptStatus_SCRIPT_STATUS_COMMITTED, []string{"restart a", "look restart a"}, 2, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.fails = c.fails
			request := source(c.text)
			request.DryRun = c.dry
			reply := s.run("1", request)
			if reply.Status != c.status || !slices.Equal(s.done, c.done) || len(reply.Changes) != c.changes || s.there("/x") != c.there {
				t.Errorf("%q was done: %v", s.done, reply)
			}
			if c.fails != "" && (reply.Error.GetKind() != "builtin" || !strings.Contains(reply.Error.Message, "it does not start")) {
				t.Error(reply.Error)
			}
		})
	}
}
