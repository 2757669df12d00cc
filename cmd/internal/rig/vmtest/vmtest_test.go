//go:build vm

package vmtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// within returns a context for one step of a test, generous because the guest is emulated and the host may be busy.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestResume(t *testing.T) {
	begun := time.Now()
	vm := Start(t, Options{})
	t.Logf("resumed: usable after %v", time.Since(begun).Round(time.Millisecond))
	if got := vm.Must(t, "systemctl is-system-running; hostname"); got != "running\nguest" {
		t.Errorf("got %q, want a running system named guest", got)
	}
	for _, unit := range []string{"qemu-guest-agent", "ssh"} {
		if got := vm.Must(t, "systemctl is-active "+unit+" || true"); got != "inactive" {
			t.Errorf("%s is %s, want it installed and not running", unit, got)
		}
	}
	for _, program := range []string{"netplan", "qemu-ga", "sshd", "sudo", "setfacl", "setfattr", "mkfs.ext4", "fsfreeze", "ping", "ip"} {
		vm.Must(t, "command -v "+program)
	}
}

// A machine boots from power-on as Options want it. Its disk has what it flushed and nothing else when its power is cut; from
// that disk another one boots, which then reboots and switches itself off.
func TestColdBoot(t *testing.T) {
	begun := time.Now()
	disk := filepath.Join(t.TempDir(), "kept.qcow2")
	vm := Start(t, Options{Fresh: true, Disk: disk, MemoryMiB: 512, Ports: []string{"org.limiquantix.agent.0"}})
	t.Logf("cold: usable after %v; %s", time.Since(begun).Round(time.Millisecond), vm.Must(t, "systemd-analyze time | head -1"))
	if got := vm.Must(t, "systemctl --failed --no-legend"); got != "" {
		t.Errorf("failed units: %s", got)
	}
	if got := vm.Must(t, "ls /dev/virtio-ports | sort | tr '\\n' ' '"); got != "org.limiquantix.agent.0 org.qemu.guest_agent.0 org.quantix.agent.0 org.quantix.agent.1 org.quantix.probe.0 org.quantix.raw.0 " {
		t.Errorf("ports: %s", got)
	}
	if got := vm.Must(t, "free -m | awk '/Mem/ {print ($2 > 400 && $2 < 512)}'"); got != "1" {
		t.Errorf("memory is not that of Options")
	}
	// The gateway answers, so that a test of netplan has one to lose.
	vm.Must(t, "ping -c 1 -W 10 10.0.2.2")

	vm.Must(t, `
		echo durable > /root/durable; sync /root/durable /root
		echo 600000 > /proc/sys/vm/dirty_writeback_centisecs
		echo lost > /root/lost`)
	if err := vm.Close(); err != nil {
		t.Fatal(err)
	}
	vm = Start(t, Options{Fresh: true, Disk: disk})
	if got := vm.Must(t, "cat /root/durable"); got != "durable" {
		t.Errorf("the flushed file holds %q", got)
	}
	if got := vm.Must(t, "cat /root/lost 2>/dev/null || true"); got != "" {
		t.Errorf("the unflushed file survived with %q: this was no power cut", got)
	}

	ctx := within(t, startLimit)
	id, err := vm.BootID(ctx)
	if err != nil {
		t.Fatal(err)
	}
	vm.Must(t, "echo before > /root/file; systemctl reboot")
	if err := vm.AwaitReboot(ctx, id); err != nil {
		t.Fatal(err)
	}
	if got := vm.Must(t, "cat /root/file"); got != "before" {
		t.Errorf("got %q", got)
	}
	vm.Must(t, "systemctl poweroff")
	if err := vm.AwaitPowerOff(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestRun(t *testing.T) {
	vm := Start(t, Options{})
	ctx := within(t, time.Minute)
	r, err := vm.RunCommand(ctx, Command{
		Argv: []string{"sh", "-c", `cat; pwd; echo "$WORD" >&2; id -u; exit 3`}, Stdin: []byte("in\n"), Env: []string{"WORD=err"}, Dir: "/tmp",
	})
	if err != nil || string(r.Stdout) != "in\n/tmp\n0\n" || string(r.Stderr) != "err\n" || r.ExitCode != 3 {
		t.Fatalf("got %q, %q, %d, %v", r.Stdout, r.Stderr, r.ExitCode, err)
	}
	if r, err = vm.Run(ctx, "sh", "-c", "kill -9 $$"); err != nil || r.ExitCode != 137 {
		t.Errorf("killed command: %d, %v, want 137", r.ExitCode, err)
	}
	if _, err = vm.Run(ctx, "/no/such/program"); err == nil {
		t.Error("a missing program ran")
	}
	// A daemon that keeps its starter's output open.
	begun := time.Now()
	if r, err = vm.Run(ctx, "sh", "-c", "sleep 100 & echo started"); err != nil || string(r.Stdout) != "started\n" || time.Since(begun) > 50*time.Second {
		t.Errorf("command with a daemon: %q after %v, %v", r.Stdout, time.Since(begun), err)
	}
}

func TestRunCancel(t *testing.T) {
	vm := Start(t, Options{})
	ctx, cancel := context.WithCancelCause(within(t, time.Minute))
	reason := errors.New("enough")
	done := make(chan error)
	go func() {
		_, err := vm.Run(ctx, "sh", "-c", "echo here > /run/started; sleep 4321 & wait")
		done <- err
	}()
	vm.Must(t, "until test -e /run/started; do sleep 0.05; done")
	cancel(reason)
	if err := <-done; !errors.Is(err, reason) {
		t.Errorf("got %v", err)
	}
	vm.Must(t, "for i in $(seq 200); do pgrep -f '[s]leep 4321' >/dev/null || exit 0; sleep 0.05; done; exit 1")
}

func TestFiles(t *testing.T) {
	vm := Start(t, Options{})
	ctx := within(t, time.Minute)
	content := make([]byte, 20<<20+1)
	rand.Read(content)
	local := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(local, content, 0o600); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if err := vm.Put(ctx, local, "/opt/new/program", 0o755); err != nil {
		t.Fatal(err)
	}
	put := time.Since(begun)
	got, err := vm.Get(ctx, "/opt/new/program")
	if err != nil || !bytes.Equal(got, content) {
		t.Fatalf("got %d bytes back, other than the %d put, or %v", len(got), len(content), err)
	}
	t.Logf("20 MiB: put in %v, got in %v", put, time.Since(begun)-put)
	if got := vm.Must(t, "stat -c '%a %U %s' /opt/new/program; ls /opt/new"); got != "755 root 20971521\nprogram" {
		t.Errorf("got %s", got)
	}
	if err := vm.PutReader(ctx, strings.NewReader(""), "/opt/empty", 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := vm.Get(ctx, "/opt/empty"); err != nil || len(got) != 0 {
		t.Errorf("empty file: %q, %v", got, err)
	}
	if _, err := vm.Get(ctx, "/opt/none"); err == nil {
		t.Error("got a file that does not exist")
	}
}

func TestResumedMachinesAreCopies(t *testing.T) {
	first := Start(t, Options{})
	first.Must(t, "echo mine > /etc/mark; sync")
	second := Start(t, Options{})
	if got := second.Must(t, "ls /etc/mark 2>&1 || true"); !strings.Contains(got, "No such file") {
		t.Errorf("a resumed machine's disk is not pristine: %s", got)
	}
	if got := first.Must(t, "cat /etc/mark"); got != "mine" {
		t.Errorf("the first machine lost its file: %q", got)
	}
	const random = "head -c 16 /dev/urandom | od -An -tx1"
	if a, b := first.Must(t, random), second.Must(t, random); a == b {
		t.Errorf("two copies drew the same random number %s", a)
	}
}

func TestClock(t *testing.T) {
	vm := Start(t, Options{})
	ctx := within(t, time.Minute)
	const slack = 5 * time.Second
	check := func(when string) {
		t.Helper()
		before := time.Now()
		guest, err := time.Parse("2006-01-02T15:04:05.999999999Z07:00", vm.Must(t, "date --utc +%Y-%m-%dT%H:%M:%S.%NZ"))
		if err != nil {
			t.Fatal(err)
		}
		// The command ran in between; the slack is for what the guest's processor did not get of the host's.
		if guest.Before(before.Add(-slack)) || guest.After(time.Now().Add(slack)) {
			t.Errorf("%s: guest says %v at %v", when, guest, before.UTC())
		}
	}
	check("resumed")
	vm.Must(t, "date -s @1000000000 >/dev/null")
	if err := vm.SetClock(ctx); err != nil {
		t.Fatal(err)
	}
	check("set")
}

func TestPauseResume(t *testing.T) {
	vm := Start(t, Options{})
	ctx := within(t, time.Minute)
	if err := vm.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if _, err := vm.Run(short, "true"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a paused guest answered: %v", err)
	}
	if err := vm.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := vm.Run(ctx, "true"); err != nil {
		t.Error(err)
	}
}

// echo starts rawport on the port and checks that what is sent comes back.
func echo(t *testing.T, vm *VM, port, text string) {
	t.Helper()
	ctx := within(t, time.Minute)
	ended := make(chan error, 1)
	go func() {
		_, err := vm.Run(ctx, RawProgram, "-port", port, "echo")
		ended <- err
	}()
	conn, err := vm.Dial(ctx, port)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, conn, text)
	conn.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func expect(t *testing.T, conn net.Conn, text string) {
	t.Helper()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(text))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != text {
		t.Fatalf("echo of %q: %q, %v", text, got, err)
	}
}

func TestPorts(t *testing.T) {
	const extra = "org.limiquantix.agent.0"
	vm := Start(t, Options{Ports: []string{extra}})
	ctx := within(t, time.Minute)
	for _, port := range []string{AgentPort, CtlPort, RawPort, QemuGAPort, extra} {
		echo(t, vm, port, "hello "+port)
	}
	if err := vm.RemovePort(ctx, AgentPort); err != nil {
		t.Fatal(err)
	}
	vm.Must(t, "for i in $(seq 200); do test -e /dev/virtio-ports/"+AgentPort+" || exit 0; sleep 0.05; done; exit 1")
	if err := vm.AddPort(ctx, AgentPort); err != nil {
		t.Fatal(err)
	}
	echo(t, vm, AgentPort, "plugged in again")
}

func TestQemuGuestAgent(t *testing.T) {
	vm := Start(t, Options{})
	ctx := within(t, time.Minute)
	vm.Must(t, "systemctl start qemu-guest-agent")
	conn, err := vm.Dial(ctx, QemuGAPort)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(conn, `{"execute":"guest-sync","arguments":{"id":4711}}`+"\n"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 256)
	if n, err := conn.Read(buf); err != nil || !strings.Contains(string(buf[:n]), "4711") {
		t.Fatalf("qemu-ga said %q, %v", buf[:n], err)
	}
}

func TestMeasure(t *testing.T) {
	vm := Start(t, Options{})
	ctx := within(t, 3*time.Minute)
	for _, port := range []string{RawPort, CtlPort} {
		f, err := vm.MeasurePort(ctx, port, Load{RoundTrips: 500, Bytes: 16 << 20})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s (emulated: %v): %v", port, vm.Emulated(), f)
		if f.ToGuest <= 0 || f.FromGuest <= 0 || f.RoundTrip.Median <= 0 || f.RoundTrip.P99 < f.RoundTrip.Median {
			t.Errorf("impossible figures: %+v", f)
		}
	}
}

func TestOptionsThatNeedFresh(t *testing.T) {
	for _, o := range []Options{{Disk: "x"}, {MemoryMiB: 512}, {QEMUArgs: []string{"-S"}}} {
		if vm, err := Launch(t.Context(), o); err == nil {
			vm.Close()
			t.Errorf("%+v started", o)
		}
	}
}

func TestQEMUArgumentErrorIsShown(t *testing.T) {
	_, err := Launch(within(t, time.Minute), Options{Fresh: true, QEMUArgs: []string{"-device", "no-such-device"}})
	if err == nil || !strings.Contains(err.Error(), "no-such-device") {
		t.Errorf("got %v, want QEMU's own words", err)
	}
}
