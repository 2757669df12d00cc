package agent

import (
	"context"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/runtime/call"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/port"
)

// ownPolicy denies one operation, and each port sees its own.
type ownPolicy struct{ denied string }

func (p ownPolicy) Check(_ string, op *builtins.Op, _ proto.Message, _ builtins.Access) error {
	if op.Name == p.denied {
		return fault.Refuse("denied")
	}
	return nil
}
func (ownPolicy) Denies(string, *builtins.Op) bool { return false }
func (ownPolicy) Sees(port, owner string) bool     { return port == owner }

// waits is an agent with two ports, whose execute waits until it is cancelled.
func waits(t *testing.T, policy call.Policy) (first, second *client.Client) {
	table := builtins.NewTable(builtins.Room{Name: "exec", Ops: []builtins.Op{{
		Name: "execute", Summary: "wait", Mutates: true,
		Handler: builtins.Handle(func(ctx context.Context, _ *builtins.Call, _ *pb.ExecuteRequest) (*pb.ExecuteResponse, error) {
			<-ctx.Done()
			return nil, context.Cause(ctx)
		}),
	}}})
	a, b := newPipes("org.quantix.agent.0"), newPipes("org.quantix.agent.1")
	start(t, Config{
		Calls: call.New(call.Config{Table: table, Policy: policy}),
		Ports: PortsConfig{Open: func(serves func(string) bool) (list []port.Port, err error) {
			for _, p := range []*pipes{a, b} {
				if !serves(p.name) {
					list = append(list, p)
				}
			}
			return list, nil
		}},
		Hooks: Hooks{Cancel: func(_ *pb.CancelRequest, sees func(string) bool) bool { return sees("org.quantix.agent.0") }},
	})
	return a.dial(t), b.dial(t)
}

// A port ends what it began itself; what another one began is not there for it.
func TestCancelIsForThePortThatBegan(t *testing.T) {
	first, second := waits(t, ownPolicy{})
	ctx := t.Context()
	ended := make(chan error, 1)
	go func() {
		_, err := client.CallID[proto.Message](ctx, first, "long", &pb.ExecuteRequest{Command: "x"})
		ended <- err
	}()
	cancel := func(c *client.Client, request *pb.CancelRequest) bool {
		found, err := c.Cancel(ctx, request)
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	for _, request := range []*pb.CancelRequest{{MessageId: "long"}, {Key: "k"}, {TransactionId: "t"}} {
		for range 20 { // also once it has surely begun
			if cancel(second, request) {
				t.Fatalf("another port ended %v", request)
			}
		}
		soon(t, "its own port ends it", func() bool { return cancel(first, request) })
	}
	if err := <-ended; fault.Code(err) != "cancelled" {
		t.Error(err)
	}
}

// A policy can deny cancel.
func TestCancelCanBeDenied(t *testing.T) {
	first, _ := waits(t, ownPolicy{denied: "cancel"})
	if found, err := first.Cancel(t.Context(), &pb.CancelRequest{MessageId: "x"}); found || err == nil || err.Error() != "cancel: denied" {
		t.Error(found, err)
	}
}
