package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// No script makes the agent grow by more than 32 MiB, whatever it feeds to whichever builtin, and whatever ran before.
func TestScriptsDoNotFillTheAgent(t *testing.T) {
	if agenttest.Race {
		t.Skip("the race detector multiplies memory")
	}
	const most = 32 << 20
	a := agenttest.Start(t, agenttest.Options{Config: "telemetry_interval_secs: 3600\nlog_level: error\n"})
	c := a.Client(t, client.Options{})
	ranScript(t, c, &pb.RunScriptRequest{Source: []byte("return 1")})
	rest, dir := a.RSS(), t.TempDir()
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
		{"what is read", `file.write(dir .. "/f", big) file.append(dir .. "/f", big) for i = 1, 3 do pcall(file.read, dir .. "/f") end
			file.write(dir .. "/g", big) file.append(dir .. "/g", ("y"):rep(388544)) for i = 1, 3 do assert(#file.read(dir .. "/g") == 8388544) end error("end")`, false},
		{"a block", `file.write(dir .. "/f", ("a\n"):rep(4000000)) pcall(file.block, dir .. "/f", {marker = "m", text = ("\n"):rep(8000000)})
			pcall(file.block, dir .. "/g", {marker = "m", text = ("\n"):rep(8000000)})
			pcall(file.block, dir .. "/f", {text = "x", marker = big:sub(1, 4000000), comment = big:sub(1, 3000000)}) error("end")`, false},
		{"a template", `file.template(dir .. "/f", ("{{a|raw}}"):rep(2000), {a = big:sub(1, 4000000)})`, false},
		{"a pattern", `file.line(dir .. "/f", {match = ("a?"):rep(1500000), line = "x"})`, false},
		{"many files", `local old, new = ("a"):rep(16000), ("b"):rep(16000)
			for i = 1, 700 do file.write(dir .. "/" .. i, old) file.write(dir .. "/" .. i, new) end error("end")`, false},
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

// Nor do the network's files, of which all are looked at when one is checked: 600 of 60 kB, one that is dense, or as many as
// may be.
func TestNetplanDoesNotFillTheAgent(t *testing.T) {
	if agenttest.Race {
		t.Skip("the race detector multiplies memory")
	}
	const most = 32 << 20
	for name, files := range map[string]string{ // and what is said of it
		"more than 1048576 bytes": `local text = "network:\n" .. ("  # a comment of 30 bytes ......\n"):rep(1800) for i = 1, 600 do put(i, text) end`,
		"more than 60000 values":  `put(1, "network: [" .. ("1,"):rep(120000) .. "1]\n")`,
		"no such file":            `local text = "network:\n" .. ("  a: [1,1,1,1,1,1,1,1]\n"):rep(600) for i = 1, 5 do put(i, text) end`,
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			a := agenttest.Start(t, agenttest.Options{Root: root, Config: "telemetry_interval_secs: 3600\nlog_level: error\n"})
			c := a.Client(t, client.Options{})
			ranScript(t, c, &pb.RunScriptRequest{Source: []byte("return 1")})
			rest := a.RSS()
			rise := -rest + peakRSS(a, func() {
				_, err := client.Call[*pb.RunScriptResponse](ctxFor(t, 3*time.Minute), c, &pb.RunScriptRequest{Source: []byte(
					`local function put(i, text) file.write("/etc/netplan/" .. i .. ".yaml", text, {parents = true}) end
` + files)})
				if err != nil {
					t.Error(err)
				}
				var work sync.WaitGroup
				defer work.Wait()
				for range 4 {
					c := a.Client(t, client.Options{})
					work.Go(func() {
						reply, err := client.Call[*pb.RunScriptResponse](ctxFor(t, 3*time.Minute), c, &pb.RunScriptRequest{Source: []byte(
							`return script { name = "s", readonly = true, run = function() for i = 1, 3 do netplan.get("none") end end }`)})
						if err != nil || !strings.Contains(reply.Error.GetMessage(), name) {
							t.Errorf("%.200s %v", reply.GetError().GetMessage(), err)
						}
					})
				}
			})
			if t.Logf("%d MiB", rise>>20); rise > most {
				t.Errorf("the agent grew by %d MiB", rise>>20)
			}
		})
	}
}

// Nor do several at once, from several hosts: each call is answered.
func TestScriptsTogetherDoNotFillTheAgent(t *testing.T) {
	if agenttest.Race {
		t.Skip("the race detector multiplies memory")
	}
	const most, together = 32 << 20, 8
	dir := t.TempDir()
	write := func(name string, content []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("f", bytes.Repeat([]byte("abcdefg\n"), 1<<20-16))
	if err := os.Mkdir(filepath.Join(dir, "many"), 0o700); err != nil {
		t.Fatal(err)
	}
	for i := range 6000 {
		write(fmt.Sprintf("many/%0100d", i), nil)
	}
	for _, s := range []struct {
		name, source string
		dry          bool
	}{
		{"what is read", `for i = 1, 4 do assert(#file.read(dir .. "/f") == 8388480) end`, false},
		{"lists", `for i = 1, 2 do assert(#file.list(dir .. "/many") == 6000 and #file.glob(dir .. "/many/*") == 6000) end`, false},
		{"what commands read", `for i = 1, 2 do assert(exec.run({"wc", "-c"}, {readonly = true, stdin = big}).stdout == "8000000\n") end`, false},
		{"what commands write", `for i = 1, 2 do
			assert(#exec.run({"sh", "-c", "yes | head -c 9000000"}, {readonly = true, max_output = 8000000}).stdout == 8000000) end`, false},
		{"files", `for i = 1, 6 do file.write(dir .. "/new", i .. big) end`, true},
		{"templates", `for i = 1, 3 do file.template(dir .. "/new", "{{a|raw}}", {a = big:sub(1, 7000000)}) end`, true},
		{"edits", `for i = 1, 3 do file.replace(dir .. "/f", "abc", "abd", {literal = true}) file.replace(dir .. "/f", "abd", "abc", {literal = true}) end`, true},
	} {
		t.Run(s.name, func(t *testing.T) {
			a := agenttest.Start(t, agenttest.Options{Config: "telemetry_interval_secs: 3600\nlog_level: error\n"})
			c := a.Client(t, client.Options{})
			ranScript(t, c, &pb.RunScriptRequest{Source: []byte(`exec.run({"true"}, {readonly = true})`)})
			rest := a.RSS()
			source := fmt.Sprintf("local dir, big = %q, (\"x\"):rep(8000000)\n%s", dir, s.source)
			if !s.dry {
				source = "return script { name = \"s\", readonly = true, run = function()\n" + source + "\nend }"
			}
			rise := -rest + peakRSS(a, func() {
				var work sync.WaitGroup
				for range together {
					c := a.Client(t, client.Options{})
					work.Go(func() {
						request := &pb.RunScriptRequest{Source: []byte(source), DryRun: s.dry, TimeoutSeconds: 120}
						reply, err := client.Call[*pb.RunScriptResponse](ctxFor(t, 3*time.Minute), c, request)
						for errors.Is(err, fault.ErrBusy) {
							reply, err = client.Call[*pb.RunScriptResponse](ctxFor(t, 3*time.Minute), c, request)
						}
						if err != nil || reply.Error != nil && reply.Error.Kind != "busy" {
							t.Errorf("%v, %.300s", err, reply)
						}
					})
				}
				work.Wait()
			})
			if t.Logf("%d MiB", rise>>20); rise > most {
				t.Errorf("the agent grew by %d MiB", rise>>20)
			}
		})
	}
}
