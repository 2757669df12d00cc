package call

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/runtime/policy"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// kit is an executor of made-up rows, and what its audit and its policy were asked.
type kit struct {
	t       *testing.T
	config  Config
	calls   *Executor
	entries []Entry
	panics  []any
	asked   []string
	deny    error // what the policy says
	ran     []string

	// do is what each row does.
	do func(ctx context.Context, call *builtins.Call, path string) error
}

func newKit(t *testing.T) *kit {
	k := &kit{t: t, do: func(context.Context, *builtins.Call, string) error { return nil }}
	k.config = Config{
		Table: builtins.NewTable(k.rooms()...), Policy: k,
		Audit:    func(e Entry) { k.entries = append(k.entries, e) },
		Panicked: func(_ *builtins.Op, value any, _ []byte) { k.panics = append(k.panics, value) },
	}
	k.calls = New(k.config)
	return k
}

// Check makes the kit a policy.
func (k *kit) Check(_ string, op *builtins.Op, _ proto.Message, access builtins.Access) error {
	k.asked = append(k.asked, op.Name)
	if slices.Contains(access.Writes, "/policy panics") {
		panic("policy")
	}
	return k.deny
}

func (k *kit) Sees(port, owner string) bool { return port == owner }

func (k *kit) Denies(port string, op *builtins.Op) bool { return port == "denied" && op.Mutates }

// at is the access of the rows: a path that panics does.
func at(of func(proto.Message) builtins.Access) func(proto.Message) builtins.Access {
	return func(in proto.Message) builtins.Access {
		if in.(interface{ GetPath() string }).GetPath() == "/access panics" {
			panic("access")
		}
		return of(in)
	}
}

// rooms are the made-up ones: test.look and test.change for scripts, test.undo for the journal, and what hosts call.
func (k *kit) rooms() []builtins.Room {
	row := func(name, usage string, h builtins.Handler, change func(*builtins.Op)) builtins.Op {
		op := builtins.Op{Name: name, Usage: usage, Summary: "for the test", Handler: h, Access: at(builtins.WritesPath), Mutates: true}
		if change != nil {
			change(&op)
		}
		return op
	}
	of := func(name string) builtins.Handler {
		return builtins.Handle(func(ctx context.Context, call *builtins.Call, in *pb.PathArgs) (*pb.Changed, error) {
			k.ran = append(k.ran, name+" "+in.Path)
			return &pb.Changed{Changed: true}, k.do(ctx, call, in.Path)
		})
	}
	looks := func(op *builtins.Op) { op.Mutates, op.Access = false, at(builtins.ReadsPath) }
	return []builtins.Room{
		{Name: "test", Scope: builtins.ScopePaths, Ops: []builtins.Op{
			row("test.look", "(path) changed", of("test.look"), looks),
			row("test.change", "(path) changed", of("test.change"), func(op *builtins.Op) { op.Inverse = "test.undo" }),
			row("test.foretold", "(path) changed", of("test.foretold"), func(op *builtins.Op) { op.Predictable = true }),
			row("test.part", "(path) changed", of("test.part"), func(op *builtins.Op) { op.Partial, op.Predictable = true, true }),
			row("test.undo", "(path) changed", of("test.undo"), func(op *builtins.Op) { op.Internal = true }),
		}},
		{Name: "host", Ops: []builtins.Op{
			row("file_stat", "", builtins.Handle(func(ctx context.Context, call *builtins.Call, in *pb.FileStatRequest) (*pb.FileStatResponse, error) {
				return &pb.FileStatResponse{}, k.do(ctx, call, in.Path)
			}), func(op *builtins.Op) {
				looks(op)
				op.Capability = "stat"
			}),
			row("file_delete", "", builtins.Handle(func(ctx context.Context, call *builtins.Call, in *pb.FileDeleteRequest) (*pb.FileDeleteResponse, error) {
				return &pb.FileDeleteResponse{}, k.do(ctx, call, in.Path)
			}), func(op *builtins.Op) {
				op.Capability = "delete"
				op.Routine = builtins.Of(func(in *pb.FileDeleteRequest) bool {
					if in.Path == "/routine panics" {
						panic("routine")
					}
					return in.Path == "/routine"
				})
			}),
			row("create_directory", "", builtins.Handle(func(ctx context.Context, call *builtins.Call, in *pb.CreateDirectoryRequest) (*pb.CreateDirectoryResponse, error) {
				return &pb.CreateDirectoryResponse{}, k.do(ctx, call, in.Path)
			}), func(op *builtins.Op) {
				op.Transaction, op.Inverse = true, "test.undo"
				op.NoTransaction = builtins.Of(func(in *pb.CreateDirectoryRequest) bool { return in.Path == "/bare" })
			}),
		}},
	}
}

// request makes the request of a script.
func request(path string) func(*builtins.Op) (proto.Message, error) {
	return func(*builtins.Op) (proto.Message, error) { return &pb.PathArgs{Path: path}, nil }
}

// last returns the only entry of the audit since the last call.
func (k *kit) last() Entry {
	k.t.Helper()
	if len(k.entries) != 1 {
		k.t.Fatalf("the audit was told of %d calls", len(k.entries))
	}
	e := k.entries[0]
	k.entries = nil
	return e
}

func (k *kit) execute(ctx context.Context, in proto.Message) error {
	_, err := k.calls.Execute(ctx, &builtins.Call{ID: "id", Port: "port"}, k.calls.Native(in), in)
	return err
}

// A call is refused by the script's own word, by its rights, by the end of its time, which costs nothing, and by the policy, in
// this order; nothing runs then, and the audit knows why.
func TestRefusalsComeInOrder(t *testing.T) {
	k := newKit(t)
	k.deny = fault.Wrapf(builtins.ErrPolicy, "refused by a rule")
	over, cancel := context.WithCancelCause(t.Context())
	cancel(fault.Wrapf(context.DeadlineExceeded, "the time is up"))
	rights, err := policy.NewRights(nil, "the script does not declare", []string{"other"}, map[string]builtins.Scope{"test": "", "other": ""})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		config         RunConfig
		ctx            context.Context
		outcome, cause string
		asked          int
		policy         bool // it was that or the rights
	}{
		{RunConfig{Readonly: true, Rights: []*policy.Rights{nil, rights}}, over, "refused", "the script is declared readonly", 0, false},
		{RunConfig{Rights: []*policy.Rights{nil, rights}}, over, "refused", `refused: it needs "test", which the script does not declare`, 0, true},
		{RunConfig{}, over, "timeout", "the time is up", 0, false},
		{RunConfig{}, t.Context(), "refused", "refused by a rule", 1, true},
	} {
		k.asked = nil
		c.config.Call = &builtins.Call{ID: "id", Port: "port"}
		_, out, err := k.calls.Begin(c.config).Call(c.ctx, "test.change", request("/x"))
		e := k.last()
		if out != nil || err == nil || err.Error() != "test.change: "+c.cause || Refused(err) != c.policy || len(k.asked) != c.asked {
			t.Errorf("%s: %v, %v, the policy was asked %d times", c.cause, out, err, len(k.asked))
		}
		if e.Outcome != c.outcome || e.Cause != c.cause || e.Operation != "test.change" || !slices.Equal(e.Paths, []string{"/x"}) ||
			e.ID != "id" || e.Port != "port" || e.Err != err || e.DryRun || e.Transaction != "" {
			t.Errorf("%s: the audit has %+v", c.cause, e)
		}
	}
	for outcome, ctx := range map[string]context.Context{"timeout": over, "refused": t.Context()} {
		if err := k.execute(ctx, &pb.FileStatRequest{Path: "/x"}); err == nil {
			t.Error("not refused")
		}
		if e := k.last(); e.Outcome != outcome || e.Cause == "" || !slices.Equal(e.Paths, []string{"/x"}) {
			t.Errorf("the audit has %+v", e)
		}
	}
	if len(k.ran) > 0 {
		t.Errorf("%q ran", k.ran)
	}
}

// What only looks is not refused to a script that says it only looks.
func TestAReadonlyScriptMayLook(t *testing.T) {
	k := newKit(t)
	op, out, err := k.calls.Begin(RunConfig{Call: &builtins.Call{}, Readonly: true}).Call(t.Context(), "test.look", request("/x"))
	if err != nil || op.Name != "test.look" || !out.(*pb.Changed).Changed {
		t.Error(op, out, err)
	}
	if e := k.last(); e.Outcome != "ok" || e.Cause != "" || e.Err != nil {
		t.Errorf("%+v", e)
	}
}

// A rule that only slows down is a cause as well.
func TestARateLimitIsACause(t *testing.T) {
	k := newKit(t)
	k.deny = fault.Wrapf(fault.ErrBusy, "more than 3 a minute")
	_ = k.execute(t.Context(), &pb.FileStatRequest{Path: "/x"})
	if e := k.last(); e.Outcome != "busy" || e.Cause != "more than 3 a minute" {
		t.Errorf("%+v", e)
	}
}

// The words of an operation may tell of a content, so the audit has the code alone.
func TestTheWordsOfAnOperationAreNotAudited(t *testing.T) {
	k := newKit(t)
	k.do = func(context.Context, *builtins.Call, string) error {
		return fault.Refuse("the kernel made %q of it", "s3cret")
	}
	if err := k.execute(t.Context(), &pb.FileStatRequest{Path: "/x"}); !errors.Is(err, fault.ErrRefused) {
		t.Error(err)
	}
	if e := k.last(); e.Outcome != "refused" || e.Cause != "" {
		t.Errorf("%+v", e)
	}
}

// What a runner makes up reaches the audit as well, and no function.
func TestUnknownAndInternalRowsAndWrongArguments(t *testing.T) {
	k := newKit(t)
	run := k.calls.Begin(RunConfig{Call: &builtins.Call{ID: "id"}})
	for _, name := range []string{"test.undo", "test.nothing", "file_stat", "", strings.Repeat("x", 1000)} {
		op, _, err := run.Call(t.Context(), name, func(*builtins.Op) (proto.Message, error) { t.Error("a request is made"); return nil, nil })
		if op != nil || !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v, %v", name, op, err)
		}
		if e := k.last(); e.Outcome != "unsupported" || e.Cause == "" || len(e.Operation) > longestName || !strings.HasPrefix(name, e.Operation) || e.Op == nil {
			t.Errorf("%s: %+v", name, e)
		}
	}
	op, _, err := run.Call(t.Context(), "test.change", func(*builtins.Op) (proto.Message, error) { return nil, fault.Invalid("no such option") })
	if op == nil || !errors.Is(err, fs.ErrInvalid) || err.Error() != "test.change: no such option" {
		t.Error(op, err)
	}
	if e := k.last(); e.Outcome != "invalid" || e.In != nil || e.Cause != "" || e.Operation != "test.change" {
		t.Errorf("%+v", e)
	}
	if len(k.ran)+len(k.asked) > 0 {
		t.Error(k.ran, k.asked)
	}
}

// A panic costs the call and nothing else, wherever it comes from, and is told.
func TestPanics(t *testing.T) {
	for _, where := range []string{"operation", "access", "policy", "arguments", "routine"} {
		k := newKit(t)
		k.do = func(context.Context, *builtins.Call, string) error { panic("operation") }
		path := "/" + where + " panics"
		bind := request(path)
		if where == "arguments" {
			bind = func(*builtins.Op) (proto.Message, error) { panic("arguments") }
		}
		ways := map[string]func() error{
			"script": func() error {
				_, _, err := k.calls.Begin(RunConfig{Call: &builtins.Call{}}).Call(t.Context(), "test.change", bind)
				return err
			},
			"dry run": func() error {
				_, _, err := k.calls.Begin(RunConfig{Call: &builtins.Call{}, DryRun: &builtins.DryRun{}}).Call(t.Context(), "test.foretold", bind)
				return err
			},
			"native":  func() error { return k.execute(t.Context(), &pb.FileDeleteRequest{Path: path}) },
			"journal": func() error { _, err := k.calls.Undo(t.Context(), "test.undo", &pb.PathArgs{Path: path}); return err },
		}
		if where == "arguments" {
			delete(ways, "native")
			delete(ways, "journal")
		}
		if where == "policy" {
			delete(ways, "journal")
		}
		if where == "routine" { // which only hosts have
			ways = map[string]func() error{"native": ways["native"]}
		}
		for name, way := range ways {
			k.panics = nil
			err := way()
			if !errors.Is(err, fault.ErrInternal) || !strings.Contains(err.Error(), "internal error: "+where) {
				t.Errorf("%s, %s: %v", where, name, err)
			}
			if e := k.last(); len(k.panics) != 1 || k.panics[0] != where || e.Outcome != "internal" {
				t.Errorf("%s, %s: told %v, audited %+v", where, name, k.panics, e)
			}
		}
	}
}

func TestPanicsNeedNobodyToTell(t *testing.T) {
	k := newKit(t)
	k.config.Panicked, k.config.Audit, k.config.Policy = nil, nil, nil
	k.calls = New(k.config)
	k.do = func(context.Context, *builtins.Call, string) error { panic("operation") }
	if err := k.execute(t.Context(), &pb.FileStatRequest{}); !errors.Is(err, fault.ErrInternal) {
		t.Error(err)
	}
}

// An error names the operation, the object and the cause, each once, and keeps its code, its hint and its details.
func TestAnErrorIsNamed(t *testing.T) {
	inner := &fault.Error{Object: "/x", Err: syscall.EROFS, Hint: "hint", Details: map[string]string{"a": "b"}}
	for want, err := range map[string]error{
		"op: plain":                                          errors.New("plain"),
		"op /x: " + syscall.EROFS.Error():                    inner,
		"op: with words: /x: " + syscall.EROFS.Error():       fmt.Errorf("with words: %w", inner),
		"other /x: " + syscall.EROFS.Error():                 &fault.Error{Op: "other", Object: "/x", Err: syscall.EROFS},
		"with words: other: " + fs.ErrExist.Error():          fmt.Errorf("with words: %w", &fault.Error{Op: "other", Err: fs.ErrExist}),
		"op: /x: " + syscall.EROFS.Error() + "; and more: y": fmt.Errorf("%w; and more: %w", inner, errors.New("y")),
	} {
		got := named("op", err)
		if got.Error() != want || fault.Code(got) != fault.Code(err) {
			t.Errorf("%q, code %s, want %q, code %s", got, fault.Code(got), want, fault.Code(err))
		}
		if errors.Is(err, error(inner)) {
			if detail := fault.Detail(got); detail.Details["hint"] != "hint" || detail.Details["a"] != "b" || detail.Op != "op" {
				t.Errorf("%q lost %v", got, detail)
			}
		}
	}
	if named("op", nil) != nil || inner.Op != "" {
		t.Error("no error became one, or the error of somebody else was changed")
	}
}

func TestWhatTheAuditIsTold(t *testing.T) {
	k := newKit(t)
	_ = k.execute(t.Context(), &pb.FileDeleteRequest{Path: "/routine"})
	if len(k.entries) > 0 {
		t.Errorf("what only goes on is told: %+v", k.entries)
	}
	k.do = func(context.Context, *builtins.Call, string) error { return fs.ErrNotExist }
	_ = k.execute(t.Context(), &pb.FileDeleteRequest{Path: "/routine"})
	if e := k.last(); e.Outcome != "not_found" {
		t.Errorf("%+v", e)
	}
	d := &decision{call: &builtins.Call{ID: "id", Port: "port", DryRun: &builtins.DryRun{}}, op: &builtins.Op{Name: "a.b"}, tx: "tx", access: builtins.Access{
		Reads: []string{"/r"}, Writes: []string{"/w"}, Patterns: []string{"/p*"}, Trees: []string{"/w"},
		Commands: []builtins.Command{{Argv: []string{"useradd", "s3cret"}}, {}}, Objects: []builtins.Object{{Kind: "unit", Name: "x"}},
	}}
	e := d.entry(nil, nil, 5)
	if !slices.Equal(e.Paths, []string{"/w", "/r", "/p*"}) || !slices.Equal(e.Programs, []string{"useradd"}) || !slices.Equal(e.Objects, []string{"unit:x"}) ||
		e.Outcome != "ok" || !e.DryRun || e.Transaction != "tx" || e.Took != 5 || e.ID != "id" || e.Port != "port" {
		t.Errorf("%+v", e)
	}
}

// A run of a script never fails as an operation: its reply tells the audit what came of it.
func TestTheAuditOfARun(t *testing.T) {
	op := &builtins.Op{Name: "run_script", Delegates: true}
	for _, c := range []struct {
		in             *pb.RunScriptRequest
		out            proto.Message
		outcome, cause string
		id             string
	}{
		{&pb.RunScriptRequest{}, &pb.RunScriptResponse{TransactionId: "tx"}, "ok", "", "tx"},
		{&pb.RunScriptRequest{DryRun: true}, &pb.RunScriptResponse{}, "ok", "", ""},
		{&pb.RunScriptRequest{}, &pb.RunScriptResponse{Error: &pb.ScriptError{Kind: "error", Message: "s3cret"}, TransactionId: "tx"}, "error", "", "tx"},
		{&pb.RunScriptRequest{}, &pb.RunScriptResponse{Error: &pb.ScriptError{Kind: "policy", Message: "by a rule"}}, "policy", "by a rule", ""},
		{&pb.RunScriptRequest{}, (*pb.RunScriptResponse)(nil), "ok", "", ""},
		{&pb.RunScriptRequest{}, nil, "ok", "", ""},
	} {
		d := &decision{call: &builtins.Call{}, op: op, in: c.in}
		e := d.entry(c.out, nil, 0)
		if e.Outcome != c.outcome || e.Cause != c.cause || e.Transaction != c.id || e.DryRun != c.in.DryRun {
			t.Errorf("%v: %+v", c.out, e)
		}
	}
}

// What takes something back was allowed when it was done.
func TestUndoAsksNoPolicy(t *testing.T) {
	k := newKit(t)
	k.deny = builtins.ErrPolicy
	var undoes bool
	k.do = func(_ context.Context, call *builtins.Call, _ string) error { undoes = call.Undo; return nil }
	for _, name := range []string{"test.undo", "test.change"} {
		if _, err := k.calls.Undo(t.Context(), name, &pb.PathArgs{Path: "/x"}); err != nil || !undoes {
			t.Error(name, undoes, err)
		}
		if e := k.last(); e.ID != "journal" || e.Outcome != "ok" || e.Operation != name {
			t.Errorf("%+v", e)
		}
	}
	if len(k.asked) > 0 {
		t.Errorf("asked of %q", k.asked)
	}
}

// A journal may be older than the agent: what it names may be gone, or take something else.
func TestUndoOfWhatIsNotThereAnyMore(t *testing.T) {
	k := newKit(t)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		ctx   context.Context
		name  string
		args  proto.Message
		cause error
	}{
		{t.Context(), "test.gone", &pb.PathArgs{}, errors.ErrUnsupported},
		{t.Context(), "file_stat", &pb.FileStatRequest{}, errors.ErrUnsupported},
		{t.Context(), "test.undo", &pb.RunArgs{}, fs.ErrInvalid},
		{over, "test.undo", &pb.PathArgs{}, context.Canceled},
	} {
		if _, err := k.calls.Undo(c.ctx, c.name, c.args); !errors.Is(err, c.cause) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if len(k.ran) > 0 {
		t.Errorf("%q ran", k.ran)
	}
}

func TestWhatAnExecutorServes(t *testing.T) {
	k := newKit(t)
	if k.calls.Native(&pb.FileStatRequest{}) == nil || k.calls.Native(&pb.FileReadRequest{}) != nil || k.calls.Table() != k.config.Table {
		t.Error("the rows are not those of the table")
	}
	if got := k.calls.Capabilities("port"); !slices.Equal(got, []string{"delete", "stat"}) {
		t.Error(got)
	}
	if got := k.calls.Capabilities("denied"); !slices.Equal(got, []string{"stat"}) {
		t.Error(got)
	}
	other := k.calls.WithJournal(nil, builtins.NewTable())
	if other.Native(&pb.FileStatRequest{}) != nil || k.calls.Native(&pb.FileStatRequest{}) == nil {
		t.Error("another table is not another's")
	}
	if err := k.execute(t.Context(), &pb.CreateDirectoryRequest{Path: "/x"}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a transaction without a journal: %v", err)
	}
}

// What a call knows of the request that it belongs to.
func TestWhatACallKnows(t *testing.T) {
	k := newKit(t)
	var got *builtins.Call
	k.do = func(_ context.Context, call *builtins.Call, path string) error {
		got = call
		call.ReportApplied(&pb.Change{Target: path})
		return nil
	}
	files := func(string) ([]byte, error) { return []byte("data"), nil }
	run := k.calls.Begin(RunConfig{Call: &builtins.Call{ID: "id", Port: "port", Session: "session"}, Attachment: files})
	for _, path := range []string{"/x", "/y"} {
		if _, _, err := run.Call(t.Context(), "test.change", request(path)); err != nil {
			t.Fatal(err)
		}
	}
	if data, err := got.Attachment("a"); err != nil || string(data) != "data" {
		t.Errorf("%q, %v", data, err)
	}
	if got.ID != "id" || got.Port != "port" || got.Session != "session" || got.Tx != nil || got.Undo {
		t.Errorf("%+v", got)
	}
	if changes := got.Changes(); len(changes) != 2 || changes[1].Target != "/y" || len(run.Changes()) != 2 || len(run.After()) != 0 {
		t.Error(changes)
	}
}
