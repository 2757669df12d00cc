//go:build vm

package vmtest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Versions that the package is built under.
const (
	present = "0.2.0"
	newer   = "0.9.0"
)

// packages are those built by this process, by version.
var packages builds

type builds struct {
	mu    sync.Mutex
	dir   string
	paths map[string]string
}

func (b *builds) get(version string) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.paths == nil {
		dir, err := os.MkdirTemp("", "agent-deb-")
		if err != nil {
			return "", err
		}
		b.dir, b.paths = dir, map[string]string{}
	}
	if path := b.paths[version]; path != "" {
		return path, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	path, err := vmtest.Package(ctx, b.dir, version)
	if err == nil {
		b.paths[version] = path
	}
	return path, err
}

func (b *builds) clean() {
	if b.dir != "" {
		os.RemoveAll(b.dir)
	}
}

const debInGuest = "/var/tmp/quantix-kvm-agent.deb"

// putPackage puts a version's package into a machine.
func putPackage(t testing.TB, vm *vmtest.VM, version string) {
	t.Helper()
	path, err := packages.get(version)
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Put(limited(t, 2*time.Minute), path, debInGuest, 0o644); err != nil {
		t.Fatal(err)
	}
}

// install installs a version's package in a machine; the agent then runs as its unit.
func install(t testing.TB, vm *vmtest.VM, version string) {
	t.Helper()
	putPackage(t, vm, version)
	vm.Must(t, "dpkg -i "+debInGuest+" && rm "+debInGuest)
}

// property gives a property of the agent's unit.
func property(t testing.TB, vm *vmtest.VM, name string) string {
	t.Helper()
	return vm.Must(t, "systemctl show -P "+name+" quantix-kvm-agent.service")
}

// eventually waits until a line of shell succeeds in a machine. Between two tries it sleeps twice as long as the line took, so
// that polling does not slow an emulated guest down.
func eventually(t testing.TB, vm *vmtest.VM, what, line string) {
	t.Helper()
	ctx := limited(t, 2*time.Minute)
	for {
		began := time.Now()
		r, err := vm.Shell(ctx, line)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if r.ExitCode == 0 {
			return
		}
		if !pause(ctx, max(50*time.Millisecond, 2*time.Since(began))) {
			t.Fatalf("%s: not within two minutes:\n%s%s", what, r.Stdout, r.Stderr)
		}
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func version(t testing.TB, vm *vmtest.VM) string {
	t.Helper()
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	defer c.Close()
	pong, err := client.Call[*pb.PongResponse](limited(t, time.Minute), c, &pb.PingRequest{Sequence: 2})
	if err != nil {
		t.Fatal(err)
	}
	return pong.Version
}

// The package installs, the unit is enabled and runs under both its names, tells systemd how it is, and stops at once.
func TestServiceInstalled(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	if got := version(t, vm); got != present {
		t.Errorf("version %q", got)
	}
	for line, want := range map[string]string{
		"systemctl is-enabled quantix-kvm-agent":              "enabled",
		"systemctl is-active quantix-kvm-agent":               "active",
		"systemctl show -P Id limiquantix-agent":              "quantix-kvm-agent.service",
		"systemctl is-enabled quantix-kvm-agent-recover":      "enabled",
		"systemctl show -P Type quantix-kvm-agent":            "notify",
		"systemctl show -P NRestarts quantix-kvm-agent":       "0",
		"stat -c %a /run/quantix-kvm/agent.sock":              "600",
		"stat -c '%a %U' /var/lib/quantix-kvm":                "700 root",
		"systemctl --failed --no-legend | wc -l":              "0",
		"quantix-kvm-agent status --json | grep -c '\"pid\"'": "1",
		"systemctl is-active quantix-kvm-port.target":         "active",
		"systemctl show -P Wants quantix-kvm-port.target":     "quantix-kvm-agent.service",
	} {
		if got := vm.Must(t, line); got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
	eventually(t, vm, "the status line", "systemctl show -P StatusText quantix-kvm-agent | grep -q 'serving org.quantix.agent.0 (no host), org.quantix.agent.1 (no host)'")
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	eventually(t, vm, "the status line with a host", "systemctl show -P StatusText quantix-kvm-agent | grep -q 'org.quantix.agent.0 (a host)'")
	c.Close()
	text := vm.Must(t, "quantix-kvm-agent status")
	for _, want := range []string{"serving", "org.quantix.agent.0", "journal", "seccomp", "/etc/quantix-kvm/agent.yaml"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	// systemd's own clock tells how long the stop took; the process that asks is slow under emulation.
	vm.Must(t, "systemctl stop quantix-kvm-agent")
	var from, to int64
	fmt.Sscan(property(t, vm, "ActiveExitTimestampMonotonic"), &from)
	fmt.Sscan(property(t, vm, "InactiveEnterTimestampMonotonic"), &to)
	if took := time.Duration(to-from) * time.Microsecond; took <= 0 || took > 10*time.Second { // some 50 ms; a stop that hangs takes 90 s
		t.Errorf("the stop of an idle agent took %v", took)
	}
	if got := property(t, vm, "Result"); got != "success" {
		t.Errorf("result %q", got)
	}
}

// log_level and the like change by a reload, which fails where the file does.
func TestServiceReload(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	vm.Must(t, "echo 'log_level: debug' >> /etc/quantix-kvm/agent.yaml && systemctl reload quantix-kvm-agent")
	before := property(t, vm, "MainPID")
	dial(t, vm, vmtest.AgentPort, client.Options{}).Close()
	eventually(t, vm, "debug lines, with their priority", "journalctl -u quantix-kvm-agent -p 7..7 -o cat | grep -q debug")
	vm.Must(t, "! journalctl -u quantix-kvm-agent -p 6..6 -o cat | grep '^<'")
	r, err := vm.Shell(limited(t, time.Minute), "echo 'nonsense: 1' >> /etc/quantix-kvm/agent.yaml; systemctl reload quantix-kvm-agent")
	if err != nil || r.ExitCode == 0 {
		t.Error("the reload of a faulty file succeeds:", r, err)
	}
	vm.Must(t, "journalctl -u quantix-kvm-agent -p 3 -o cat | grep -q 'nonsense: unknown key'")
	if got := vm.Must(t, "systemctl is-active quantix-kvm-agent"); got != "active" || property(t, vm, "MainPID") != before {
		t.Error("the agent did not go on:", got)
	}
	dial(t, vm, vmtest.AgentPort, client.Options{}).Close()
}

// An agent that is stuck is killed and started again; so is one that died.
func TestServiceWatchdog(t *testing.T) {
	t.Parallel()
	vm := machine(t, vmtest.Options{})
	vm.Must(t, "cd /run/systemd/system && mkdir -p quantix-kvm-agent.service.d && "+
		"printf '[Service]\nWatchdogSec=10\n' > quantix-kvm-agent.service.d/watchdog.conf")
	vm.Must(t, "systemctl daemon-reload && systemctl restart quantix-kvm-agent")
	time.Sleep(21 * time.Second) // twice what the watchdog waits: it is fed
	if got := property(t, vm, "NRestarts"); got != "0" {
		t.Fatalf("an agent that answers was restarted %s times", got)
	}
	before := property(t, vm, "MainPID")
	vm.Must(t, "kill -STOP "+before)
	eventually(t, vm, "the restart of a stuck agent", "test $(systemctl show -P NRestarts quantix-kvm-agent) = 1 && systemctl -q is-active quantix-kvm-agent")
	vm.Must(t, "journalctl -u quantix-kvm-agent | grep -q 'Watchdog timeout'")
	version(t, vm)
	vm.Must(t, "kill -KILL "+property(t, vm, "MainPID"))
	eventually(t, vm, "the restart of a dead agent", "test $(systemctl show -P NRestarts quantix-kvm-agent) = 2 && systemctl -q is-active quantix-kvm-agent")
	version(t, vm)
}

// upgradeScript is what the host's update does in the guest, as an exec: it stops the unit that it runs below.
const upgradeScript = `#!/bin/bash
set -e
systemctl stop quantix-kvm-agent
cp -f /usr/local/bin/quantix-kvm-agent /usr/local/bin/quantix-kvm-agent.bak 2>/dev/null || true
cp -f /tmp/quantix-kvm-agent.new /usr/local/bin/quantix-kvm-agent
chmod 755 /usr/local/bin/quantix-kvm-agent
echo "replaced"
systemctl start quantix-kvm-agent
systemctl is-active quantix-kvm-agent > /tmp/upgrade-state
echo "started"
rm -f /tmp/quantix-kvm-agent.new
touch /tmp/upgrade-finished
`

// hostWrite writes a file through the agent as the Node Daemon does: in chunks of 65,536 bytes, one after the other, with the
// mode and the number of chunks in each.
func hostWrite(t *testing.T, vm *vmtest.VM, path string, content []byte, mode uint32) {
	t.Helper()
	const chunk = 65536
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	defer c.Close()
	total := (len(content) + chunk - 1) / chunk
	for i := range total {
		part := content[i*chunk : min((i+1)*chunk, len(content))]
		reply, err := client.Call[*pb.FileWriteResponse](limited(t, 30*time.Second), c, &pb.FileWriteRequest{
			Path: path, Data: part, Offset: uint64(i * chunk), Mode: mode, CreateParents: true, Eof: i == total-1,
			ChunkNumber: uint32(i), TotalChunks: uint32(total),
		})
		if err != nil || !reply.Success {
			t.Fatal(reply, err)
		}
	}
}

// The host replaces the agent by a program and a script that it uploads, and that run through the agent, with the unit of the
// package: the script finishes, though it stops the agent that runs it, and the new version answers.
func TestServiceHostUpgrade(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	program, err := os.ReadFile(unpacked(t, newer))
	if err != nil {
		t.Fatal(err)
	}
	hostWrite(t, vm, "/tmp/quantix-kvm-agent.new", program, 0o755)
	hostWrite(t, vm, "/tmp/upgrade-quantix-agent.sh", []byte(upgradeScript), 0o755)
	runThrough(t, vm, "/bin/bash /tmp/upgrade-quantix-agent.sh")
	eventually(t, vm, "the end of the script", "test -e /tmp/upgrade-finished && grep -qx active /tmp/upgrade-state")
	if got := version(t, vm); got != newer {
		t.Errorf("version %q answers", got)
	}
	// A package that comes later stands above it.
	install(t, vm, present)
	if got := version(t, vm); got != present {
		t.Errorf("after the package, version %q answers", got)
	}
}

// What a host put before the agent of the package and never becomes ready does not keep the guest without one: after three
// starts that of the package runs, says so, and goes on after a restart. A new version is tried.
func TestServiceGivesUpABrokenUpgrade(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	vm.Must(t, "printf '#!/bin/sh\\necho one >> /run/started\\nexit 1\\n' > /usr/local/bin/quantix-kvm-agent && chmod 755 /usr/local/bin/quantix-kvm-agent")
	vm.Must(t, "systemctl restart quantix-kvm-agent || true")
	eventually(t, vm, "the agent of the package", "systemctl -q is-active quantix-kvm-agent && test -e /run/quantix-kvm/given-up")
	told := make(chan string, 100)
	c := dial(t, vm, vmtest.AgentPort, client.Options{Event: func(_ string, event proto.Message) {
		if fault, ok := event.(*pb.ErrorEvent); ok {
			told <- fault.Code + ": " + fault.Message
		}
	}})
	select {
	case text := <-told:
		if !strings.HasPrefix(text, "agent_replaced: /usr/local/bin/quantix-kvm-agent was started 3 times") {
			t.Error(text)
		}
	case <-time.After(time.Minute):
		t.Error("the host is told nothing")
	}
	c.Close()
	vm.Must(t, "systemctl restart quantix-kvm-agent && test $(wc -l < /run/started) = 3 && journalctl -u quantix-kvm-agent | grep -q 'another agent is first in PATH'")
	vm.Must(t, "cp /usr/bin/quantix-kvm-agent /usr/local/bin/quantix-kvm-agent && systemctl restart quantix-kvm-agent && test ! -e /run/quantix-kvm/starts")
	if exe := vm.Must(t, "readlink /proc/$(systemctl show -P MainPID quantix-kvm-agent)/exe"); exe != "/usr/local/bin/quantix-kvm-agent" {
		t.Error(exe, "runs")
	}
}

// runThrough runs a line by the agent, which may be gone before it can tell the outcome.
func runThrough(t *testing.T, vm *vmtest.VM, line string) {
	t.Helper()
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	reply, err := client.Call[*pb.ExecuteResponse](ctx, c, &pb.ExecuteRequest{Command: line, WaitForExit: true})
	t.Logf("the host hears: %v %v", reply, err)
}

// unpacked gives the agent's binary out of a package.
func unpacked(t *testing.T, version string) string {
	t.Helper()
	deb, err := packages.get(version)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := vmtest.Unpack(limited(t, time.Minute), deb, dir); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "usr/bin/quantix-kvm-agent")
}

// dpkg upgrades the agent while it runs below the agent: it finishes, the new version answers, the configuration and the
// administrator's decision to disable the unit are kept.
func TestServicePackageUpgrade(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	vm.Must(t, "echo 'telemetry_interval_secs: 77' >> /etc/quantix-kvm/agent.yaml")
	putPackage(t, vm, newer)
	runThrough(t, vm, "dpkg -i "+debInGuest+" > /var/tmp/dpkg.log 2>&1; echo $? > /var/tmp/dpkg.code")
	eventually(t, vm, "the end of dpkg", "test -s /var/tmp/dpkg.code")
	if got := vm.Must(t, "cat /var/tmp/dpkg.code; dpkg-query -W -f '${Status}' quantix-kvm-agent"); got != "0\ninstall ok installed" {
		t.Errorf("%s\n%s", got, vm.Must(t, "cat /var/tmp/dpkg.log"))
	}
	if got := version(t, vm); got != newer {
		t.Errorf("version %q answers", got)
	}
	vm.Must(t, "grep -q 77 /etc/quantix-kvm/agent.yaml && systemctl -q is-enabled quantix-kvm-agent")
	vm.Must(t, "systemctl -q disable --now quantix-kvm-agent && dpkg -i "+debInGuest)
	if got := vm.Must(t, "set +e; systemctl is-enabled quantix-kvm-agent; systemctl is-active quantix-kvm-agent; true"); got != "disabled\ninactive" {
		t.Errorf("after the upgrade of a disabled agent: %q", got)
	}
}

// Removing keeps the state and the configuration, purging leaves nothing.
func TestServicePurge(t *testing.T) {
	vm := vmtest.Start(t, vmtest.Options{})
	const everything = "set +e; find / -xdev \\( -path /proc -o -path /sys -o -path /run/vmtest -o -path /var/lib/dpkg -o -path /var/log -o -path /var/cache \\) -prune -o -print | grep -i quantix; ls -d /sys/fs/cgroup/quantix* /run/quantix* 2>/dev/null; true"
	before := vm.Must(t, everything)
	install(t, vm, present)
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	if _, err := client.Call[*pb.ExecuteResponse](limited(t, time.Minute), c, &pb.ExecuteRequest{Command: "true", WaitForExit: true}); err != nil {
		t.Fatal(err)
	}
	if r, err := client.Call[*pb.RunScriptResponse](limited(t, time.Minute), c, &pb.RunScriptRequest{Source: []byte(`file.write("/var/tmp/x", "y")`)}); err != nil || r.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		t.Fatal(r, err)
	}
	c.Close()
	vm.Must(t, "dpkg -r quantix-kvm-agent && test -d /var/lib/quantix-kvm/tx && test -e /etc/quantix-kvm/agent.yaml && ! systemctl -q is-active quantix-kvm-agent")
	vm.Must(t, "dpkg -P quantix-kvm-agent")
	if after := vm.Must(t, everything); after != before {
		t.Errorf("a purge leaves\n%s", after)
	}
	if got := vm.Must(t, "systemctl list-units --all --no-legend 'quantix*' 'limiquantix*'; find /etc/systemd -iname '*quantix*'"); got != "" {
		t.Errorf("systemd still knows %s", got)
	}
}

// A port that is there at boot or appears late starts the agent where it was stopped; without any port nothing fails.
func TestServiceStartsWithItsPort(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	for _, name := range []string{vmtest.AgentPort, vmtest.CtlPort} {
		if err := vm.RemovePort(limited(t, time.Minute), name); err != nil {
			t.Fatal(err)
		}
	}
	vm.Must(t, "systemctl restart quantix-kvm-agent")
	eventually(t, vm, "the agent waits for a port", "systemctl -q is-active quantix-kvm-agent && systemctl show -P StatusText quantix-kvm-agent | grep -q ^waiting")
	eventually(t, vm, "the end of the target", "! systemctl -q is-active quantix-kvm-port.target")
	vm.Must(t, "systemctl stop quantix-kvm-agent")
	if err := vm.AddPort(limited(t, time.Minute), vmtest.AgentPort); err != nil {
		t.Fatal(err)
	}
	eventually(t, vm, "the start by udev", "systemctl -q is-active quantix-kvm-agent")
	if got := version(t, vm); got != present {
		t.Errorf("version %q", got)
	}
}

// The shipped unit hides nothing from the guest and nothing of the guest from commands, and protects the agent, not them.
func TestServiceHasNoSandboxOfItsOwn(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	runThrough(t, vm, "touch /usr/local/x /etc/x /home/x /tmp/x /boot/x && mount -t tmpfs none /mnt && touch /mnt/mounted; cat /proc/self/oom_score_adj > /tmp/oom")
	vm.Must(t, "ls /usr/local/x /etc/x /home/x /tmp/x /boot/x /mnt/mounted")
	if got := vm.Must(t, "cat /tmp/oom /proc/"+property(t, vm, "MainPID")+"/oom_score_adj"); got != "0\n-500" {
		t.Errorf("the scores of a command and of the agent for the want of memory are %q", got)
	}
}

// After a loss of power in the middle of a script, its files are as they were before the network starts.
func TestServiceEarlyRecovery(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	const netplan = "/etc/netplan/50-guest.yaml"
	before := vm.Must(t, "cat "+netplan)
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		client.Call[*pb.RunScriptResponse](ctx, c, &pb.RunScriptRequest{Source: []byte(`
			file.write("` + netplan + `", "network: {version: 2}\n")
			file.write("/etc/late", "x")
			while true do end`)})
	}()
	eventually(t, vm, "the change", "test -e /etc/late && sync")
	if err := vm.Kill(); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := vm.PowerOn(limited(t, 3*time.Minute)); err != nil {
		t.Fatal(err)
	}
	// multi-user.target does not wait for the network.
	eventually(t, vm, "the network", "systemctl -q is-active systemd-networkd && ip -4 addr show dev ens3 | grep -q 10.0.2.15")
	if got := vm.Must(t, "cat "+netplan); got != before {
		t.Errorf("the netplan file is\n%s", got)
	}
	vm.Must(t, "test ! -e /etc/late && test -e /run/systemd/network/10-netplan-ens3.network && ! systemctl -q is-failed quantix-kvm-agent-recover")
	stamp := func(unit, name string) (us int64) {
		fmt.Sscan(vm.Must(t, "systemctl show -P "+name+" "+unit), &us)
		return us
	}
	done, network := stamp("quantix-kvm-agent-recover", "ExecMainExitTimestampMonotonic"), stamp("systemd-networkd", "ExecMainStartTimestampMonotonic")
	if done == 0 || network == 0 || done > network {
		t.Errorf("the recovery ended at %d µs, networkd began at %d µs", done, network)
	}
	served(t, vm).Close()
}

// The status that the host asks for is that of the guest's own command.
func TestServiceStatusFromOutside(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	s, err := client.Call[*pb.GetStatusResponse](limited(t, time.Minute), c, &pb.GetStatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var own struct {
		Session string
		Pid     uint32
	}
	if err := json.Unmarshal([]byte(vm.Must(t, "quantix-kvm-agent status --json")), &own); err != nil || own.Session != s.Session || own.Pid != s.Pid {
		t.Error(own, s, err)
	}
	if s.State != pb.AgentState_AGENT_STATE_SERVING || len(s.Ports) != 2 || s.LastHeard == nil || s.ResidentBytes < 5<<20 || fmt.Sprint(s.Pid) != property(t, vm, "MainPID") {
		t.Error(s)
	}
}

// A host freezes the root with fsfreeze, and the agent is killed: the next one thaws it.
func TestRootStaysFrozenNoLongerThanItsAgent(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	startAgent(t, vm)
	ctx := limited(t, 3*time.Minute)
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	reply, err := client.Call[*pb.ExecuteResponse](ctx, c, &pb.ExecuteRequest{Command: "fsfreeze --freeze /", WaitForExit: true})
	if err != nil || reply.ExitCode != 0 {
		t.Fatal(reply, err)
	}
	c.Close()
	vm.Must(t, "kill -9 $(systemctl show -P MainPID quantix-kvm-agent)")
	eventually(t, vm, "the root is written to again", "timeout -s KILL 1 touch /root/written & sleep 0.5; test -e /root/written")
	vm.Must(t, "journalctl -u quantix-kvm-agent -o cat | grep 'was frozen when an agent was killed'")
}
