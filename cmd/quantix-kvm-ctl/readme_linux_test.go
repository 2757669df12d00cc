package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/ctltest"
)

// readmeBlock returns the first fenced block behind a text of the README.
func readmeBlock(t *testing.T, behind string) string {
	t.Helper()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), behind)
	m := regexp.MustCompile("(?ms)^```\n(.*?)^```$").FindStringSubmatch(rest)
	if !found || m == nil {
		t.Fatalf("the README has no block behind %q", behind)
	}
	return m[1]
}

// Every command of the README's quick start works in the tree that it makes.
func TestQuickStart(t *testing.T) {
	agent, err := agenttest.Binary()
	if err != nil {
		t.Fatal(err)
	}
	ctl, err := ctltest.Binary()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "qs-") // short: a socket's path has at most 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	script := readmeBlock(t, "## Try it on a machine")
	for _, change := range [][2]string{
		{"/tmp/", dir + "/"}, {"make build\n", ""}, {".build/quantix-kvm-agent", agent}, {".build/quantix-kvm-ctl", ctl},
	} {
		if !strings.Contains(script, change[0]) {
			t.Fatalf("there is no %q in it", change[0])
		}
		script = strings.ReplaceAll(script, change[0], change[1])
	}
	c := exec.Command("bash", "-e", "-c", "trap 'kill $(jobs -p) 2>/dev/null' EXIT\n"+script)
	c.Dir = filepath.Join("..", "..")
	said, err := c.CombinedOutput()
	if err != nil || !strings.Contains(string(said), "a web server") {
		t.Errorf("%v\n%s", err, said)
	}
}

// QEMU takes the README's arguments, and makes the socket.
func TestChannelOfQEMU(t *testing.T) {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("QEMU is not installed here: qemu-system-x86 in Debian")
	}
	dir, err := os.MkdirTemp("", "qs-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	given := strings.ReplaceAll(readmeBlock(t, "With QEMU alone:"), "/run/vm/", dir+"/")
	args := strings.Fields(strings.ReplaceAll(given, "\\\n", " "))
	c := exec.Command(qemu, append([]string{"-S", "-nodefaults", "-display", "none", "-accel", "tcg", "-m", "64"}, args...)...)
	var said strings.Builder
	c.Stderr = &said
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	socket := filepath.Join(dir, "web.agent")
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if info, err := os.Stat(socket); err == nil && info.Mode()&os.ModeSocket != 0 {
			break
		}
		select {
		case err := <-ended:
			t.Fatalf("%v: %s", err, said.String())
		default:
		}
		if time.Now().After(deadline) {
			t.Error("it made no socket")
			break
		}
	}
	_ = c.Process.Kill()
	<-ended
}
