package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A streamed command outlives its agent, however that ends, as by the command itself: the host goes on with its output, of
// which nothing is missing and nothing comes twice, and is told its end.
func TestStreamedCommandOutlivesItsAgent(t *testing.T) {
	for _, how := range []string{"TERM", "KILL"} {
		t.Run(how, func(t *testing.T) {
			first := agenttest.Start(t, agenttest.Options{})
			c := first.Client(t, client.Options{})
			line := fmt.Sprintf("seq 1 60000; kill -%s %d; while kill -0 %[2]d 2>/dev/null; do sleep 0.02; done; "+
				"seq 60001 120000; echo end >&2; exit 7", how, first.PID())
			s, err := c.Stream(ctxFor(t, time.Minute), client.Command{Line: line, Name: "upgrade"}, client.StreamOptions{Outlive: true})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			var stdout, stderr bytes.Buffer
			take := func(out client.Output) error {
				stdout.Write(out.Stdout)
				stderr.Write(out.Stderr)
				return nil
			}
			for {
				out, err := s.Next(ctxFor(t, time.Minute))
				if client.Gone(err) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				_ = take(out)
			}
			id, fromOut, fromErr := s.Job()
			if id == "" || fromOut != uint64(stdout.Len()) || fromErr != uint64(stderr.Len()) {
				t.Fatal(id, fromOut, fromErr)
			}
			second := agenttest.Start(t, agenttest.Options{State: first.State})
			again := second.Client(t, client.Options{})
			end, missing, err := client.NewLink(again, nil).Follow(ctxFor(t, time.Minute), id, fromOut, fromErr, time.Second, take)
			if err != nil || missing != 0 || end.GetExitCode() != 7 {
				t.Fatal(end, missing, err)
			}
			var want bytes.Buffer
			for n := 1; n <= 120000; n++ {
				fmt.Fprintln(&want, n)
			}
			if !bytes.Equal(stdout.Bytes(), want.Bytes()) || stderr.String() != "end\n" {
				t.Errorf("%d bytes came of %d, and %q", stdout.Len(), want.Len(), stderr.String())
			}
			if list, err := again.Jobs(ctxFor(t, time.Minute)); err != nil || len(list) != 1 || list[0].Name != "upgrade" || list[0].Attached {
				t.Error(list, err)
			}
		})
	}
}

// What outlives its agent is in the list as long as it runs, by its name, and ends with its host as any streamed command.
func TestOutlivingCommandIsListedAndEnds(t *testing.T) {
	a := streamAgent(t)
	other := a.Client(t, client.Options{})
	start := func(c *client.Client, line string) *client.Stream {
		s, err := c.Stream(ctxFor(t, time.Minute), client.Command{Line: line, Name: "one.2_3-4"}, client.StreamOptions{Outlive: true})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	jobs := func() []*pb.Job {
		list, err := other.Jobs(ctxFor(t, time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	c := a.Client(t, client.Options{})
	for name, end := range map[string]func(*client.Stream, string) error{
		"by the list": func(_ *client.Stream, id string) error { return other.SignalJob(ctxFor(t, time.Minute), id, "", true) },
		"by a signal": func(s *client.Stream, _ string) error { return s.Signal(ctxFor(t, time.Minute), "TERM") },
		"by itself":   func(s *client.Stream, _ string) error { return s.Terminate(ctxFor(t, time.Minute)) },
	} {
		s := start(c, "echo ready; sleep 1000")
		var so string
		heard(t, s, &so, "ready\n")
		list := jobs()
		if len(list) != 1 || list[0].Name != "one.2_3-4" || !list[0].Attached || list[0].State != pb.JobState_JOB_STATE_RUNNING {
			t.Fatal(list)
		}
		if err := end(s, list[0].Id); err != nil {
			t.Fatal(err)
		}
		heard(t, s, &so, "")
		if got := s.End(); got.GetExitCode() != 143 {
			t.Errorf("%s: %v", name, got)
		}
		eventually(t, name+": an empty list", func() bool { return len(jobs()) == 0 })
	}
	s := start(c, "echo pid $$ .; sleep 1000")
	var so, pid string
	heard(t, s, &so, " .")
	fmt.Sscanf(so, "pid %s", &pid)
	c.Close()
	eventually(t, "the end with the host", func() bool { return !runs(pid) && len(jobs()) == 0 })
	if left, err := os.ReadDir(filepath.Join(a.State, "jobs")); err != nil && !errors.Is(err, fs.ErrNotExist) || len(left) > 0 {
		t.Error(left, err)
	}
	_, err := other.Stream(ctxFor(t, time.Minute), client.Command{Line: "true", Name: "../x"}, client.StreamOptions{Outlive: true})
	if !errors.Is(err, fs.ErrInvalid) {
		t.Error(err)
	}
	_, err = other.Stream(ctxFor(t, time.Minute), client.Command{Argv: []string{"/no/such/program", "x"}}, client.StreamOptions{Outlive: true})
	if !errors.Is(err, fs.ErrNotExist) || !client.IsProgram(err) {
		t.Error(err)
	}
}

// A host that takes nothing holds up a command that outlives the agent, too.
func TestSlowHostHoldsAnOutlivingCommandUp(t *testing.T) {
	a := streamAgent(t)
	c := a.Client(t, client.Options{})
	s, err := c.Stream(ctxFor(t, time.Minute), client.Command{Line: "head -c 20000000 /dev/zero; exit 4"}, client.StreamOptions{Outlive: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	total := 0
	for {
		out, err := s.Next(ctxFor(t, time.Minute))
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if total += len(out.Stdout); total%7 == 0 {
			time.Sleep(time.Millisecond) // a reader with something else to do
		}
	}
	if total != 20_000_000 || s.End().GetExitCode() != 4 {
		t.Errorf("%d bytes, %v", total, s.End())
	}
}

// Where nothing can be kept of a command, as on a disk that is read-only or full, it runs all the same, as long as its agent
// does.
func TestCommandsRunWithoutAPlaceForJobs(t *testing.T) {
	a := agenttest.Start(t, agenttest.Options{})
	c := a.Client(t, client.Options{})
	jobs := filepath.Join(a.State, "jobs")
	if err := errors.Join(os.RemoveAll(jobs), os.WriteFile(jobs, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	s, err := c.Stream(ctxFor(t, time.Minute), client.Command{Line: "echo repaired; exit 3"}, client.StreamOptions{Outlive: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	text := ""
	for {
		out, err := s.Next(ctxFor(t, time.Minute))
		text += string(out.Stdout)
		if err != nil {
			break
		}
	}
	if text != "repaired\n" {
		t.Errorf("%q", text)
	}
}
