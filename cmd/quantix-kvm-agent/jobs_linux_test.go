package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A command that stops the agent which runs it, as an upgrade does, goes on to its end, but for one whose output
// was streamed to a connection that went with the agent.
func TestACommandThatStopsTheAgentFinishes(t *testing.T) {
	for _, how := range []string{"execute", "job"} {
		t.Run(how, func(t *testing.T) {
			a := agenttest.Start(t, agenttest.Options{})
			c := a.Client(t, client.Options{})
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			done := filepath.Join(t.TempDir(), "done")
			command := client.Command{Line: fmt.Sprintf("echo before; kill -TERM %d; while kill -0 %[1]d 2>/dev/null; do sleep 0.02; done; "+
				"head -c 300000 /dev/zero; echo after >&2; touch %s", a.PID(), done)}
			id := ""
			switch how {
			case "execute":
				c.Run(ctx, command, time.Second) // the agent goes, so there may be an answer or none
			case "job":
				reply, err := c.Detach(ctx, command)
				if err != nil {
					t.Fatal(err)
				}
				id = reply.JobId
			}
			for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				if _, err := os.Stat(done); err == nil {
					break
				}
				if time.Now().After(deadline) {
					t.Fatal("the command did not finish")
				}
			}
			if how != "job" {
				return
			}
			again := agenttest.Start(t, agenttest.Options{State: a.State}).Client(t, client.Options{})
			reply, job, err := again.Job(ctx, &pb.ListJobsRequest{JobId: id, WaitSeconds: 20})
			if err != nil || job.Exit == nil || job.Exit.ExitCode != 0 || job.StdoutBytes != 300007 || job.StderrBytes != 6 {
				t.Errorf("%v, %v", reply, err)
			}
		})
	}
}
