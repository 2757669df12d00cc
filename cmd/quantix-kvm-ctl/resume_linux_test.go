package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/ctltest"
)

// Where its first connection is cut the tool says so, connects again and does what it was told, once; unless it was told not to.
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
