package clock

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
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

// With a real chronyd the reply has the offset that it measured. A chronyd started with -x corrects nothing: that is an error,
// whatever the exit status of its command.
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

// ntpServer answers as a server whose clock is ahead by what is in ahead.
func ntpServer(t *testing.T, ahead *atomic.Int64) (port int) {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	now := func() []byte { // RFC 5905, section 6
		at := time.Now().Add(time.Duration(ahead.Load()))
		b := binary.BigEndian.AppendUint32(nil, uint32(at.Unix()+2208988800))
		return binary.BigEndian.AppendUint32(b, uint32(uint64(at.Nanosecond())<<32/1e9))
	}
	go func() {
		in := make([]byte, 1024)
		for {
			n, from, err := conn.ReadFromUDP(in)
			if err != nil {
				return
			}
			if n < 48 {
				continue
			}
			out := append([]byte{4<<3 | 4, 2, in[2], 0xec}, make([]byte, 8)...)
			out = append(append(out, "GPS\x00"...), now()...)
			out = append(append(out, in[40:48]...), now()...)
			_, _ = conn.WriteToUDP(append(out, now()...), from)
		}
	}()
	return conn.LocalAddr().(*net.UDPAddr).Port
}

// A clock that has jumped, as that of a guest which was paused, is not said to be right by what was measured before.
func TestChronyMeasuresAnew(t *testing.T) {
	_, daemon := exec.LookPath("chronyd")
	client, control := exec.LookPath("chronyc")
	if daemon != nil || control != nil || os.Geteuid() != 0 {
		t.Skip("needs root and the package chrony")
	}
	var ahead atomic.Int64
	socket := startChrony(t, fmt.Sprintf("port 0\nserver 127.0.0.1 port %d iburst", ntpServer(t, &ahead)))
	program := filepath.Join(t.TempDir(), "chronyc")
	if err := os.WriteFile(program, fmt.Appendf(nil, "#!/bin/sh\nexec %s -h %s \"$@\"\n", client, socket), 0o755); err != nil {
		t.Fatal(err)
	}
	d := daemons{run: proc.New(proc.Config{Name: "clock-test", Cgroup: "none", JobCgroup: "none"}), program: program}
	t.Cleanup(func() { d.run.Release() })
	if done, err := d.correct(t.Context(), false, true); err == nil {
		t.Errorf("nothing was measured: %+v", done)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(lookEvery) {
		if done, err := d.correct(t.Context(), false, true); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatal("chronyd gets no answer: ", done, err)
		}
	}
	ahead.Store(int64(time.Hour))
	time.Sleep(2 * time.Second) // whole seconds are told
	if done, err := d.correct(t.Context(), false, true); err == nil && done.age == 0 {
		t.Errorf("what was measured before is told as if it were new: %+v", done)
	}
	done, err := d.correct(t.Context(), true, false)
	if (done.before - time.Hour).Abs() > time.Minute {
		t.Errorf("a clock that is an hour behind: %+v %v", done, err)
	}
}
