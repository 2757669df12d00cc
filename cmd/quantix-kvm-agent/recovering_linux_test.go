package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Any request waits for an agent that takes back what an earlier one left, and is then served, where its client says so.
func TestRequestsWaitForARecovery(t *testing.T) {
	state, dir := t.TempDir(), t.TempDir()
	first := agenttest.Start(t, agenttest.Options{State: state})
	c := first.Client(t, client.Options{})
	source := fmt.Sprintf(`exec.run({"true"}, {undo = {"sleep", "5"}}) file.write(%q, "") while true do end`, dir+"/began")
	go func() {
		_, _ = client.Call[*pb.RunScriptResponse](context.Background(), c, &pb.RunScriptRequest{Source: []byte(source)})
	}()
	eventually(t, "the script", func() bool { _, err := os.Stat(dir + "/began"); return err == nil })
	first.Kill()
	second := agenttest.Start(t, agenttest.Options{State: state})
	var told atomic.Int32
	waits := second.Client(t, client.Options{Recovering: func(err error) {
		if told.Add(1); !errors.Is(err, fault.ErrBusy) {
			t.Error(err)
		}
	}})
	refused, err := client.Call[*pb.RunScriptResponse](ctxFor(t, time.Minute), second.Client(t, client.Options{}), &pb.RunScriptRequest{Source: []byte("return 1")})
	if err == nil && refused.Error.GetKind() != "busy" || err != nil && !errors.Is(err, fault.ErrBusy) {
		t.Error("one that does not wait:", refused, err)
	}
	var work sync.WaitGroup
	for name, ask := range map[string]func() error{
		"file_stat": func() error {
			_, err := client.Call[*pb.FileStatResponse](ctxFor(t, time.Minute), waits, &pb.FileStatRequest{Path: "/etc"})
			return err
		},
		"execute": func() error {
			reply, err := waits.Run(ctxFor(t, time.Minute), client.Command{Argv: []string{"true"}}, time.Second)
			if err == nil && reply.ExitCode != 0 {
				err = errors.New(reply.Error)
			}
			return err
		},
		"exec_start": func() error {
			s, err := waits.Stream(ctxFor(t, time.Minute), client.Command{Argv: []string{"true"}}, client.StreamOptions{Outlive: true})
			if err == nil {
				s.Close()
			}
			return err
		},
		"run_script": func() error {
			reply, err := client.Call[*pb.RunScriptResponse](ctxFor(t, time.Minute), waits, &pb.RunScriptRequest{Source: []byte("return 1")})
			if err == nil && reply.Error != nil {
				err = errors.New(reply.Error.Message)
			}
			return err
		},
	} {
		work.Go(func() {
			if err := ask(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	work.Wait()
	if told.Load() == 0 {
		t.Error("nobody was told that it waits")
	}
}
