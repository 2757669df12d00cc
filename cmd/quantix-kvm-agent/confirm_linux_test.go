package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/cmd/internal/core"
	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	committed  = pb.ScriptStatus_SCRIPT_STATUS_COMMITTED
	rolledBack = pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK
	awaiting   = pb.ScriptStatus_SCRIPT_STATUS_AWAITING_CONFIRM
)

// runUnconfirmed makes the changes of a script that must be confirmed within so many seconds.
func runUnconfirmed(t *testing.T, c *client.Client, seconds uint32) *pb.RunScriptResponse {
	t.Helper()
	request := &pb.RunScriptRequest{Source: []byte(changes), ConfirmSeconds: proto.Uint32(seconds)}
	reply, err := client.Call[*pb.RunScriptResponse](ctxFor(t, time.Minute), c, request)
	if err != nil || reply.Status != awaiting {
		t.Fatal(reply, err)
	}
	return reply
}

func statusOf(t *testing.T, c *client.Client) *pb.GetStatusResponse {
	t.Helper()
	s, err := client.Call[*pb.GetStatusResponse](ctxFor(t, 20*time.Second), c, &pb.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func confirmAs(t *testing.T, c *client.Client, id string, action pb.ConfirmAction) *pb.ConfirmResponse {
	t.Helper()
	reply, err := client.Call[*pb.ConfirmResponse](ctxFor(t, time.Minute), c, &pb.ConfirmRequest{TransactionId: id, Action: action})
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

// A killed agent keeps the changes that await their confirmation, and the deadline. Nobody confirms: the next agent takes them
// back at that time, tells the hosts that come later, and those that confirm too late.
func TestDeadlineSurvivesKill(t *testing.T) {
	const seconds = 8
	root, state := scratch(t), t.TempDir()
	before := picture(t, root)
	a := agenttest.Start(t, agenttest.Options{Root: root, State: state})
	began := time.Now()
	reply := runUnconfirmed(t, a.Client(t, client.Options{}), seconds)
	changed := picture(t, root)
	for range 3 {
		a.Kill()
		a = agenttest.Start(t, agenttest.Options{Root: root, State: state})
		c := a.Client(t, client.Options{})
		awaitEnded(t, c)
		open := statusOf(t, c).Journal.GetOpen()
		if time.Since(began) > seconds*time.Second {
			t.Skip("this machine is too slow to see it before the deadline")
		}
		if open.GetTransactionId() != reply.TransactionId || open.Phase != "awaiting_confirm" || picture(t, root) != changed {
			t.Fatal(open)
		}
		if left := time.Duration(open.ConfirmRemainingMs) * time.Millisecond; left > seconds*time.Second-(time.Since(began)-2*time.Second) {
			t.Errorf("%v are left after %v", left, time.Since(began))
		}
		c.Close()
	}
	c := a.Client(t, client.Options{})
	eventually(t, "the deadline", func() bool { return statusOf(t, c).Journal.GetOpen() == nil })
	if took := time.Since(began); took < seconds*time.Second {
		t.Errorf("it was taken back after %v", took)
	}
	if after := picture(t, root); after != before {
		t.Errorf("not as before:\n%s", after)
	}
	late := confirmAs(t, c, reply.TransactionId, pb.ConfirmAction_CONFIRM_ACTION_CONFIRM)
	if late.Status != rolledBack || !strings.Contains(late.Error.GetMessage(), "no confirmation came in time") {
		t.Error(late)
	}
	if lines := statusOf(t, c).Journal.Recovered; len(lines) != 1 || !strings.Contains(lines[0].Message, reply.TransactionId) {
		t.Error(lines)
	}
	told := make(chan *pb.ErrorEvent, 10)
	a.Client(t, client.Options{Event: eventsTo(told)})
	if e := <-told; e.Code != "transaction_unconfirmed" || e.Details["transaction_id"] != reply.TransactionId {
		t.Error(e)
	}
}

// A confirmation after a restart of the agent keeps the changes; the same request is then answered as committed.
func TestConfirmAfterKill(t *testing.T) {
	root, state := scratch(t), t.TempDir()
	a := agenttest.Start(t, agenttest.Options{Root: root, State: state})
	reply := runUnconfirmed(t, a.Client(t, client.Options{}), 600)
	changed := picture(t, root)
	a.Kill()
	b := agenttest.Start(t, agenttest.Options{Root: root, State: state})
	c := b.Client(t, client.Options{})
	awaitEnded(t, c)
	if other := runIn(t, c, "/etc", `file.write("$/other", "x")`); other.Status != pb.ScriptStatus_SCRIPT_STATUS_REFUSED || !strings.Contains(other.Error.GetMessage(), reply.TransactionId) {
		t.Error(other)
	}
	_, err := client.Call[*pb.FileWriteResponse](ctxFor(t, 20*time.Second), c, &pb.FileWriteRequest{Path: "/etc/app.conf", Data: []byte("theirs"), Eof: true})
	if !errors.Is(err, fault.ErrBusy) || !strings.Contains(err.Error(), reply.TransactionId) {
		t.Error(err)
	}
	if done := confirmAs(t, c, reply.TransactionId, pb.ConfirmAction_CONFIRM_ACTION_CONFIRM); done.Status != committed || done.Error != nil {
		t.Fatal(done)
	}
	b.Stop()
	d := agenttest.Start(t, agenttest.Options{Root: root, State: state}).Client(t, client.Options{})
	awaitEnded(t, d)
	if picture(t, root) != changed {
		t.Error("not as the script left it")
	}
	if done := confirmAs(t, d, reply.TransactionId, pb.ConfirmAction_CONFIRM_ACTION_CONFIRM); done.Status != committed {
		t.Error(done)
	}
}

// A host that vanishes confirms nothing.
func TestHostVanishes(t *testing.T) {
	root := scratch(t)
	before := picture(t, root)
	a := agenttest.Start(t, agenttest.Options{Root: root})
	c := a.Client(t, client.Options{})
	runUnconfirmed(t, c, 1)
	c.Close()
	a.AwaitLog(t, "no confirmation came in time", 1)
	if after := picture(t, root); after != before {
		t.Errorf("not as before:\n%s", after)
	}
}

// The host that is still there hears that its changes were taken back.
func TestHostHearsOfDeadline(t *testing.T) {
	told := make(chan *pb.ErrorEvent, 10)
	c := agenttest.Start(t, agenttest.Options{Root: scratch(t)}).Client(t, client.Options{Event: eventsTo(told)})
	reply := runUnconfirmed(t, c, 1)
	select {
	case e := <-told:
		if e.Code != "transaction_unconfirmed" || e.Details["transaction_id"] != reply.TransactionId || e.Details["status"] != "SCRIPT_STATUS_ROLLED_BACK" {
			t.Error(e)
		}
	case <-time.After(60 * time.Second):
		t.Fatal("it hears nothing")
	}
}

// Whenever an agent is killed around the decision, be it the deadline, a rollback or a confirmation: the guest is as before or
// as after, and where a host had heard of it, as it was told.
func TestKilledAroundDecision(t *testing.T) {
	rounds := 9
	if testing.Short() {
		rounds = 3
	}
	outcomes := map[bool]int{}
	for round := range rounds {
		root, state := scratch(t), t.TempDir()
		before := picture(t, root)
		a := agenttest.Start(t, agenttest.Options{Root: root, State: state})
		c := a.Client(t, client.Options{})
		action := pb.ConfirmAction(round % 3) // unspecified: the deadline decides
		seconds := uint32(600)
		if action == 0 {
			seconds = 1
		}
		reply := runUnconfirmed(t, c, seconds)
		after := picture(t, root)
		answered := make(chan *pb.ConfirmResponse, 1)
		if action == 0 {
			time.Sleep(time.Until(reply.ConfirmUntil.AsTime()) - 5*time.Millisecond)
			answered <- nil
		} else {
			go func() {
				request := &pb.ConfirmRequest{TransactionId: reply.TransactionId, Action: action}
				answer, _ := client.Call[*pb.ConfirmResponse](context.Background(), c, request)
				answered <- answer
			}()
		}
		time.Sleep(time.Duration(rand.IntN(20000)) * time.Microsecond)
		a.Kill()
		answer := <-answered
		b := agenttest.Start(t, agenttest.Options{Root: root, State: state})
		d := b.Client(t, client.Options{})
		awaitEnded(t, d)
		if action == 0 {
			eventually(t, "the deadline", func() bool { return statusOf(t, d).Journal.GetOpen() == nil })
		}
		is := picture(t, root)
		outcomes[is == after]++
		switch {
		case is != before && is != after:
			t.Fatalf("round %d: neither before nor after:\n%s", round, is)
		case answer.GetStatus() == committed && is != after, answer.GetStatus() == rolledBack && is != before, action == 0 && is != before:
			t.Fatalf("round %d: it is not as was told: %v\n%s", round, answer, is)
		}
		// Whatever it is, saying it again says what it is.
		if again := confirmAs(t, d, reply.TransactionId, pb.ConfirmAction_CONFIRM_ACTION_CONFIRM); (again.Status == committed) != (picture(t, root) == after) {
			t.Fatalf("round %d: %v", round, again)
		}
		b.Kill()
	}
	t.Log("after: ", outcomes[true], " before: ", outcomes[false])
}

// What awaited its confirmation when the guest went down is taken back at early boot, before the network starts. The agent then
// says so to those who still want to confirm.
func TestUnconfirmedAtEarlyBoot(t *testing.T) {
	root, state := scratch(t), t.TempDir()
	before := picture(t, root)
	a := agenttest.Start(t, agenttest.Options{Root: root, State: state})
	reply := runUnconfirmed(t, a.Client(t, client.Options{}), 600)
	a.Kill()
	boot := func(id string) *core.Core {
		t.Helper()
		c := core.Config{Root: root, State: state, Rooms: all.Config{}, BootID: func() string { return id }, LockWait: 20 * time.Second}
		inside, err := core.Open(c)
		if err != nil {
			t.Fatal(err)
		}
		return inside
	}
	inside := boot("another")
	found, err := inside.RecoverEarly(t.Context(), t.Context())
	if err != nil || len(found) != 1 || found[0].Entry.GetReply().GetStatus() != rolledBack {
		t.Fatalf("%+v, %v", found, err)
	}
	if err := inside.Close(); err != nil {
		t.Fatal(err)
	}
	if after := picture(t, root); after != before {
		t.Errorf("not as before:\n%s", after)
	}
	if left, err := os.ReadDir(filepath.Join(state, "tx", "open")); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
	c := agenttest.Start(t, agenttest.Options{Root: root, State: state}).Client(t, client.Options{})
	awaitEnded(t, c)
	late := confirmAs(t, c, reply.TransactionId, pb.ConfirmAction_CONFIRM_ACTION_CONFIRM)
	if late.Status != rolledBack || !strings.Contains(late.Error.GetMessage(), "booted again before the confirmation") {
		t.Error(late)
	}
}
