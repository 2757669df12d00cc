package winguest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/windows/registry"
	"golang.org/x/sys/windows/svc/mgr"
)

// runScript has the agent run a script, and returns what ctl printed.
func runScript(t *testing.T, h *Host, args ...string) (out string, ok bool) {
	t.Helper()
	stdout, stderr, status := Ctl(t, h, append([]string{"run"}, args...)...)
	if strings.Contains(stdout+stderr, "script runners are") {
		t.Skip("this agent runs no scripts on Windows: ", stderr)
	}
	return stdout + stderr, status == 0
}

// The registry is what a script says, from the second run on without a change, and as it was where the script fails.
func TestRegistryByScript(t *testing.T) {
	_, h := guest(t, "org.quantix.agent.6")
	below := fmt.Sprintf(`SOFTWARE\Quantix Script Test %d`, time.Now().UnixNano())
	t.Cleanup(func() { registry.DeleteKey(registry.LOCAL_MACHINE, below) })
	read := func() (port uint64, name string) {
		key, err := registry.OpenKey(registry.LOCAL_MACHINE, below, registry.QUERY_VALUE|registry.WOW64_64KEY)
		if err != nil {
			return 0, ""
		}
		defer key.Close()
		port, _, _ = key.GetIntegerValue("Port")
		name, _, _ = key.GetStringValue("Name")
		return port, name
	}
	failing := roomScript(t, fmt.Sprintf(`registry.set([[HKLM\%s]], "Port", 1) error("enough")`, below))
	if out, ok := runScript(t, h, failing); ok || !strings.Contains(out, "enough") {
		t.Fatal(out)
	}
	if key, err := registry.OpenKey(registry.LOCAL_MACHINE, below, registry.QUERY_VALUE); err == nil {
		key.Close()
		t.Error("the key is left of a script that failed")
	}
	args := []string{
		"windows-registry", "-p", `key=HKLM\` + below,
		"-p", `values={"Port": 8080, "Name": {"type": "expand_sz", "value": "%TEMP%"}}`, "-p", `absent=["Old"]`,
	}
	for run, want := range []string{`"changed":true`, `"changed":false`} {
		out, ok := runScript(t, h, append(args, "--json")...)
		if !ok || !strings.Contains(strings.ReplaceAll(out, `": `, `":`), want) {
			t.Fatalf("run %d: %s", run, out)
		}
		if port, name := read(); port != 8080 || name != "%TEMP%" {
			t.Error(port, name)
		}
	}
	if out, ok := runScript(t, h, failing); ok {
		t.Fatal(out)
	}
	if port, _ := read(); port != 8080 {
		t.Error("after a script that failed the value is", port)
	}
	if out, ok := runScript(t, h, "motd", "-p", "title=x"); ok || !strings.Contains(out, "the script is for linux") {
		t.Error(out)
	}
}

// A service is disabled by a script, and one that is not there is an error of its own.
func TestServiceByScript(t *testing.T) {
	_, h := guest(t, "org.quantix.agent.7")
	m, err := mgr.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer m.Disconnect()
	name := fmt.Sprintf("QuantixScriptTest%d", time.Now().UnixNano())
	s, err := m.CreateService(name, `C:\windows\system32\no-such-program.exe`, mgr.Config{StartType: mgr.StartManual})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	t.Cleanup(func() { s.Delete() })
	for run, want := range []string{`"changed":true`, `"changed":false`} {
		out, ok := runScript(t, h, "windows-service", "-p", "name="+name, "-p", "enabled=false",
			"-p", `parameters={"Port": 1}`, "--json")
		if !ok || !strings.Contains(strings.ReplaceAll(out, `": `, `":`), want) {
			t.Fatalf("run %d: %s", run, out)
		}
	}
	out, ok := runScript(t, h, roomScript(t, fmt.Sprintf("return service.status(%q)", name)), "--json")
	if !ok || !strings.Contains(out, `"disabled"`) {
		t.Error(out)
	}
	out, ok = runScript(t, h, "windows-service", "-p", "name=QuantixNoSuchService", "-p", "running=true")
	if ok || !strings.Contains(out, "no such service") {
		t.Error(out)
	}
}

// roomScript writes a script of a test, and returns its path.
func roomScript(t *testing.T, source string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "room.lua")
	if err := os.WriteFile(path, []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
