package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/ctltest"
)

// Where its first connection is cut the tool says so, connects again and does what it was told, once; unless it was told not
// to.
func TestCutConnections(t *testing.T) {
	ctl, err := ctltest.Binary()
	if err != nil {
		t.Fatal(err)
	}
	here, root := t.TempDir(), t.TempDir()
	script, large := filepath.Join(here, "append.lua"), filepath.Join(here, "large")
	content := bytes.Repeat([]byte("0123456789abcde\n"), 100_000)
	for path, content := range map[string][]byte{
		script: []byte(`file.append("/log", "ran\n") for i = 1, 50 do progress(i / 50, "going on") for _ = 1, 1e5 do end end return "done"`),
		large:  content, filepath.Join(root, "large"): content,
	} {
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	a := agenttest.Start(t, agenttest.Options{Root: root})
	for _, c := range []struct {
		name     string
		up, down int64
		args     []string
		code     int
		says     string
	}{
		{"run", 0, 5000, []string{"run", script}, 0, "\"done\"\n"},
		{"run and give up", 0, 5000, []string{"run", "--no-resume", script}, exitNoAnswer, ""},
		{"push", 500_000, 0, []string{"push", "--sha256", large, "/pushed"}, 0, ""},
		{"push and give up", 500_000, 0, []string{"push", "--no-resume", large, "/lost"}, exitNoAnswer, ""},
		{"pull", 0, 500_000, []string{"pull", "--sha256", "/large", filepath.Join(here, "pulled")}, 0, ""},
		{"pull and give up", 0, 500_000, []string{"pull", "--no-resume", "/large", filepath.Join(here, "lost")}, exitNoAnswer, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := agenttest.NewProxy(t, a, func(n int) (int64, int64) {
				if n == 0 {
					return c.up, c.down
				}
				return 0, 0
			})
			cmd := exec.Command(ctl, append([]string{"--socket", p.Socket}, c.args...)...)
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			code, again := ends(t, cmd), bytes.Contains(stderr.Bytes(), []byte("connecting again\n"))
			if code != c.code || stdout.String() != c.says || again != (c.code == 0) {
				t.Errorf("exit code %d\n%s%s", code, &stdout, &stderr)
			}
		})
	}
	if log, err := os.ReadFile(filepath.Join(root, "log")); err != nil || string(log) != "ran\nran\n" { // one for each that was told to run
		t.Errorf("%q, %v", log, err)
	}
	for path, there := range map[string]bool{
		filepath.Join(root, "pushed"): true, filepath.Join(root, "lost"): false, filepath.Join(here, "pulled"): true, filepath.Join(here, "lost"): false,
	} {
		if now, err := os.ReadFile(path); there && !bytes.Equal(now, content) || !there && !os.IsNotExist(err) {
			t.Errorf("%s: %d bytes, %v", path, len(now), err)
		}
	}
}

// exec goes on with a command that restarts its agent, without --detach, and tells how it ended.
func TestExecOfWhatRestartsTheAgent(t *testing.T) {
	ctl, err := ctltest.Binary()
	if err != nil {
		t.Fatal(err)
	}
	first := agenttest.Start(t, agenttest.Options{})
	restarted := make(chan error, 1)
	go func() {
		_ = first.Wait(context.Background())
		second := agenttest.Start(t, agenttest.Options{State: first.State})
		_ = os.Remove(first.Socket)
		restarted <- os.Symlink(second.Socket, first.Socket)
	}()
	line := fmt.Sprintf("echo before; kill -TERM %d; while kill -0 %[1]d 2>/dev/null; do sleep 0.02; done; echo after; exit 7", first.PID())
	cmd := exec.Command(ctl, "-s", first.Socket, "exec", "--", "sh", "-c", line)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if code := ends(t, cmd); code != 7 || stdout.String() != "before\nafter\n" || !strings.Contains(stderr.String(), "connecting again\n") {
		t.Errorf("exit code %d\n%s%s", code, &stdout, &stderr)
	}
	if err := <-restarted; err != nil {
		t.Error(err)
	}
}

// A socket whose other end hangs up at once is named, and not how the library calls its two ends. Whether the write or the read
// finds it out depends on which comes first.
func TestHungUp(t *testing.T) {
	l, socket := listen(t)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	for range 20 {
		code, _, stderr := ctl(t, "-s", socket, "info")
		if code != 3 || !strings.Contains(stderr, "the connection to ") || strings.Contains(stderr, "->") {
			t.Fatalf("%d %q", code, stderr)
		}
	}
}
