package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"aead.dev/minisign"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins/update"
	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/ctltest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A signed version replaces the agent, and the next one replaces that: the former one is kept, scripts and commands run, and an
// older version comes only where it is asked for. Both where a service manager starts it again, and where it has to do so
// itself.
func TestUpdate(t *testing.T) {
	for name, managed := range map[string]bool{"by a service manager": true, "by itself": false} {
		t.Run(name, func(t *testing.T) {
			s := supervise(t, "1.0.0", managed)
			if v := s.status().Version; v != "1.0.0" {
				t.Fatal(v)
			}
			pid := s.status().Pid
			former := "1.0.0"
			for _, version := range []string{"1.1.0", "1.2.0"} {
				program := readAll(t, agentOf(t, version))
				reply, err := s.update(program, version, false)
				if err != nil || reply.State != pb.UpdateState_UPDATE_STATE_COMPLETE || reply.CurrentVersion != former {
					t.Fatal(reply, err)
				}
				status := s.settled(version, nil)
				last := status.Update.Last
				if status.Version != version || !last.Confirmed || last.FormerVersion != former || status.Update.State != "complete" {
					t.Fatal(status.Version, status.Update)
				}
				if same := status.Pid == pid; same == managed {
					t.Errorf("process %d runs, before it was %d", status.Pid, pid)
				}
				s.clean(version)
				if kept := readAll(t, s.program+".bak"); !bytes.Equal(kept, readAll(t, agentOf(t, former))) {
					t.Error("the former program is not kept")
				}
				s.works()
				former, pid = version, status.Pid
			}
			if _, err := s.update(readAll(t, agentOf(t, "1.1.0")), "1.1.0", false); !errors.Is(err, fault.ErrRefused) {
				t.Error("an older version:", err)
			}
			before := s.status().Update.Last
			if _, err := s.update(readAll(t, agentOf(t, "1.1.0")), "1.1.0", true); err != nil {
				t.Error(err)
			}
			if status := s.settled("1.1.0", before); status.Version != "1.1.0" || !status.Update.Last.Confirmed {
				t.Error(status.Version, status.Update)
			}
		})
	}
}

// What an agent refuses changes nothing: the same process answers afterwards, and its program is the same.
func TestUpdateRefused(t *testing.T) {
	s := supervise(t, "1.0.0", true)
	before := s.status()
	program := []byte("#!/bin/sh\nexit 0\n")
	sum := sha256.Sum256(program)
	valid := func() []*pb.AgentUpdateRequest {
		var list []*pb.AgentUpdateRequest
		for i, part := range [][]byte{program[:4], program[4:9], program[9:]} {
			list = append(list, &pb.AgentUpdateRequest{TargetVersion: "1.1.0", BinaryData: part, ChunkNumber: uint32(i), IsLastChunk: i == 2})
		}
		list[0].TotalSize, list[0].ChecksumSha256 = uint64(len(program)), hex.EncodeToString(sum[:])
		list[0].Signature = s.signed(program, "1.1.0")
		return list
	}
	for name, change := range map[string]func(t *testing.T, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest{
		"unsigned": func(t *testing.T, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			list[0].Signature = nil
			return list
		},
		"wrong key": func(t *testing.T, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			_, other, err := minisign.GenerateKey(nil)
			if err != nil {
				t.Fatal(err)
			}
			list[0].Signature = minisign.SignWithComments(other, program, "version:1.1.0 platform:linux/"+runtime.GOARCH, "")
			return list
		},
		"another platform": func(t *testing.T, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			list[0].Signature = bytes.Replace(list[0].Signature, []byte("platform:linux"), []byte("platform:plan9"), 1)
			return list
		},
		"truncated": func(t *testing.T, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			list[1].IsLastChunk = true
			return list[:2]
		},
		"swapped": func(t *testing.T, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			return []*pb.AgentUpdateRequest{list[0], list[2], list[1]}
		},
		"chunk 0 twice": func(t *testing.T, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			return []*pb.AgentUpdateRequest{list[0], list[0], list[1], list[2]}
		},
		"a version that is a path": func(t *testing.T, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			for _, in := range list {
				in.TargetVersion = "x/../../y"
			}
			return list
		},
		"a link in place of the directory": func(t *testing.T, list []*pb.AgentUpdateRequest) []*pb.AgentUpdateRequest {
			link := filepath.Join(filepath.Dir(s.program), ".agent.update")
			if err := os.Symlink(s.dir, link); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { os.Remove(link) })
			return list
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := s.dial(client.Options{})
			defer c.Close()
			var err error
			for _, in := range change(t, valid()) {
				var reply *pb.AgentUpdateResponse
				if reply, err = client.Call[*pb.AgentUpdateResponse](ctxFor(t, 30*time.Second), c, in); err != nil {
					break
				}
				if !reply.Success || reply.State != pb.UpdateState_UPDATE_STATE_DOWNLOADING {
					t.Fatal(reply)
				}
			}
			if err == nil {
				t.Fatal("it is accepted")
			}
		})
		if after := s.status(); after.Pid != before.Pid || after.Version != "1.0.0" || after.Update.State != "idle" {
			t.Errorf("%s: %v", name, after)
		}
		s.clean("1.0.0")
	}
	if out := readAll(t, s.log.Name()); bytes.Contains(out, []byte("panic")) {
		t.Errorf("%s", out)
	}
}

// broken are programs that pass their self-test and do not serve.
var broken = map[string]string{
	"ends":  "exit 1",
	"hangs": "exec sleep 3600",
}

// A version that ends, or hangs, or hears no host, is replaced by the former one within its time. Hosts are told why.
func TestUpdateThatDoesNotServe(t *testing.T) {
	for name, line := range broken {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := supervise(t, "1.0.0", name == "ends")
			program := []byte("#!/bin/sh\ncase $1 in self-test) exit 0;; esac\n" + line + "\n")
			if reply, err := s.update(program, "1.5.0", false); err != nil {
				t.Fatal(reply, err)
			}
			status := s.settled("1.5.0", nil)
			if status.Version != "1.0.0" || status.Update.Last.Confirmed || status.Update.State != "failed" {
				t.Error(status.Version, status.Update)
			}
			t.Log(status.Update.Last.Error)
			s.clean("1.0.0")
			told := make(chan *pb.ErrorEvent, 10)
			c := s.dial(client.Options{Event: func(_ string, event proto.Message) {
				if e, ok := event.(*pb.ErrorEvent); ok {
					told <- e
				}
			}})
			defer c.Close()
			select {
			case e := <-told:
				if e.Code != "agent_update" || !strings.Contains(e.Message, "1.5.0 was taken back") {
					t.Error(e)
				}
			case <-time.After(30 * time.Second):
				t.Error("a host is told nothing")
			}
		})
	}
	for name, managed := range map[string]bool{"no host, by a service manager": true, "no host": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := supervise(t, "1.0.0", managed)
			if reply, err := s.update(readAll(t, agentOf(t, "1.1.0")), "1.1.0", false); err != nil {
				t.Fatal(reply, err)
			}
			eventually(t, "the end of the trial", func() bool {
				text, err := os.ReadFile(filepath.Join(s.state, "update-last.json"))
				return err == nil && bytes.Contains(text, []byte("no host was heard within 10s"))
			})
			if status := s.status(); status.Version != "1.0.0" || status.Update.Last.GetConfirmed() {
				t.Error(status.Version, status.Update)
			}
			s.clean("1.0.0")
		})
	}
}

// A version that hears a host and refuses all that it asks for would refuse the next update as well: it does not stay. Here it
// does not read the journal, which is of another format by then.
func TestUpdateThatRefusesEverything(t *testing.T) {
	t.Parallel()
	s := supervise(t, "1.0.0", true)
	s.status()
	if err := os.WriteFile(s.stopFile, []byte("wait next.run"), 0o600); err != nil {
		t.Fatal(err)
	}
	if reply, err := s.update(readAll(t, agentOf(t, "1.1.0")), "1.1.0", false); err != nil {
		t.Fatal(reply, err)
	}
	eventually(t, "the start of the new version", func() bool { _, err := os.Lstat(s.stopFile + ".reached"); return err == nil })
	if err := errors.Join(os.Remove(s.stopFile), os.WriteFile(filepath.Join(s.state, "tx", "format"), []byte("9\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	_ = s.process.Kill()
	s.mu.Unlock()
	s.settled("1.1.0", nil)
	var status *pb.GetStatusResponse
	eventually(t, "the former version refuses", func() bool {
		status = s.status()
		return status.State == pb.AgentState_AGENT_STATE_REFUSING
	})
	if status.Version != "1.0.0" || status.Update.Last.Confirmed || !strings.Contains(status.Update.Last.Error, "it refuses everything") {
		t.Error(status.Version, status.Update)
	}
	if !strings.Contains(status.Journal.Error, "format version 9") {
		t.Error(status.Journal)
	}
}

// Wherever an agent is killed in the course of an update, the one that answers afterwards is the right one: the former one
// until the new one is noted, and then the new one. Nothing is left over, and the next update works.
func TestUpdateKilledAtEachStep(t *testing.T) {
	former := []string{"stage.open", "stage.create", "verify.sync", "verify.signature", "verify.publish", "verify.selftest", "trial.note"}
	latter := []string{
		"restart", "next.count", "next.run", "confirm.backup", "confirm.rename", "confirm.sync", "conclude.note", "conclude.clean",
		"conclude.forget",
	}
	s := supervise(t, "1.0.0", true)
	program := readAll(t, agentOf(t, "1.1.0"))
	for i, step := range append(former, latter...) {
		s.status() // it serves
		if err := os.WriteFile(s.stopFile, []byte(step), 0o600); err != nil {
			t.Fatal(err)
		}
		before := s.status().Update.Last
		_, err := s.update(program, "1.1.0", true)
		reached := func() bool { _, err := os.Lstat(s.stopFile); return errors.Is(err, os.ErrNotExist) }
		if i < len(former) {
			if !client.Gone(err) || !reached() {
				t.Fatalf("%s: %v", step, err)
			}
			if v := s.status().Version; v != "1.0.0" {
				t.Errorf("%s: version %s answers", step, v)
			}
			s.clean("1.0.0")
			continue
		}
		eventually(t, "the end of an agent at "+step, func() bool {
			if !reached() {
				s.status() // a host makes it confirm
			}
			return reached()
		})
		if status := s.settled("1.1.0", before); status.Version != "1.1.0" || !status.Update.Last.Confirmed {
			t.Errorf("%s: version %s answers: %v", step, status.Version, status.Update)
		}
		eventually(t, "the end of what is left after "+step, func() bool {
			trial, err := update.Trial(s.state)
			return trial == nil && err == nil && s.status().Update.State == "complete"
		})
		s.clean("1.1.0")
		if t.Failed() {
			return
		}
		// Back to the former one, for the next step.
		before = s.status().Update.Last
		if _, err := s.update(readAll(t, agentOf(t, "1.0.0")), "1.0.0", true); err != nil {
			t.Fatal(err)
		}
		if status := s.settled("1.0.0", before); status.Version != "1.0.0" {
			t.Fatal(status)
		}
	}
}

// A script that runs is waited for; one that awaits its confirmation makes the agent busy.
func TestUpdateWaitsForScripts(t *testing.T) {
	s := supervise(t, "1.0.0", true)
	c := s.dial(client.Options{})
	defer c.Close()
	awaitRecovered(t, c)
	marker := filepath.Join(s.dir, "marker")
	ended := make(chan *pb.RunScriptResponse, 1)
	go func() {
		source := fmt.Sprintf(`file.write(%q, "begun") exec.run({"/bin/sleep", "2"}, {readonly = true}) file.write(%q, "ended")`, marker, marker)
		reply, _ := client.Call[*pb.RunScriptResponse](context.Background(), c, &pb.RunScriptRequest{Source: []byte(source)})
		ended <- reply
	}()
	eventually(t, "the script", func() bool { _, err := os.Lstat(marker); return err == nil })
	if reply, err := s.update(readAll(t, agentOf(t, "1.1.0")), "1.1.0", false); err != nil {
		t.Fatal(reply, err)
	}
	if reply := <-ended; reply.GetStatus() != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		t.Error("the script was interrupted:", reply)
	}
	if text := readAll(t, marker); string(text) != "ended" {
		t.Errorf("%q", text)
	}
	if v := s.settled("1.1.0", nil).Version; v != "1.1.0" {
		t.Error(v)
	}
}

// The command line of a host: the new version answers, the exit status says what became of it.
func TestUpdateByTheCommandLine(t *testing.T) {
	tool, err := ctltest.Binary()
	if err != nil {
		t.Fatal(err)
	}
	s := supervise(t, "1.0.0", true)
	s.status()
	file := filepath.Join(s.dir, "new")
	put := func(program []byte, version string) {
		t.Helper()
		if err := errors.Join(os.WriteFile(file, program, 0o755), os.WriteFile(file+".minisig", s.signed(program, version), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	ctl := func(args ...string) (string, int) {
		cmd := exec.Command(tool, append([]string{"--socket", s.socket}, args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	if out, code := ctl("update", file); code != 1 || !strings.Contains(out, "the signature: open ") {
		t.Error(out, code)
	}
	put(readAll(t, agentOf(t, "1.1.0")), "1.1.0")
	if out, code := ctl("update", "--wait", file); code != 0 || out != "version 1.1.0 answers\n" {
		t.Error(out, code)
	}
	put(readAll(t, agentOf(t, "1.0.0")), "1.0.0")
	if out, code := ctl("update", "--wait", file); code != 4 || !strings.Contains(out, "version 1.0.0 is older than the present 1.1.0") {
		t.Error(out, code)
	}
	if out, code := ctl("--json", "update", "--wait", "--allow-downgrade", file); code != 0 ||
		!strings.Contains(out, `"confirmed":true`) || !strings.Contains(out, `"version":"1.0.0"`) {
		t.Error(out, code)
	}
	put([]byte("#!/bin/sh\ncase $1 in self-test) exit 0;; esac\nexit 1\n"), "1.6.0")
	out, code := ctl("update", "--wait", file)
	if code != 5 || !strings.Contains(out, "version 1.0.0 answers\n") || !strings.Contains(out, "1.6.0 was taken back") {
		t.Error(out, code)
	}
	if out, code := ctl("status"); code != 0 || !strings.Contains(out, "1.6.0 was taken back") {
		t.Error(out, code)
	}
}

// The self-test of this program finds another version, a configuration with faults, and a journal that it does not read.
func TestSelfTest(t *testing.T) {
	dir := t.TempDir()
	config, tx := filepath.Join(dir, "agent.yaml"), filepath.Join(dir, "state", "tx")
	run := func(version string) (string, error) {
		args := []string{"self-test", "--version-is", version, "--config", config, "--state", filepath.Dir(tx)}
		out, err := exec.Command(agentOf(t, "1.1.0"), args...).CombinedOutput()
		return string(out), err
	}
	if out, err := run("1.1.0"); err != nil || !strings.Contains(out, "1.1.0") {
		t.Error(out, err)
	}
	if out, err := run("1.2.0"); err == nil || !strings.Contains(out, "not 1.2.0") {
		t.Error(out, err)
	}
	if err := errors.Join(os.MkdirAll(tx, 0o700), os.WriteFile(filepath.Join(tx, "format"), []byte("7\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if out, err := run("1.1.0"); err == nil || !strings.Contains(out, "format version 7") {
		t.Error(out, err)
	}
	if err := errors.Join(os.RemoveAll(tx), os.WriteFile(config, []byte("nonsense: 1\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if out, err := run("1.1.0"); err == nil || !strings.Contains(out, "nonsense") {
		t.Error(out, err)
	}
	if _, err := os.Lstat(filepath.Dir(tx)); err != nil {
		t.Error(err)
	}
}
