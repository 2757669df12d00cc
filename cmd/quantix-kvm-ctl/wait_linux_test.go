package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/ctltest"
)

// A wait goes on where the agent does not run yet, and where it is killed in the middle.
func TestWaitOutlivesAgents(t *testing.T) {
	ctl, err := ctltest.Binary()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	socket, file := filepath.Join(dir, "socket"), filepath.Join(dir, "file")
	wait := exec.Command(ctl, "--socket", socket, "wait", "--timeout", "2m", "--for", "file="+file)
	wait.Stderr = os.Stderr
	if err := wait.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- wait.Wait() }()
	serve := func() *agenttest.Agent {
		t.Helper()
		a := agenttest.Start(t, agenttest.Options{})
		_ = os.Remove(socket)
		if err := os.Symlink(a.Socket, socket); err != nil {
			t.Fatal(err)
		}
		return a
	}
	stillWaits := func() {
		t.Helper()
		select {
		case err := <-ended:
			t.Fatal("it does not wait: ", err)
		case <-time.After(time.Second):
		}
	}
	stillWaits()
	first := serve()
	first.AwaitLog(t, "session opened", 1)
	stillWaits()
	first.Kill()
	stillWaits()
	serve()
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		wait.Process.Kill()
		t.Error("it does not end")
	}
}
