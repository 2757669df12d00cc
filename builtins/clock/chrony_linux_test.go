package clock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// startChrony starts a real chronyd that does not touch the clock (-x), with lines of configuration of its own.
func startChrony(t *testing.T, config string) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "chrony-") // short: a socket's path has at most 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket, file := filepath.Join(dir, "sock"), filepath.Join(dir, "conf")
	config += fmt.Sprintf("\ncmdport 0\nbindcmdaddress %s\npidfile %s\n", socket, filepath.Join(dir, "pid"))
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("chronyd", "-x", "-n", "-u", "root", "-f", file)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return socket
}

// A real chronyd is asked: what it measures is told; where it corrects nothing, which one started with -x does not, that is an
// error, whatever its command said.
func TestChrony(t *testing.T) {
	_, daemon := exec.LookPath("chronyd")
	client, control := exec.LookPath("chronyc")
	if daemon != nil || control != nil || os.Geteuid() != 0 {
		t.Skip("needs root and the package chrony")
	}
	port := freePort(t)
	startChrony(t, fmt.Sprintf("local stratum 5\nport %d\nbindaddress 127.0.0.1\nallow 127.0.0.1", port))
	ask := func(offset string) daemons {
		socket := startChrony(t, fmt.Sprintf("port 0\nserver 127.0.0.1 port %d iburst minpoll 0 maxpoll 0 offset %s", port, offset))
		program := filepath.Join(t.TempDir(), "chronyc")
		script := fmt.Sprintf("#!/bin/sh\nexec %s -h %s \"$@\"\n", client, socket)
		if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		d := daemons{run: proc.New(proc.Config{Name: "clock-test", Cgroup: "none", JobCgroup: "none"}), program: program}
		t.Cleanup(func() { d.run.Release() })
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(lookEvery) {
			if now, err := d.tracking(t.Context()); err == nil && now.synced {
				return d
			} else if time.Now().After(deadline) {
				t.Fatal("chronyd gets no answer: ", err)
			}
		}
	}
	right := ask("0")
	if done, err := right.correct(t.Context(), true, false); err != nil || done.source != "chrony" || done.method != pb.ClockMethod_CLOCK_METHOD_NONE || done.before.Abs() > syncedBelow {
		t.Errorf("a clock that is right: %+v %v", done, err)
	}
	behind := ask("1.5")
	if done, err := behind.correct(t.Context(), false, true); err != nil || (done.before-1500*time.Millisecond).Abs() > 50*time.Millisecond || done.after != done.before {
		t.Errorf("a clock that is 1.5 s behind is measured as %+v %v", done, err)
	}
	if done, err := behind.correct(t.Context(), false, false); err == nil {
		t.Errorf("a step that was not made: %+v", done)
	}
	little := ask("0.2")
	limited, cancel := context.WithTimeoutCause(t.Context(), 5*time.Second, errors.New("over"))
	defer cancel()
	if done, err := little.correct(limited, false, false); err == nil {
		t.Errorf("a slew that does not come: %+v", done)
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).Port
}
