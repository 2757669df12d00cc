package clock

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

// properties answers every question about a property with one value.
type properties func() any

func (p properties) Get(_, _ string) (dbus.Variant, *dbus.Error) { return dbus.MakeVariant(p()), nil }

// units starts a unit again.
type units func()

func (u units) RestartUnit(_, _ string) (dbus.ObjectPath, *dbus.Error) {
	u()
	return "/org/freedesktop/systemd1/job/1", nil
}

// privateBus starts a system bus for the test, and returns a function that connects to it.
func privateBus(t *testing.T) func(names ...string) *dbus.Conn {
	t.Helper()
	if _, err := exec.LookPath("dbus-daemon"); err != nil {
		t.Skip("needs the package dbus")
	}
	dir := t.TempDir()
	config := fmt.Sprintf("<busconfig><type>custom</type><listen>unix:path=%s/bus</listen><policy context=\"default\">"+
		"<allow own=\"*\"/><allow send_destination=\"*\"/><allow receive_sender=\"*\"/></policy></busconfig>", dir)
	file := filepath.Join(dir, "conf")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("dbus-daemon", "--config-file="+file, "--nofork", "--print-address")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	address := strings.TrimSpace(line)
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
	return func(names ...string) *dbus.Conn {
		conn, err := dbus.Connect(address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		for _, name := range names {
			if _, err := conn.RequestName(name, 0); err != nil {
				t.Fatal(err)
			}
		}
		return conn
	}
}

// What the process knew that was there before is no measurement: it answers on until it has ended.
func TestTimesyncdMeasuresAnew(t *testing.T) {
	connect := privateBus(t)
	message := func(offset time.Duration) ntpMessage {
		now := time.Now().UnixMicro()
		there := uint64(now + offset.Microseconds())
		return ntpMessage{Version: 4, Mode: 4, Stratum: 2, Reference: []byte{1, 2, 3, 4}, Originate: uint64(now), Receive: there,
			Transmit: there, Destination: uint64(now), Packets: 1}
	}
	export := func(conn *dbus.Conn, value any, path dbus.ObjectPath, iface string) {
		t.Helper()
		if err := conn.Export(value, path, iface); err != nil {
			t.Fatal(err)
		}
	}
	const get = "org.freedesktop.DBus.Properties"
	last := message(2 * time.Millisecond)
	old := connect()
	export(old, properties(func() any { return last }), timesyncPath, get)
	if _, err := old.RequestName(timesync, 0); err != nil {
		t.Fatal(err)
	}
	others := connect(timedate, systemd)
	export(others, properties(func() any { return true }), timedatePath, get)
	export(others, units(func() {
		go func() {
			time.Sleep(3 * lookEvery) // the old one still stops
			next := connect()
			var state atomic.Int64
			export(next, properties(func() any {
				if state.Add(1) < 3 {
					return ntpMessage{} // no answer yet
				}
				return message(time.Hour)
			}), timesyncPath, get)
			old.Close()
			next.RequestName(timesync, 0)
		}()
	}), systemdPath, systemd+".Manager")
	if done, err := byTimesyncd(t.Context(), true); err != nil || done.before != 2*time.Millisecond || done.age <= 0 {
		t.Errorf("a measurement: %+v %v", done, err)
	}
	limit, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	done, err := byTimesyncd(limit, false)
	if err == nil || done.before != time.Hour { // nothing corrects the clock here
		t.Errorf("the old answer counts as a new one: %+v %v", done, err)
	}
}
