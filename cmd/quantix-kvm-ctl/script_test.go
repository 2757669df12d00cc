package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/ctltest"
)

func TestMain(m *testing.M) {
	code := m.Run()
	ctltest.Clean()
	agenttest.Clean()
	os.Exit(code)
}

// The command line scripts, each against an agent of its own that acts on this machine as whoever runs the test.
func TestScripts(t *testing.T) {
	ctltest.RunFiles(t, scripts(t), func(env *testscript.Env) (ctltest.Guest, error) {
		dir := filepath.Join(env.WorkDir, "guest")
		if err := os.Mkdir(dir, 0o755); err != nil {
			return ctltest.Guest{}, err
		}
		a := agenttest.Start(env.T().(testing.TB), agenttest.Options{})
		return ctltest.Guest{
			Socket: a.Socket, Dir: dir, Root: os.Geteuid() == 0,
			Shell: func(ctx context.Context, line string) ([]byte, []byte, int, error) {
				cmd := exec.CommandContext(ctx, guestShell[0], append(guestShell[1:], line)...)
				var stdout, stderr bytes.Buffer
				cmd.Stdout, cmd.Stderr = &stdout, &stderr
				err := cmd.Run()
				if exit := new(exec.ExitError); errors.As(err, &exit) {
					err = nil
				}
				return stdout.Bytes(), stderr.Bytes(), cmd.ProcessState.ExitCode(), err
			},
		}, nil
	})
}
