package main

import (
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// An agent that takes unknown signals for TERM, and looks at no start_ticks, is asked for nothing that it would do wrong.
func TestKillWithAnotherAgent(t *testing.T) {
	var mu sync.Mutex
	var asked []*pb.KillProcessRequest
	socket := fakeAgent(t, func(_ *wire.Conn, _ string, request proto.Message) (proto.Message, error) {
		if kill, ok := request.(*pb.KillProcessRequest); ok {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, kill)
			return &pb.KillProcessResponse{Success: true}, nil
		}
		return &pb.GetCapabilitiesResponse{Capabilities: []string{"process_kill"}}, nil
	})
	for _, args := range []string{"--signal USR1 7", "--signal 0 7", "--signal 10 7", "--start-ticks 5 7"} {
		code, _, stderr := ctl(t, append([]string{"-s", socket, "kill"}, strings.Fields(args)...)...)
		if code != exitRefused || !strings.Contains(stderr, "the agent in the guest knows HUP") {
			t.Errorf("%s: %d %s", args, code, stderr)
		}
	}
	for _, args := range []string{"7", "--signal sigkill 7", "--signal 1 7"} {
		if code, _, stderr := ctl(t, append([]string{"-s", socket, "kill"}, strings.Fields(args)...)...); code != 0 {
			t.Errorf("%s: %d %s", args, code, stderr)
		}
	}
	var signals []int32
	for _, kill := range asked {
		signals = append(signals, kill.Signal)
	}
	if len(signals) != 3 || signals[0] != 15 || signals[1] != 9 || signals[2] != 1 {
		t.Errorf("asked for %v", asked)
	}
}
