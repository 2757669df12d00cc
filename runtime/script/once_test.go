package script

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/runtime/journal"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// printOf is the fingerprint of a request with a source of its own.
func printOf(request *pb.RunScriptRequest) string {
	return string(fingerprint([]byte("key"), request))
}

// Each of these requests is another one than all others.
func TestDifferentRequestsHaveDifferentFingerprints(t *testing.T) {
	params := func(v ...any) *structpb.Struct {
		s := &structpb.Struct{Fields: map[string]*structpb.Value{}}
		for i := 0; i < len(v); i += 2 {
			value, err := structpb.NewValue(v[i+1])
			if err != nil {
				t.Fatal(err)
			}
			s.Fields[v[i].(string)] = value
		}
		return s
	}
	type table = map[string]any
	seen := map[string]int{}
	for i, request := range []*pb.RunScriptRequest{
		{}, {Name: "a"}, {Source: []byte("a")}, {Name: "a", Source: []byte("a")},
		{Params: params("a", nil)}, {Params: params("a", false)}, {Params: params("a", true)}, {Params: params("a", 0)}, {Params: params("a", "")},
		{Params: params("a", "0")}, {Params: params("a", "t")}, {Params: params("a", []any{})}, {Params: params("a", table{})},
		{Params: params("a", []any{"x", "y"})}, {Params: params("a", []any{"y", "x"})}, {Params: params("a", []any{[]any{"x"}, "y"})},
		{Params: params("a", table{"x": "y"})}, {Params: params("a", "x", "b", "y")}, {Params: params("a", "xb", "y", "")},
		{Params: params("a", math.Inf(1))}, {Params: params("a", math.NaN())},
		// A true that is a false with something after it could be taken for one before a name t.
		{Params: params("a", []any{table{"!": false, "t": nil}, "v", table{"!": true, "0": "v"}})},
		{Params: params("a", []any{table{"!": true, "0": "v"}, table{"!": false, "t": nil}, "v"})},
		{Secrets: map[string]string{"a": "x"}}, {Secrets: map[string]string{"a": "y"}}, {Secrets: map[string]string{"a": "", "x": ""}},
		{Attachments: []*pb.Attachment{{Name: "a"}}}, {Attachments: []*pb.Attachment{{Name: "a", Data: []byte("x")}}},
		{Attachments: []*pb.Attachment{{Name: "a"}, {Name: "x"}}}, {Attachments: []*pb.Attachment{{Name: "ax"}}},
		{Modules: map[string][]byte{"a": nil}}, {Modules: map[string][]byte{"a": []byte("x")}},
		{MemoryLimitBytes: 16 << 20}, {Allow: []string{"file"}}, {Allow: []string{"file", "exec"}}, {Allow: []string{"fileexec"}}, {Allow: []string{""}},
	} {
		print := printOf(request)
		if other, twice := seen[print]; twice {
			t.Errorf("requests %d and %d look the same: %v", other, i, request)
		}
		seen[print] = i
	}
}

// What does not make it another request: how the encoding of a map came out, how long it may take, and whether somebody
// listens.
func TestTheSameRequestHasTheSameFingerprint(t *testing.T) {
	request := &pb.RunScriptRequest{Name: "a", Secrets: map[string]string{}, Modules: map[string][]byte{}, Params: &structpb.Struct{Fields: map[string]*structpb.Value{}}}
	for i := range 20 {
		name := fmt.Sprint("n", i)
		request.Secrets[name], request.Modules[name] = name, []byte(name)
		request.Params.Fields[name] = structpb.NewBoolValue(i%2 == 0)
	}
	want := printOf(request)
	for range 20 {
		if got := printOf(proto.Clone(request).(*pb.RunScriptRequest)); got != want {
			t.Fatal("it is another one")
		}
	}
	same := proto.Clone(request).(*pb.RunScriptRequest)
	same.TimeoutSeconds, same.Events, same.Key, same.ExpectSha256 = 7, true, "key", "x"
	if printOf(same) != want {
		t.Error("its time, its key or its events made it another one")
	}
	if bytes.Equal(fingerprint([]byte("key"), request), fingerprint([]byte("other"), request)) {
		t.Error("it does not depend on the key, so that a secret can be guessed from what is stored")
	}
}

// Of any two values the fingerprints are equal if and only if they are the same value.
func FuzzFingerprint(f *testing.F) {
	seeds := []*structpb.Struct{{}}
	for _, text := range []string{`{"a":[true,false,null,"t",1]}`, `{"a":{"!":true,"0":1}}`, `{"a":{"!":false,"t":null}}`} {
		s := &structpb.Struct{}
		if err := s.UnmarshalJSON([]byte(text)); err != nil {
			f.Fatal(err)
		}
		seeds = append(seeds, s)
	}
	for _, one := range seeds {
		for _, other := range seeds {
			a, _ := proto.Marshal(one)
			b, _ := proto.Marshal(other)
			f.Add(a, b)
		}
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		one, other := &structpb.Struct{}, &structpb.Struct{}
		if proto.Unmarshal(a, one) != nil || proto.Unmarshal(b, other) != nil {
			return
		}
		same := canonicalText(one) == canonicalText(other)
		prints := printOf(&pb.RunScriptRequest{Params: one}) == printOf(&pb.RunScriptRequest{Params: other})
		if same != prints {
			t.Errorf("%v and %v: the same is %v, the fingerprints say %v", one, other, same, prints)
		}
	})
}

// canonicalText writes a value so that two are equal if and only if the values are: quoted, sorted, with brackets.
func canonicalText(s *structpb.Struct) string {
	var value func(v *structpb.Value) string
	fields := func(s *structpb.Struct) string {
		text := "{"
		m := map[string]string{}
		for name, v := range s.GetFields() {
			m[name] = value(v)
		}
		return text + fmt.Sprintf("%#v", m) + "}" // which fmt sorts
	}
	value = func(v *structpb.Value) string {
		switch kind := v.GetKind().(type) {
		case *structpb.Value_NumberValue:
			return fmt.Sprint("n", math.Float64bits(kind.NumberValue))
		case *structpb.Value_StringValue:
			return fmt.Sprintf("%q", []byte(kind.StringValue))
		case *structpb.Value_BoolValue:
			return fmt.Sprint(kind.BoolValue)
		case *structpb.Value_StructValue:
			return fields(kind.StructValue)
		case *structpb.Value_ListValue:
			var list []string
			for _, element := range kind.ListValue.GetValues() {
				list = append(list, value(element))
			}
			return "[" + strings.Join(list, ",") + "]"
		}
		return "null"
	}
	return fields(s)
}

// After a commit the stored reply counts for everybody under the key, after a rollback for the same message alone.
func TestReplay(t *testing.T) {
	m := New(Config{Secret: func() []byte { return []byte("key") }})
	committed, rolledBack := pb.ScriptStatus_SCRIPT_STATUS_COMMITTED, pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK
	for _, c := range []struct {
		print, id string
		reply     *pb.RunScriptResponse
		want      string
	}{
		{"print", "id", &pb.RunScriptResponse{Status: committed}, "replayed"},
		{"print", "new", &pb.RunScriptResponse{Status: committed}, "replayed"},
		{"other", "id", &pb.RunScriptResponse{Status: committed}, "key_conflict"},
		{"print", "id", &pb.RunScriptResponse{Status: rolledBack}, "replayed"},
		{"print", "new", &pb.RunScriptResponse{Status: rolledBack}, ""},
		{"other", "new", &pb.RunScriptResponse{Status: rolledBack}, "key_conflict"},
		{"print", "id", nil, ""},
	} {
		r := &run{manager: m, request: &pb.RunScriptRequest{}, call: &builtins.Call{ID: "id"}, print: []byte("print")}
		got := r.replay(&pb.JournalEntry{Begin: &pb.JournalBegin{MessageId: c.id, Fingerprint: []byte(c.print)}, Reply: c.reply})
		words := got.GetError().GetKind()
		if got.GetReplayed() {
			words = "replayed"
		}
		if words != c.want {
			t.Errorf("%s, %s, %v: %v, want %q", c.print, c.id, c.reply, got, c.want)
		}
	}
}

// A second request under a key waits for the first, gets its own copy of the reply, and gives up in its own time.
func TestAttach(t *testing.T) {
	m := New(Config{})
	first := &run{manager: m, call: &builtins.Call{ID: "1"}, key: "key", print: []byte("print"), ended: make(chan struct{})}
	m.keys["key"] = first
	second := func(print string) *run {
		return &run{manager: m, call: &builtins.Call{ID: "2"}, key: "key", print: []byte(print)}
	}
	if reply, leave := second("other").earlier(t.Context()); reply.GetError().GetKind() != "key_conflict" || leave != nil {
		t.Error(reply)
	}
	for kind, cause := range map[string]error{"timeout": context.DeadlineExceeded, "cancelled": builtins.ErrStopping, "busy": fault.ErrBusy} {
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(cause)
		reply, leave := second("print").earlier(ctx)
		if reply.GetError().GetKind() != kind || reply.Status != pb.ScriptStatus_SCRIPT_STATUS_REFUSED || leave != nil {
			t.Errorf("%s: %v", kind, reply)
		}
	}
	replies := make(chan *pb.RunScriptResponse)
	go func() { reply, _ := second("print").earlier(context.Background()); replies <- reply }()
	first.reply = &pb.RunScriptResponse{Status: pb.ScriptStatus_SCRIPT_STATUS_COMMITTED, TransactionId: "tx"}
	close(first.ended)
	if reply := <-replies; !reply.Replayed || reply.TransactionId != "tx" || first.reply.Replayed {
		t.Error(reply, first.reply)
	}
	first.reply = nil // it panicked
	if reply, _ := second("print").earlier(t.Context()); reply.GetError().GetKind() != "internal" {
		t.Error(reply)
	}
}

// What is refused before anything runs, and as what.
func TestWhatIsRefused(t *testing.T) {
	pool := sandbox.New(sandbox.Config{})
	defer pool.Close()
	files, err := fsys.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	stored, err := journal.Open(journal.Config{Dir: filepath.Join(t.TempDir(), "tx"), Root: files})
	if err != nil {
		t.Fatal(err)
	}
	defer stored.Close()
	m := New(Config{Pool: pool, Library: NewLibrary(100), Secret: func() []byte { return []byte("key") }, Journal: stored, Files: files})
	for words, request := range map[string]*pb.RunScriptRequest{
		"params: give a script's name or its source":      {},
		"not_found: no script is named x":                 {Name: "x"},
		`params: "../x" is no name of a script`:           {Name: "../x"},
		"params: memory_limit_bytes 1 is less than":       {Source: []byte("return 1"), MemoryLimitBytes: 1},
		"params: memory_limit_bytes 1099511627776 is mor": {Source: []byte("return 1"), MemoryLimitBytes: 1 << 40},
		`params: two attachments are named "a"`:           {Source: []byte("return 1"), Attachments: []*pb.Attachment{{Name: "a"}, {Name: "a"}}},
		"policy: the script's SHA-256 is":                 {Source: []byte("return 1"), ExpectSha256: "00"},
		"params: the time for a confirmation is 240h":     {Source: []byte("return 1"), ConfirmSeconds: proto.Uint32(864000)},
	} {
		reply, err := m.runScript(t.Context(), &builtins.Call{ID: "id"}, request)
		if err != nil || reply.Status != pb.ScriptStatus_SCRIPT_STATUS_REFUSED || reply.Stats == nil || reply.TransactionId != "" ||
			!strings.HasPrefix(reply.GetError().GetKind()+": "+reply.Error.Message, words) {
			t.Errorf("%s: %v, %v", words, reply, err)
		}
	}
	if len(m.running)+len(m.keys) > 0 {
		t.Error("what was refused seems to run still")
	}
	if got := refusal(fault.ErrBusy).(*pb.RunScriptResponse); got.Status != pb.ScriptStatus_SCRIPT_STATUS_REFUSED || got.Error.GetKind() != "busy" {
		t.Error(got)
	}
}

func TestNothingRan(t *testing.T) {
	for _, c := range []struct {
		reply *pb.RunScriptResponse
		want  bool
	}{
		{&pb.RunScriptResponse{Error: &pb.ScriptError{Kind: "syntax"}}, true},
		{&pb.RunScriptResponse{Error: &pb.ScriptError{Kind: "params"}}, true},
		{&pb.RunScriptResponse{Error: &pb.ScriptError{Kind: "source"}}, true},
		{&pb.RunScriptResponse{Error: &pb.ScriptError{Kind: "runtime"}}, false},
		{&pb.RunScriptResponse{Error: &pb.ScriptError{Kind: "params"}, Stats: &pb.ScriptStats{Calls: 1}}, false},
		{&pb.RunScriptResponse{Error: &pb.ScriptError{Kind: "params"}, Changes: []*pb.Change{{}}}, false},
	} {
		if got := (&run{}).nothingRan(c.reply); got != c.want {
			t.Errorf("%v: %v", c.reply, got)
		}
	}
}

// Only the error of the refused call itself is one of policy: what else failed with the same code is not.
func TestExplain(t *testing.T) {
	r := &run{refusal: &pb.RunnerError{Code: "refused", Op: "file.write", Object: "/x"}}
	for want, e := range map[string]*pb.ScriptError{
		"policy":  {Kind: "builtin", Code: "refused", Op: "file.write", Object: "/x"},
		"builtin": {Kind: "builtin", Code: "refused", Op: "file.write", Object: "/y"},
		"runtime": {Kind: "runtime", Code: "refused", Op: "file.write", Object: "/x"},
	} {
		if r.explain(e); e.Kind != want {
			t.Errorf("%v, want %s", e, want)
		}
	}
	r.explain(nil)
	(&run{}).explain(&pb.ScriptError{Kind: "builtin"})
}

// Events are numbered, and what was lost in between is counted.
func TestEvents(t *testing.T) {
	var got []*pb.ScriptEvent
	listens := true
	r := &run{hide: newRedactor(map[string]string{"p": "s3cret-word"}), request: &pb.RunScriptRequest{Events: true},
		call: &builtins.Call{ID: "id", Event: func(m proto.Message) bool { got = append(got, m.(*pb.ScriptEvent)); return listens }}}
	line := &pb.LogLine{Message: "it is s3cret-word"}
	r.logged(line)
	listens = false
	r.progressed(proto.Float64(0.5), "with s3cret-word")
	listens = true
	r.progressed(nil, "")
	if len(got) != 3 || got[0].Seq != 1 || got[2].Seq != 3 || got[2].Dropped != 1 || got[0].RequestId != "id" || got[0].Log.At == nil || line.At != nil {
		t.Error(got)
	}
	if strings.Contains(fmt.Sprint(got, r.log), "s3cret-word") {
		t.Error("a secret is told: ", got, r.log)
	}
	r.request.Events = false
	if r.logged(&pb.LogLine{}); len(got) != 3 || len(r.log) != 2 {
		t.Error("whoever did not ask is told")
	}
}

// The event of a recovery says how the transaction ended, and nothing that is not known.
func TestInterrupted(t *testing.T) {
	ended := func(status pb.ScriptStatus) *pb.JournalEntry {
		return &pb.JournalEntry{Begin: &pb.JournalBegin{Script: &pb.ScriptRef{Name: "s"}}, Reply: &pb.RunScriptResponse{Status: status}}
	}
	for _, c := range []struct {
		found   journal.Recovered
		message string
		details int
	}{
		{journal.Recovered{Entry: ended(pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK)}, "rolled back by the recovery", 3},
		{journal.Recovered{Entry: ended(pb.ScriptStatus_SCRIPT_STATUS_COMMITTED)}, "had committed before", 3},
		{journal.Recovered{Entry: ended(pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED)}, "could not be taken back whole", 3},
		{journal.Recovered{Report: journal.Report{Halted: true, Waiting: "/mnt"}}, "waiting for /mnt", 2},
		{journal.Recovered{Report: journal.Report{Halted: true}, Err: fault.ErrCorrupt}, fault.ErrCorrupt.Error(), 1},
	} {
		if e := interrupted(c.found); !strings.Contains(e.Message, c.message) || len(e.Details) != c.details {
			t.Errorf("%v, want %q and %d details", e, c.message, c.details)
		}
	}
}
