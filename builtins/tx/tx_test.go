package tx_test

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/builtins/tx"
	"github.com/quantix-kvm/guest-agent/runtime/call"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// promises is a transaction that remembers its inverses.
type promises struct {
	builtins.Tx
	op   string
	args proto.Message
}

func (p *promises) Undo(_ context.Context, op string, args proto.Message) error {
	p.op, p.args = op, args
	return nil
}

func do(c *builtins.Call, name string, in proto.Message) (proto.Message, error) {
	table := builtins.NewTable(tx.Room(), all.New(all.Config{}).Named("exec")) // whose exec.undo is the inverse
	return call.New(call.Config{Table: table}).Execute(context.Background(), c, table.Script(name), in)
}

func TestOnRollbackIsAPromise(t *testing.T) {
	kept := &promises{}
	call := &builtins.Call{Tx: kept, Changed: func(c *pb.Change) { t.Error("told of", c) }}
	in := &pb.OnRollbackArgs{Argv: []string{"systemctl", "start", "web"}, User: "web", Timeout: 3, UndoOk: []int32{5}, UndoIf: []string{"test", "-e", "/x"}}
	if _, err := do(call, "tx.on_rollback", in); err != nil {
		t.Fatal(err)
	}
	if want := (&pb.RunArgs{Argv: in.Argv, User: "web", Timeout: 3, UndoOk: in.UndoOk, UndoIf: in.UndoIf}); kept.op != "exec.undo" || !proto.Equal(kept.args, want) {
		t.Errorf("promised is %s %v, want %v", kept.op, kept.args, want)
	}
	for words, wrong := range map[string]*pb.OnRollbackArgs{
		"no command": {}, "negative": {Argv: []string{"x"}, Timeout: -1}, "NUL": {Argv: []string{"x", "\x00"}},
		"undo_ok": {Argv: []string{"x"}, UndoOk: []int32{0}}, "undo_if": {Argv: []string{"x"}, UndoIf: []string{""}},
	} {
		kept.op = ""
		if _, err := do(call, "tx.on_rollback", wrong); err == nil || !strings.Contains(err.Error(), words) || kept.op != "" {
			t.Errorf("%v gives %v", wrong, err)
		}
	}
	if _, err := do(&builtins.Call{}, "tx.on_rollback", in); err == nil {
		t.Error("promised without a transaction")
	}
	if _, err := do(&builtins.Call{DryRun: &builtins.DryRun{}}, "tx.on_rollback", in); err != nil {
		t.Error(err)
	}
}

func TestChanges(t *testing.T) {
	call := &builtins.Call{Changes: func() []*pb.Change {
		return []*pb.Change{{Op: "file.write", Target: "/etc/motd", Action: "created", Reversible: true, Diff: "secret"}}
	}}
	out, err := do(call, "tx.changes", &pb.NoArgs{})
	want := &pb.ScriptChanges{Changes: []*pb.ScriptChange{{Op: "file.write", Target: "/etc/motd", Action: "created", Reversible: true}}}
	if err != nil || !proto.Equal(out, want) {
		t.Errorf("got %v, want %v, error %v", out, want, err)
	}
}
