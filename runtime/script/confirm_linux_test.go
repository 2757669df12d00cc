package script_test

import (
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	statusCommitted  = pb.ScriptStatus_SCRIPT_STATUS_COMMITTED
	statusRolledBack = pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK
	statusRefused    = pb.ScriptStatus_SCRIPT_STATUS_REFUSED
	statusAwaits     = pb.ScriptStatus_SCRIPT_STATUS_AWAITING_CONFIRM
)

// decide answers a transaction that awaits its confirmation.
func (s *site) decide(id string, action pb.ConfirmAction) *pb.ConfirmResponse {
	s.t.Helper()
	in := &pb.ConfirmRequest{TransactionId: id, Action: action}
	reply, err := s.calls.Execute(s.t.Context(), &builtins.Call{ID: "confirm", Port: "port"}, s.calls.Native(in), in)
	if err != nil {
		s.t.Fatal(err)
	}
	return reply.(*pb.ConfirmResponse)
}

// show returns a transaction as hosts see it.
func (s *site) show(id string) *pb.TransactionInfo {
	s.t.Helper()
	in := &pb.TransactionsRequest{TransactionId: id}
	reply, err := s.calls.Execute(s.t.Context(), &builtins.Call{ID: "show", Port: "port"}, s.calls.Native(in), in)
	if err != nil || len(reply.(*pb.TransactionsResponse).Transactions) != 1 {
		s.t.Fatal(reply, err)
	}
	return reply.(*pb.TransactionsResponse).Transactions[0]
}

// A script whose changes must be confirmed is answered when they are made. Sent again it does not run again: the reply is the
// state that it has by then. Other scripts are refused until it is decided; those that change nothing run.
func TestScriptAwaitsConfirmation(t *testing.T) {
	const declared = `return script {name = "a", confirm = "1h", run = function() test.later("/later") return test.change("/x") end}`
	for name, c := range map[string]struct {
		request *pb.RunScriptRequest
		action  pb.ConfirmAction
		want    pb.ScriptStatus
		again   bool // the same request under another message id runs again
	}{
		"declared":  {source(declared), pb.ConfirmAction_CONFIRM_ACTION_CONFIRM, statusCommitted, false},
		"requested": {&pb.RunScriptRequest{Source: []byte(`test.change("/x") test.later("/later")`), ConfirmSeconds: proto.Uint32(3600)}, pb.ConfirmAction_CONFIRM_ACTION_ROLLBACK, statusRolledBack, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			c.request.Key = "key"
			reply := s.run("1", c.request)
			if reply.Status != statusAwaits || reply.Error != nil || reply.ConfirmUntil == nil || !s.there("/x") || len(reply.Changes) != 1 || len(s.done) > 0 {
				t.Fatal(reply, s.done)
			}
			if left := time.Until(reply.ConfirmUntil.AsTime()); left < 59*time.Minute || left > time.Hour {
				t.Error(left)
			}
			for _, id := range []string{"1", "2"} {
				again := s.run(id, c.request)
				if !again.Replayed || again.ConfirmUntil.AsTime().Sub(reply.ConfirmUntil.AsTime()).Abs() > time.Minute {
					t.Error(again)
				}
				again.Replayed, again.ConfirmUntil = false, reply.ConfirmUntil
				if !proto.Equal(again, reply) {
					t.Error(again, reply)
				}
			}
			if other := s.run("3", source(`test.change("/y")`)); other.Status != statusRefused || other.Error.GetKind() != "busy" || !strings.Contains(other.Error.Message, reply.TransactionId) {
				t.Error(other)
			}
			if look := s.run("4", source(`return script {name = "l", readonly = true, run = function() return test.look("/x") end}`)); look.Error != nil {
				t.Error(look)
			}
			info := s.show(reply.TransactionId)
			if info.Phase != "awaiting_confirm" || info.Status != statusAwaits || info.ConfirmRemainingMs == 0 || len(info.Reply.GetChanges()) != 1 {
				t.Error(info)
			}
			if d := s.decide(reply.TransactionId, c.action); d.Status != c.want || d.Error != nil || s.there("/x") != (c.want == statusCommitted) {
				t.Fatal(d)
			}
			if len(s.done) > 0 != (c.want == statusCommitted) {
				t.Error("done after the end: ", s.done)
			}
			if info := s.show(reply.TransactionId); info.Phase != "done" || info.Status != c.want || info.ConfirmUntil != nil {
				t.Error(info)
			}
			if again := s.run("1", c.request); again.Status != c.want || !again.Replayed {
				t.Error(again)
			}
			if again := s.run("5", c.request); (again.Status == statusAwaits) != c.again || again.Replayed == c.again {
				t.Error(again)
			}
		})
	}
}

// What needs no confirmation is committed: what changed nothing, and where the request says that none is needed. What failed is
// taken back at once, and a dry run leaves nothing open.
func TestNothingToConfirm(t *testing.T) {
	s := newSite(t)
	const declares = `return script {name = "a", confirm = 60, run = function() `
	for name, c := range map[string]struct {
		request *pb.RunScriptRequest
		want    pb.ScriptStatus
	}{
		"no change":       {source(declares + `return test.look("/x") end}`), statusCommitted},
		"not needed":      {&pb.RunScriptRequest{Source: []byte(declares + `test.change("/x") end}`), ConfirmSeconds: proto.Uint32(0)}, statusCommitted},
		"failed":          {source(declares + `test.change("/y") error("x") end}`), statusRolledBack},
		"dry run":         {&pb.RunScriptRequest{Source: []byte(declares + `test.change("/y") end}`), DryRun: true}, pb.ScriptStatus_SCRIPT_STATUS_DRY_RUN},
		"readonly script": {source(`return script {name = "a", confirm = 60, readonly = true, run = function() end}`), statusCommitted},
		"later alone":     {source(declares + `test.later("/x") end}`), statusAwaits},
	} {
		reply := s.run("id "+name, c.request)
		if reply.Status != c.want || (reply.ConfirmUntil != nil) != (c.want == statusAwaits) {
			t.Errorf("%s: %v", name, reply)
		}
		if c.want == statusAwaits {
			s.decide(reply.TransactionId, pb.ConfirmAction_CONFIRM_ACTION_ROLLBACK)
		}
	}
	if s.there("/y") {
		t.Error("it stays")
	}
}

// The secrets of a script are in nothing that is told when it is taken back.
func TestUnconfirmedKeepsSecrets(t *testing.T) {
	s := newSite(t)
	const secret = "s3cret-word"
	reply := s.run("1", &pb.RunScriptRequest{
		Source: []byte(`test.change("/" .. secrets.word)`), Secrets: map[string]string{"word": secret}, ConfirmSeconds: proto.Uint32(600),
	})
	if reply.Status != statusAwaits || strings.Contains(reply.String(), secret) {
		t.Fatal(reply)
	}
	s.decide(reply.TransactionId, pb.ConfirmAction_CONFIRM_ACTION_ROLLBACK)
	if info := s.show(reply.TransactionId); info.Status != statusRolledBack || strings.Contains(info.String(), secret) || s.there("/"+secret) {
		t.Error(info)
	}
}
