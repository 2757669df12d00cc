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

// readmeBlock returns the first fenced block after a text of the README.
func readmeBlock(t *testing.T, behind string) string {
	t.Helper()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(text), behind)
	m := regexp.MustCompile("(?ms)^```(?:xml)?\n(.*?)^```$").FindStringSubmatch(rest)
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
	given := strings.ReplaceAll(readmeBlock(t, "With QEMU alone:"), "\\\n", " ")
	startQEMU(t, given, "/run/vm/", "web.agent")
}

// Proxmox gives the README's arguments to QEMU as they are, which takes them and makes the socket where --vm 100 finds it.
func TestChannelOfProxmox(t *testing.T) {
	_, given, found := strings.Cut(readmeBlock(t, "With Proxmox"), "--args '")
	given, _, ended := strings.Cut(given, "'")
	if !found || !ended {
		t.Fatal("the block of the README has no --args")
	}
	startQEMU(t, given, "/var/run/quantix-kvm/vms/", "100.agent.sock")
}

// libvirt takes the README's channel, and keeps all of it.
func TestChannelOfLibvirt(t *testing.T) {
	virsh, err := exec.LookPath("virsh")
	if err != nil {
		t.Skip("virsh is not installed here: libvirt-clients in Debian")
	}
	channel := readmeBlock(t, "With libvirt (")
	path := filepath.Join(t.TempDir(), "web.xml")
	domain := "<domain type='test'><name>web</name><memory>65536</memory><os><type>hvm</type></os><devices>" + channel + "</devices></domain>"
	if err := os.WriteFile(path, []byte(domain), 0o600); err != nil {
		t.Fatal(err)
	}
	said, err := exec.Command(virsh, "-q", "-c", "test:///default", "define --validate "+path+"; dumpxml web").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	for line := range strings.Lines(channel) {
		if !strings.Contains(string(said), strings.TrimSpace(line)) {
			t.Errorf("%q is not in\n%s", strings.TrimSpace(line), said)
		}
	}
}

// startQEMU starts QEMU with arguments in which a directory is replaced by one of the test's, until there is a socket of a
// name.
func startQEMU(t *testing.T, given, vms, name string) {
	t.Helper()
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("QEMU is not installed here: qemu-system-x86 in Debian")
	}
	dir, err := os.MkdirTemp("", "qs-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if !strings.Contains(given, vms) {
		t.Fatalf("there is no %s in %s", vms, given)
	}
	args := strings.Fields(strings.ReplaceAll(given, vms, dir+"/"))
	c := exec.Command(qemu, append([]string{"-S", "-nodefaults", "-display", "none", "-accel", "tcg", "-m", "64"}, args...)...)
	var said strings.Builder
	c.Stderr = &said
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	socket := filepath.Join(dir, name)
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
