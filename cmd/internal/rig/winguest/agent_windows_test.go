package winguest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// guest is an agent on a port, with the host's end.
func guest(t *testing.T, name string) (*Agent, *Host) {
	t.Helper()
	Program(t, "quantix-kvm-agent")
	p := NewPort(t, name)
	h := NewHost(t, p)
	return StartAgent(t, "--device", p.Path), h
}

// ctl runs the ctl, which has to succeed.
func ctl(t *testing.T, h *Host, args ...string) string {
	t.Helper()
	out, errs, status := Ctl(t, h, args...)
	if status != 0 {
		t.Fatalf("ctl %s: status %d\n%s%s", strings.Join(args, " "), status, out, errs)
	}
	return out
}

// supported runs the ctl, and skips the test where the agent says that what it is asked for is unsupported.
func supported(t *testing.T, h *Host, args ...string) string {
	t.Helper()
	out, errs, status := Ctl(t, h, args...)
	if status != 0 && (strings.Contains(errs, "not confined on Windows") || strings.Contains(errs, "unsupported")) {
		t.Skip(strings.ReplaceAll(strings.TrimSpace(errs), "\n", "; "))
	}
	if status != 0 {
		t.Fatalf("ctl %s: status %d\n%s%s", strings.Join(args, " "), status, out, errs)
	}
	return out
}

// The agent serves the port of its name, and each of the ctl's commands does there what it does elsewhere.
func TestAgent(t *testing.T) {
	_, h := guest(t, "org.quantix.agent.7")
	dir := t.TempDir()
	local, far, back := filepath.Join(dir, "local"), filepath.Join(dir, "far"), filepath.Join(dir, "back")
	content := strings.Repeat("all of it\r\n", 20000)
	if err := os.WriteFile(local, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Run("ping", func(t *testing.T) { ctl(t, h, "ping") })
	t.Run("info", func(t *testing.T) {
		if out := ctl(t, h, "info"); !strings.Contains(out, "windows") {
			t.Error(out)
		}
	})
	t.Run("status", func(t *testing.T) {
		if out := ctl(t, h, "status"); !strings.Contains(out, `org.quantix.agent.7`) {
			t.Error(out)
		}
	})
	t.Run("push and pull", func(t *testing.T) {
		ctl(t, h, "push", local, far)
		ctl(t, h, "pull", far, back)
		if got, err := os.ReadFile(back); err != nil || string(got) != content {
			t.Error("not what was pushed", err, len(got))
		}
	})
	t.Run("ls", func(t *testing.T) {
		if out := ctl(t, h, "ls", dir); !strings.Contains(out, "far") {
			t.Error(out)
		}
	})
	t.Run("exec", func(t *testing.T) {
		if out := supported(t, h, "exec", "--", "cmd", "/c", "echo", "hello"); strings.TrimSpace(out) != "hello" {
			t.Errorf("%q", out)
		}
		if _, errs, status := Ctl(t, h, "exec", "--", "cmd", "/c", "exit", "7"); status != 7 {
			t.Error(status, errs)
		}
	})
	t.Run("script", func(t *testing.T) {
		script := filepath.Join(dir, "site.lua")
		made := filepath.ToSlash(filepath.Join(dir, "made"))
		lua := `file.write("` + made + `", "of a script\n") return {os = host.info().os}`
		if err := os.WriteFile(script, []byte(lua), 0o600); err != nil {
			t.Fatal(err)
		}
		out := supported(t, h, "run", script)
		if got, err := os.ReadFile(made); err != nil || string(got) != "of a script\n" {
			t.Error(string(got), err)
		}
		if !strings.Contains(out, `"windows"`) {
			t.Error(out)
		}
	})
}

// A port that is unplugged and plugged in again is served again, and so is one that comes after the agent.
func TestChannelUnpluggedAndBack(t *testing.T) {
	Program(t, "quantix-kvm-agent")
	agent := StartAgent(t) // which looks for ports by their names, the older one last
	waitFor(t, "no port is there", func() bool { return strings.Contains(agent.Log.String(), "no virtio-serial port") })
	for _, name := range []string{"org.quantix.agent.8", "org.limiquantix.agent.0", "org.quantix.agent.8"} {
		p := NewPort(t, name)
		h := NewHost(t, p)
		ctl(t, h, "ping")
		ctl(t, h, "ping")
		p.Unplug()
		h.l.Close()
	}
}

// A port that another process holds is told, and served as soon as it is free.
func TestChannelHeldByAnother(t *testing.T) {
	Program(t, "quantix-kvm-agent")
	p := NewPort(t, "org.quantix.agent.9")
	holder, err := os.OpenFile(p.Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	agent := StartAgent(t)
	waitFor(t, "it is held", func() bool { return strings.Contains(agent.Log.String(), "another process has it open") })
	holder.Close()
	p.Unplug()
	if err := p.Plug(); err != nil { // which the driver does by itself: a pipe serves one client
		t.Fatal(err)
	}
	ctl(t, NewHost(t, p), "ping")
}

// While nobody is at the other end the agent waits, without working.
func TestChannelNoSpin(t *testing.T) {
	Program(t, "quantix-kvm-agent")
	p := NewPort(t, "org.quantix.agent.6")
	agent := StartAgent(t, "--device", p.Path)
	if _, err := p.Open(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "serving", func() bool { return strings.Contains(agent.Log.String(), "serving port") })
	time.Sleep(time.Second) // what it does at its start
	before := agent.CPU(t)
	time.Sleep(3 * time.Second)
	if used := agent.CPU(t) - before; used > time.Second {
		t.Errorf("%v of CPU in three seconds without a host", used)
	}
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never: " + what)
		}
	}
}
