package main

import (
	"strings"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// An agent that would power off at once is not asked to cancel, or to do it later; nor is one asked to set the clock that was
// to be measured.
func TestShutdownWithAnotherAgent(t *testing.T) {
	var mu sync.Mutex
	var asked []*pb.ShutdownRequest
	socket := fakeAgent(t, func(_ *wire.Conn, _ string, request proto.Message) (proto.Message, error) {
		if in, ok := request.(*pb.ShutdownRequest); ok {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, in)
			return &pb.ShutdownResponse{Accepted: true}, nil
		}
		return &pb.GetCapabilitiesResponse{Capabilities: []string{"shutdown"}}, nil
	})
	for _, args := range []string{"shutdown --cancel", "reboot --cancel", "shutdown --delay 30s", "reboot --delay 30s"} {
		code, _, stderr := ctl(t, append([]string{"-s", socket}, strings.Fields(args)...)...)
		if code != exitRefused || !strings.Contains(stderr, "knows no shutdown that waits") {
			t.Errorf("%s: %d %s", args, code, stderr)
		}
	}
	for _, args := range []string{"shutdown", "reboot", "shutdown --halt --message bye"} {
		if code, _, stderr := ctl(t, append([]string{"-s", socket}, strings.Fields(args)...)...); code != 0 {
			t.Errorf("%s: %d %s", args, code, stderr)
		}
	}
	if len(asked) != 3 || asked[0].Type != 0 || asked[1].Type != 1 || asked[2].Type != 2 || asked[2].Message != "bye" {
		t.Errorf("asked for %v", asked)
	}
}

// --wait returns when an agent of another boot answers, and not because one was only started again.
func TestWaitForTheNextBoot(t *testing.T) {
	var mu sync.Mutex
	looks, boot := 0, "first"
	socket := fakeAgent(t, func(_ *wire.Conn, _ string, request proto.Message) (proto.Message, error) {
		mu.Lock()
		defer mu.Unlock()
		switch request.(type) {
		case *pb.ShutdownRequest:
			return &pb.ShutdownResponse{Accepted: true, Pending: &pb.PendingShutdown{Type: "reboot", WaitingFor: "transaction t"}}, nil
		case *pb.GetStatusRequest:
			if looks++; looks == 4 {
				boot = "second"
			}
			return &pb.GetStatusResponse{BootId: boot, Now: timestamppb.Now()}, nil
		}
		return &pb.GetCapabilitiesResponse{Features: map[string]string{"shutdown": "delay"}}, nil
	})
	code, stdout, stderr := ctl(t, "-s", socket, "reboot", "--wait")
	if code != 0 || !strings.HasPrefix(stdout, "the guest serves again after ") || !strings.Contains(stderr, "it waits for transaction t") {
		t.Error(code, stdout, stderr)
	}
	if looks != 4 {
		t.Errorf("it looked %d times", looks)
	}
	code, stdout, _ = ctl(t, "-s", socket, "--timeout", "1s", "reboot", "--wait")
	if code != exitTimeout || stdout != "" {
		t.Error(code, stdout)
	}
	if code, stdout, stderr := ctl(t, "-s", socket, "shutdown", "--wait", "--timeout", "1s"); code != exitTimeout {
		t.Error(code, stdout, stderr)
	}
}
