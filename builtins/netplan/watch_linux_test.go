package netplan

import (
	"net"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// What changes in the kernel is told, and the end of the listening ends it.
func TestKernelTells(t *testing.T) {
	w := newWire(t)
	k := watchKernel()
	defer k.close()
	for _, line := range []string{"addr add 192.0.2.7/24 dev here", "route add 198.51.100.0/24 via 192.0.2.1", "link set here mtu 1400"} {
		time.Sleep(20 * time.Millisecond) // what was under way
		select {
		case <-k.changed:
		default:
		}
		w.here(line)
		select {
		case <-k.changed:
		case <-time.After(20 * time.Second):
			t.Errorf("ip %s is not told", line)
		}
	}
}

func TestPace(t *testing.T) {
	var p pace
	var took []time.Duration
	for range 7 {
		p.next().Stop()
		took = append(took, time.Duration(p))
	}
	if took[0] != lookFirst || took[1] != 2*lookFirst || took[6] != lookEvery {
		t.Error(took)
	}
}

// ownBus runs a bus and has it be the system's for the test.
func ownBus(t *testing.T) (stop func()) {
	t.Helper()
	program, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Skip("needs dbus-daemon")
	}
	socket := filepath.Join(t.TempDir(), "bus")
	cmd := exec.Command(program, "--session", "--nofork", "--nopidfile", "--address=unix:path="+socket)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	t.Cleanup(stop)
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+socket)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		conn, err := net.Dial("unix", socket) // the socket is there a moment before somebody listens
		if err == nil {
			conn.Close()
			return stop
		}
		if time.Now().After(deadline) {
			t.Fatal("there is no bus:", err)
		}
	}
}

// The connection to the bus is one for all that goes on, and is made anew where it broke; nobody keeps it for ever.
func TestConnectionIsKept(t *testing.T) {
	stop := ownBus(t)
	d := &daemons{}
	done := d.use()
	first, err := d.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if again, err := d.open(t.Context()); err != nil || again != first {
		t.Error("it is another one:", err)
	}
	d.expire()
	if !first.Connected() {
		t.Error("it is closed while somebody uses it")
	}
	done()
	if d.idle == nil {
		t.Error("nothing closes it")
	}
	d.expire()
	if first.Connected() {
		t.Error("it is kept")
	}
	defer d.use()()
	second, err := d.open(t.Context())
	if err != nil || second == first {
		t.Fatal(err)
	}
	stop()
	for deadline := time.Now().Add(20 * time.Second); second.Connected(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the end of the bus is not seen")
		}
	}
	ownBus(t)
	if third, err := d.open(t.Context()); err != nil || third == second || !third.Connected() {
		t.Error("one that broke is not made anew:", err)
	}
	d.close()
}
