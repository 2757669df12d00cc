package winguest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/mgr"
)

const (
	serviceName = "QuantixKVMAgent"
	programData = `C:\ProgramData\Quantix-KVM`
	eventSource = `SYSTEM\CurrentControlSet\Services\EventLog\Application\` + serviceName
)

// onlyOne keeps tests that install the service of this machine apart, and begins and ends without it.
func onlyOne(t *testing.T) {
	t.Helper()
	Program(t, "quantix-kvm-agent")
	// The removal of a package takes this with it where it is empty, as under Wine.
	k, _, err := registry.CreateKey(registry.LOCAL_MACHINE, filepath.Dir(eventSource), registry.QUERY_VALUE)
	if err != nil {
		t.Fatal(err)
	}
	k.Close()
	agentCommand(t, "service", "remove")
	t.Cleanup(func() { agentCommand(t, "service", "remove"); os.RemoveAll(programData) })
}

// agentCommand runs a command of the agent, which has to succeed.
func agentCommand(t *testing.T, args ...string) {
	t.Helper()
	runProgram(t, Program(t, "quantix-kvm-agent"), args...)
}

func runProgram(t *testing.T, name string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(name), strings.Join(args, " "), err, out)
	}
}

func openService(t *testing.T) *mgr.Service {
	t.Helper()
	m, err := mgr.Connect()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Disconnect() })
	s, err := m.OpenService(serviceName)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func hasService(t *testing.T) bool {
	t.Helper()
	m, err := mgr.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer m.Disconnect()
	s, err := m.OpenService(serviceName)
	if err != nil {
		return false
	}
	s.Close()
	return true
}

func hasEventSource() bool {
	k, err := registry.OpenKey(registry.LOCAL_MACHINE, eventSource, registry.QUERY_VALUE)
	if err != nil {
		return false
	}
	defer k.Close()
	_, _, err = k.GetStringValue("EventMessageFile")
	return err == nil
}

// The service control manager starts the agent, which serves the port, and stops it; afterwards nothing of the service is left
// but its configuration and logs.
func TestService(t *testing.T) {
	onlyOne(t)
	const name = "org.quantix.agent.5"
	for range 2 { // the second one changes what there is
		agentCommand(t, "service", "install", "--", "--device", `\\.\Global\`+name)
	}
	s := openService(t)
	key, err := registry.OpenKey(registry.LOCAL_MACHINE, `SYSTEM\CurrentControlSet\Services\`+serviceName, registry.QUERY_VALUE)
	if err != nil {
		t.Fatal(err)
	}
	defer key.Close()
	start, _, startErr := key.GetIntegerValue("Start")
	line, _, lineErr := key.GetStringValue("ImagePath")
	description, _, descriptionErr := key.GetStringValue("Description")
	if err := errors.Join(startErr, lineErr, descriptionErr); err != nil || start != mgr.StartAutomatic ||
		!strings.Contains(line, "service run --device") || description == "" {
		t.Error(err, start, line, description)
	}
	if !hasEventSource() {
		t.Error("no event source")
	}
	privateTo(t, programData)
	for range 2 {
		p := NewPort(t, name)
		h := NewHost(t, p)
		agentCommand(t, "service", "start")
		agentCommand(t, "service", "start") // which it is
		if status, err := s.Query(); err != nil || status.State != svc.Running {
			t.Error(status, err)
		}
		ctl(t, h, "ping")
		lost := firstDial(t, pipePrefix+"quantix-kvm-agent")
		agentCommand(t, "status") // over the agent's own pipe
		reloads(t)
		lost()
		agentCommand(t, "service", "stop")
		agentCommand(t, "service", "stop")
		if status, err := s.Query(); err != nil || status.State != svc.Stopped || status.Win32ExitCode != 0 {
			t.Error(status, err)
		}
		h.l.Close()
		p.Unplug() // a pipe serves one client
	}
	log, err := os.ReadFile(filepath.Join(programData, "Logs", "agent.log"))
	if err != nil || !strings.Contains(string(log), "serving port") {
		t.Error("the log:", err, string(log))
	}
	s.Close()
	agentCommand(t, "service", "remove")
	agentCommand(t, "service", "remove")
	if hasService(t) || hasEventSource() {
		t.Error("something is left of the service")
	}
}

// A script that the service manager's stop meets is rolled back before the service has ended, and the host hears it.
func TestServiceStopRollsBack(t *testing.T) {
	onlyOne(t)
	const name = "org.quantix.agent.2"
	agentCommand(t, "service", "install", "--", "--device", `\\.\Global\`+name)
	p := NewPort(t, name)
	h := NewHost(t, p)
	agentCommand(t, "service", "start")
	dir := t.TempDir()
	made, old := filepath.Join(dir, "made"), filepath.Join(dir, "old")
	if err := os.WriteFile(old, []byte("of before"), 0o600); err != nil {
		t.Fatal(err)
	}
	script := scriptFile(t, dir, `file.write("DIR/old", "changed") file.write("DIR/made", "x") while true do end`)
	type outcome struct {
		out, errs string
		status    int
	}
	ended := make(chan outcome, 1)
	go func() {
		out, errs, status := runCtl(t, h, "run", script)
		ended <- outcome{out, errs, status}
	}()
	waitFor(t, "the script has written", func() bool { _, err := os.Stat(made); return err == nil })
	agentCommand(t, "service", "stop")
	if got, err := os.ReadFile(old); err != nil || string(got) != "of before" {
		t.Errorf("the file has %q, %v", got, err)
	}
	if _, err := os.Stat(made); err == nil {
		t.Error("what the script made is left")
	}
	if o := <-ended; o.status != 5 || !strings.Contains(o.out+o.errs, "rolled back") {
		t.Errorf("status %d\n%s%s", o.status, o.out, o.errs)
	}
}

// reloads changes the configuration of the service, has it read again, and does so once more with a fault in it.
func reloads(t *testing.T) {
	t.Helper()
	path := filepath.Join(programData, "agent.yaml")
	for text, want := range map[string]string{"log_level: debug\n": "", "log_level: loud\n": "what was in force stays", "": ""} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(Program(t, "quantix-kvm-agent"), "reload").CombinedOutput()
		if (err != nil) != (want != "") || !strings.Contains(string(out), want) {
			t.Errorf("reload of %q: %v %s", text, err, out)
		}
	}
}

// privateTo fails the test where others than administrators and the system may do something with a directory.
func privateTo(t *testing.T, path string) {
	t.Helper()
	sd, err := windows.GetNamedSecurityInfo(path, windows.SE_FILE_OBJECT, windows.DACL_SECURITY_INFORMATION)
	if err != nil {
		t.Fatal(err)
	}
	text := sd.String()
	if isWine() { // whose answer is made of the bits of a Unix mode
		return
	}
	for _, who := range []string{";WD)", ";BU)", ";AU)", ";IU)"} { // everyone, users, those who logged on, those at the console
		if strings.Contains(text, who) {
			t.Errorf("rights of %s: %s", path, text)
		}
	}
}
