package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// peakRSS returns how large the agent was, at most, while f ran.
func peakRSS(a *agenttest.Agent, f func()) int64 {
	most := int64(0)
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	for {
		select {
		case <-done:
			return most
		case <-time.After(2 * time.Millisecond):
			most = max(most, a.RSS())
		}
	}
}

// Hosts do not make the agent hold more than 32 MiB above its rest: the frames that come and the requests that are served or
// wait share one budget, whatever connection they come by. Each request is answered, and pings come through meanwhile.
func TestHostsDoNotFillTheAgent(t *testing.T) {
	if agenttest.Race {
		t.Skip("the race detector multiplies memory")
	}
	const most = 32 << 20
	const connections, requests = 28, 62
	slowFrames := func(t *testing.T, a *agenttest.Agent, large *pb.RunScriptRequest, connections int) {
		var work sync.WaitGroup
		defer work.Wait()
		for i := range connections {
			p := newPeer(t, a)
			work.Go(func() {
				whole := frame(t, wire.Plain, fmt.Sprint("slow-", i), large)
				p.conn.SetWriteDeadline(time.Now().Add(4 * time.Second))
				for at := 0; at < len(whole); at += 1 << 20 {
					if _, err := p.conn.Write(whole[at:min(at+1<<20, len(whole)-1)]); err != nil {
						return
					}
					time.Sleep(100 * time.Millisecond)
				}
			})
		}
		work.Go(func() { newPeer(t, a).alive("beside") })
	}
	manyRequests := func(t *testing.T, a *agenttest.Agent, large *pb.RunScriptRequest, requests int) {
		c := a.Client(t, client.Options{})
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		var work sync.WaitGroup
		for range requests {
			work.Go(func() {
				_, err := client.Call[*pb.RunScriptResponse](ctx, c, large)
				if err != nil && ctx.Err() != nil {
					t.Error("a request is not answered: ", err)
				}
			})
		}
		for range 20 {
			if _, _, err := c.Ping(ctx); err != nil {
				t.Error(err)
			}
		}
		work.Wait()
	}
	outputs := func(source string) func(t *testing.T, a *agenttest.Agent, _ *pb.RunScriptRequest) {
		return func(t *testing.T, a *agenttest.Agent, _ *pb.RunScriptRequest) {
			var work sync.WaitGroup
			defer work.Wait()
			for range 8 {
				c := a.Client(t, client.Options{})
				work.Go(func() {
					reply, err := client.Call[*pb.ExecuteResponse](t.Context(), c, &pb.ExecuteRequest{
						Command: "sh", Args: []string{"-c", source}, WaitForExit: true, MaxOutputBytes: 30_000_000, TimeoutSeconds: 60,
					})
					if err != nil || reply.ExitCode != 0 || len(reply.Stdout) < 8<<20-8 || !reply.Truncated {
						t.Errorf("%.200v, %d bytes, %v", reply, len(reply.GetStdout()), err)
					}
				})
			}
		}
	}
	for name, attack := range map[string]func(t *testing.T, a *agenttest.Agent, large *pb.RunScriptRequest){
		"slow frames": func(t *testing.T, a *agenttest.Agent, large *pb.RunScriptRequest) {
			slowFrames(t, a, large, connections)
		},
		"requests that wait": func(t *testing.T, a *agenttest.Agent, large *pb.RunScriptRequest) {
			manyRequests(t, a, large, requests)
		},
		"output of commands":                 outputs("yes | head -c 30000000"),
		"output of commands that is no text": outputs("head -c 30000000 /dev/urandom"),
		"all at once, with runners and lists that nobody reads": func(t *testing.T, a *agenttest.Agent, large *pb.RunScriptRequest) {
			dir := t.TempDir()
			for i := range 5000 {
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%0200d", i)), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for i := range 10 { // a megabyte each
				list := frame(t, wire.Plain, fmt.Sprint("list-", i), &pb.ListDirectoryRequest{Path: dir})
				if _, err := newPeer(t, a).conn.Write(list); err != nil {
					t.Fatal(err)
				}
			}
			var work sync.WaitGroup
			defer work.Wait()
			c := a.Client(t, client.Options{})
			for range 30 {
				work.Go(func() {
					_, err := client.Call[*pb.RunScriptResponse](t.Context(), c, &pb.RunScriptRequest{Source: []byte(
						`return script { name = "reads", readonly = true, run = function() exec.run({"sleep", "1"}, {readonly = true}) end }`)})
					if err != nil && !errors.Is(err, fault.ErrBusy) {
						t.Error(err)
					}
				})
			}
			work.Go(func() { slowFrames(t, a, large, 10) })
			manyRequests(t, a, large, 5)
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := agenttest.Start(t, agenttest.Options{Config: "telemetry_interval_secs: 3600\nlog_level: error\n"})
			c := a.Client(t, client.Options{})
			large := &pb.RunScriptRequest{Source: []byte(`exec.run({"sleep", "1"}, {readonly = true})`)}
			if _, err := client.Call[*pb.RunScriptResponse](t.Context(), c, large); err != nil {
				t.Fatal(err)
			}
			large.Attachments = []*pb.Attachment{{Name: "a", Data: make([]byte, 15_000_000)}}
			rest := a.RSS()
			rise := peakRSS(a, func() { attack(t, a, large) }) - rest
			if t.Logf("%d MiB above %d MiB", rise>>20, rest>>20); rise > most {
				t.Errorf("the agent grew by %d MiB", rise>>20)
			}
			if _, _, err := c.Ping(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// The files that come with scripts take none of the memory for requests while these wait or run: others of that size are served
// meanwhile. Each script has its own as they came.
func TestAttachmentsOfScriptsTakeNoMemory(t *testing.T) {
	const scripts, size = 4, 7_000_000 // two files of that size each
	a := agenttest.Start(t, agenttest.Options{Config: "telemetry_interval_secs: 3600\nlog_level: error\n"})
	gate := filepath.Join(t.TempDir(), "gate")
	ask := func(c *client.Client, i int, source string) *pb.RunScriptResponse {
		request := &pb.RunScriptRequest{Source: []byte(source), TimeoutSeconds: 120, Attachments: []*pb.Attachment{
			{Name: "a", Data: []byte(strings.Repeat(fmt.Sprintf("%010d", i), size/10))}, {Name: "b", Data: []byte("small")},
			{Name: "c", Data: []byte(strings.Repeat(fmt.Sprintf("%010d", i+1), size/10))},
		}}
		reply, err := client.Call[*pb.RunScriptResponse](t.Context(), c, request)
		for errors.Is(err, fault.ErrBusy) && t.Context().Err() == nil { // another one is still on its way to the disk
			reply, err = client.Call[*pb.RunScriptResponse](t.Context(), c, request)
		}
		if want := fmt.Sprintf("%010d%010d%010dsmall", size, i, i+1); err != nil || reply.Result.GetStringValue() != want {
			t.Errorf("%v, %v", reply, err)
		}
		return reply
	}
	const look = `local a, c = file.attachment("a"), file.attachment("c")
return string.format("%010d", #a) .. a:sub(-10) .. c:sub(1, 10) .. file.attachment("b")`
	var work sync.WaitGroup
	for i := range scripts {
		c := a.Client(t, client.Options{})
		work.Go(func() {
			ask(c, i, fmt.Sprintf("exec.run({'sh', '-c', 'until [ -e %s ]; do sleep 0.05; done'}, {readonly = true})\n", gate)+look)
		})
	}
	c := a.Client(t, client.Options{})
	for i := range 4 { // while one of the others runs, and the rest wait for it
		ask(c, 10*i, "return script { name = 'looks', readonly = true, run = function() "+look+" end }")
	}
	if left, _ := os.ReadDir(filepath.Join(a.State, "overlays")); len(left) > 0 {
		t.Errorf("%v has a name", left)
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Error(err)
	}
	work.Wait()
}
