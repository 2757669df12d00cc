package winguest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/windows/registry"
	"golang.org/x/sys/windows/svc"
)

const installDir = `C:\Program Files\Quantix-KVM\Agent`

// packageOf returns the MSI of a version, and skips the test where it was not built.
func packageOf(t *testing.T, version string) string {
	t.Helper()
	Program(t, "quantix-kvm-agent")
	path := filepath.Join(filepath.Dir(Program(t, "quantix-kvm-agent")), "quantix-kvm-agent_"+version+"_windows_amd64.msi")
	if _, err := os.Stat(path); err != nil {
		t.Skip("needs the package, which wixl and msibuild make:", err)
	}
	return path
}

// installed returns the versions that Windows lists of the agent.
func installed(t *testing.T) (versions []string) {
	t.Helper()
	const uninstall = `SOFTWARE\Microsoft\Windows\CurrentVersion\Uninstall`
	k, err := registry.OpenKey(registry.LOCAL_MACHINE, uninstall, registry.ENUMERATE_SUB_KEYS)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	names, err := k.ReadSubKeyNames(-1)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		product, err := registry.OpenKey(registry.LOCAL_MACHINE, uninstall+`\`+name, registry.QUERY_VALUE)
		if err != nil {
			continue
		}
		if title, _, _ := product.GetStringValue("DisplayName"); title == "Quantix KVM guest agent" {
			version, _, _ := product.GetStringValue("DisplayVersion")
			versions = append(versions, version)
		}
		product.Close()
	}
	return versions
}

// A silent installation gives a service that answers; the next version takes its place and leaves the configuration as it is;
// and when that is removed nothing is left but the configuration and what the agent wrote.
func TestPackage(t *testing.T) {
	first, second := packageOf(t, "0.0.1"), packageOf(t, "0.0.2")
	onlyOne(t)
	t.Cleanup(func() { os.RemoveAll(filepath.Dir(installDir)) })
	msiexec := filepath.Join(os.Getenv("SystemRoot"), "system32", "msiexec.exe")
	config := filepath.Join(programData, "agent.yaml")
	answers := func(version string) {
		t.Helper()
		if got := installed(t); len(got) != 1 || got[0] != version {
			t.Errorf("installed: %q", got)
		}
		s := openService(t)
		if status, err := s.Query(); err != nil || status.State != svc.Running {
			t.Error("the service:", status, err)
		}
		s.Close() // it would keep the service from being removed
		p := NewPort(t, "org.quantix.agent.4")
		h := NewHost(t, p)
		if out := ctl(t, h, "info"); !strings.Contains(out, version) {
			t.Error("not that version:", out)
		}
		p.Unplug()
		h.l.Close()
		if !hasEventSource() {
			t.Error("no event source")
		}
		for _, name := range []string{"quantix-kvm-ctl.exe", "OPS.md", "GUIDE.md"} {
			if _, err := os.Stat(filepath.Join(installDir, name)); err != nil {
				t.Error(err)
			}
		}
	}
	runProgram(t, msiexec, "/i", first, "/qn")
	answers("0.0.1")
	shipped, err := os.ReadFile(config)
	if err != nil || !strings.Contains(string(shipped), `C:\ProgramData\Quantix-KVM\pre-freeze.d`) {
		t.Error("the configuration:", err, string(shipped))
	}
	mine := append(shipped, []byte("telemetry_interval_secs: 7\r\n")...)
	if err := os.WriteFile(config, mine, 0o600); err != nil {
		t.Fatal(err)
	}
	runProgram(t, msiexec, "/i", second, "/qn")
	answers("0.0.2")
	if got, err := os.ReadFile(config); err != nil || string(got) != string(mine) {
		t.Error("the upgrade has changed the configuration:", err)
	}
	runProgram(t, msiexec, "/x", second, "/qn")
	if hasService(t) || hasEventSource() || len(installed(t)) > 0 {
		t.Error("left: service, event source, products:", hasService(t), hasEventSource(), installed(t))
	}
	if _, err := os.Stat(installDir); err == nil {
		t.Error("the files are left")
	}
	if got, err := os.ReadFile(config); err != nil || string(got) != string(mine) {
		t.Error("the configuration is gone:", err)
	}
}
