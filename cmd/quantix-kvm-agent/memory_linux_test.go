package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/client"
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

// No script makes the agent hold much more than the largest request, whatever it feeds to whichever builtin.
func TestScriptsDoNotFillTheAgent(t *testing.T) {
	if agenttest.Race {
		t.Skip("the race detector multiplies memory")
	}
	const most = 32 << 20
	a := agenttest.Start(t, agenttest.Options{Config: "telemetry_interval_secs: 3600\nlog_level: error\n"})
	c := a.Client(t, client.Options{})
	ranScript(t, c, &pb.RunScriptRequest{Source: []byte("return 1")})
	rest, dir := a.RSS(), t.TempDir()
	t.Log("rest", rest>>10)
	for _, s := range []struct {
		name, source string
		dry          bool
	}{
		{"plans", `for i = 1, 20 do exec.run({"true"}, {irreversible = true, plan = big}) end`, true},
		{"long commands", `for i = 1, 20 do pcall(exec.run, {"true", big}, {irreversible = true}) end`, false},
		{"undo arguments", `for i = 1, 20 do pcall(tx.on_rollback, {"true", big}) end`, false},
		{"many undo arguments", `local some = big:sub(1, 1000000) for i = 1, 40 do pcall(tx.on_rollback, {"true", some}) end error("end")`, false},
		{"actions", `local some = big:sub(1, 100000) for i = 1, 200 do pcall(tx.on_commit, {"true", some}) end error("end")`, false},
		{"changes", `local name = dir .. "/" .. ("x"):rep(200)
			for i = 1, 300 do file.write(name .. i, i) end
			for i = 1, 20 do tx.changes() end error("end")`, false},
		{"diffs", `local t = {} for i = 1, 600 do t[i] = ("x"):rep(99) end
			local text = table.concat(t, "\n") for i = 1, 150 do file.write(dir .. "/f", i .. "\n" .. text) end error("end")`, false},
		{"large files", `for i = 1, 3 do file.write(dir .. "/f", big) file.append(dir .. "/f", big) pcall(file.read, dir .. "/f") end error("end")`, false},
		{"lines", `file.write(dir .. "/f", ("\n"):rep(8000000)) file.line(dir .. "/f", {line = "z", after = "y"}) error("end")`, false},
		{"a template", `file.template(dir .. "/f", ("{{a|raw}}"):rep(2000), {a = big:sub(1, 4000000)})`, false},
		{"a pattern", `file.line(dir .. "/f", {match = ("a?"):rep(1500000), line = "x"})`, false},
		{"small files", `for i = 1, 300 do file.write(dir .. "/" .. i, "x") end
			for i = 1, 8 do exec.run({"true"}, {touches = {dir}}) end error("end")`, false},
	} {
		t.Run(s.name, func(t *testing.T) {
			source := fmt.Sprintf("local dir, big = %q, (\"x\"):rep(8000000)\n%s", filepath.Join(dir, strings.ReplaceAll(s.name, " ", "-")), s.source)
			source = strings.Replace(source, "\n", "\nfile.mkdir(dir)\n", 1)
			ctx := ctxFor(t, 2*time.Minute)
			rise := -rest + peakRSS(a, func() {
				reply, err := client.Call[*pb.RunScriptResponse](ctx, c, &pb.RunScriptRequest{Source: []byte(source), DryRun: s.dry})
				t.Logf("%.200s %v", reply.GetError().GetMessage(), err)
			})
			if t.Logf("%d MiB", rise>>20); rise > most {
				t.Errorf("the agent grew by %d MiB", rise>>20)
			}
		})
	}
}

// Nor do hosts: the frames that come and the requests that wait share one budget, and a ping comes through.
func TestHostsDoNotFillTheAgent(t *testing.T) {
	if agenttest.Race {
		t.Skip("the race detector multiplies memory")
	}
	const most = 96 << 20
	a := agenttest.Start(t, agenttest.Options{Config: "telemetry_interval_secs: 3600\nlog_level: error\n"})
	c := a.Client(t, client.Options{})
	ranScript(t, c, &pb.RunScriptRequest{Source: []byte("return 1")})
	rest, ctx := a.RSS(), ctxFor(t, 2*time.Minute)
	large := &pb.RunScriptRequest{
		Source:      []byte(`if #file.attachment("a") > 0 then exec.run({"sleep", "60"}, {irreversible = true}) end`),
		Attachments: []*pb.Attachment{{Name: "a", Data: make([]byte, 15_000_000)}},
	}
	rise := -rest + peakRSS(a, func() {
		var work sync.WaitGroup
		for i := range 20 {
			p := newPeer(t, a)
			work.Go(func() {
				whole := frame(t, wire.Plain, fmt.Sprint("slow-", i), large)
				p.conn.Write(whole[:12<<20])
			})
		}
		for range 20 {
			work.Go(func() {
				short, cancel := context.WithTimeout(ctx, 3*time.Second)
				defer cancel()
				_, _ = client.Call[*pb.RunScriptResponse](short, c, large)
			})
		}
		work.Wait()
		newPeer(t, a).alive("beside")
	})
	if t.Logf("%d MiB", rise>>20); rise > most {
		t.Errorf("the agent grew by %d MiB", rise>>20)
	}
}
