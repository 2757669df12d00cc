package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/ctltest"
)

// What the guest's policy refuses has an exit code of its own and words that name the rule, and info tells of the policy.
func TestPolicyOfTheGuest(t *testing.T) {
	ctl, err := ctltest.Binary()
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "secret"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	a := agenttest.Start(t, agenttest.Options{Root: root, Config: "security:\n  command_allowlist: [/bin/none]\n  deny_file_read_paths: [/secret]\n"})
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"info", 0, "yes, of agent.yaml"},
		{"cat /secret", 4, "refused by security.deny_file_read_paths (agent.yaml line 3): /secret"},
		{"exec id", 126, "refused by security.command_allowlist (agent.yaml line 2): "},
		{"exec -- id -u", 126, "refused by security.command_allowlist (agent.yaml line 2): "},
	} {
		out, err := exec.Command(ctl, append([]string{"--socket", a.Socket}, strings.Fields(c.args)...)...).CombinedOutput()
		code := 0
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			code = exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		if code != c.code || !strings.Contains(string(out), c.says) {
			t.Errorf("%s: exit code %d, want %d: %s", c.args, code, c.code, out)
		}
	}
}

// A copy of a tree changes no mode of what is there where file.chmod is denied. What is new has the mode that it shall have.
func TestATreeUnderAPolicy(t *testing.T) {
	root, local := t.TempDir(), t.TempDir()
	for path, mode := range map[string]os.FileMode{root + "/d": 0o700, local + "/t": 0o755, local + "/t/new": 0o750} {
		if err := errors.Join(os.MkdirAll(path, 0o700), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(local+"/t/new/f", []byte("x"), 0o640); err != nil {
		t.Fatal(err)
	}
	a := agenttest.Start(t, agenttest.Options{Root: root, Config: "security:\n  deny_operations: [file.chmod, file.chown]\n"})
	if code, out, errs := ctl(t, "-s", a.Socket, "push", "-r", local+"/t/.", "/d"); code != 0 {
		t.Errorf("push -r: exit code %d: %s%s", code, out, errs)
	}
	code, _, errs := ctl(t, "-s", a.Socket, "push", "-a", local+"/t/.", "/d")
	if code != 1 || !strings.Contains(errs, "file.chmod") {
		t.Errorf("push -a: exit code %d: %s", code, errs)
	}
	for path, mode := range map[string]os.FileMode{"/d": 0o700, "/d/new": 0o750, "/d/new/f": 0o640} {
		if info, err := os.Stat(root + path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v %v", path, info, err)
		}
	}
}
