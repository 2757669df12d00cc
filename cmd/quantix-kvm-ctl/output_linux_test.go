package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
)

// A command whose output is lost, as on a disk that is full, does not end as done.
func TestLostOutput(t *testing.T) {
	agent := agenttest.Start(t, agenttest.Options{})
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	for _, args := range []string{"ls /", "ls -l /", "ping", "tx list", "version", "--help", "run motd --help", "--json ls /", "completion bash"} {
		errors, err := os.Create(filepath.Join(t.TempDir(), "err"))
		if err != nil {
			t.Fatal(err)
		}
		defer errors.Close()
		a := &app{stdin: os.Stdin, stdout: &output{file: full}, stderr: errors}
		code := a.run(append([]string{"--socket", agent.Socket}, strings.Fields(args)...))
		said, err := os.ReadFile(errors.Name())
		if err != nil || code != 1 || !strings.Contains(string(said), "no space left on device") {
			t.Errorf("%s: exit code %d, %q, %v", args, code, said, err)
		}
	}
}
