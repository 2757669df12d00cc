package main

import (
	"debug/pe"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/runtime/config"
)

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// The configuration of the package changes nothing, and what it says the defaults are, they are.
func TestShippedConfiguration(t *testing.T) {
	text := read(t, "package/agent.yaml")
	spoken := regexp.MustCompile(`(?m)^#( *[a-z_]+:)`).ReplaceAllString(text, "$1")
	if strings.Count(spoken, "\n") != strings.Count(text, "\n") || spoken == text {
		t.Fatal("no key was found")
	}
	for _, text := range []string{text, spoken} {
		c, warnings, err := config.Parse([]byte(text))
		if err != nil || len(warnings) > 0 || !same(c, config.Default()) {
			t.Errorf("%v %v\n%+v", warnings, err, c)
		}
	}
}

// systemd understands every line of the units, and finds no fault.
func TestUnitsAreVerified(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("no systemd-analyze: install systemd")
	}
	binary, err := agenttest.Binary()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	units, err := filepath.Glob("package/quantix-kvm-*.[st]*")
	if err != nil || len(units) != 3 {
		t.Fatal(units, err)
	}
	var copies []string
	for _, unit := range units {
		// The program is not where a package would have it.
		text := regexp.MustCompile(`(?m)^(Exec[A-Za-z]+=)(/usr/bin/)?quantix-kvm-agent`).ReplaceAllString(read(t, unit), "${1}"+binary)
		path := filepath.Join(dir, filepath.Base(unit))
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		copies = append(copies, path)
	}
	cmd := exec.Command("systemd-analyze", append([]string{"verify", "--man=no"}, copies...)...)
	out, err := cmd.CombinedOutput()
	var faults []string
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "quantix") { // this machine's own units may have faults
			faults = append(faults, line)
		}
	}
	if len(faults) > 0 {
		t.Errorf("%v\n%s", err, strings.Join(faults, ""))
	}
	if !strings.Contains(read(t, "package/quantix-kvm-agent.service"), "\nKillMode=process\n") {
		t.Error("commands of the host would end with the agent")
	}
}

// Scripts of the package are ones that any shell reads.
func TestMaintainerScriptsAreRead(t *testing.T) {
	for _, name := range []string{"preinst", "postinst", "prerm", "postrm"} {
		if out, err := exec.Command("sh", "-n", filepath.Join("package", name)).CombinedOutput(); err != nil {
			t.Errorf("%s: %v %s", name, err, out)
		}
	}
}

// The packages of Windows say for which processors they are, and have programs for those.
func TestMSI(t *testing.T) {
	if os.Getenv("QUANTIX_PACKAGES") == "" {
		t.Skip("builds two packages of Windows, which takes a minute: set QUANTIX_PACKAGES=1")
	}
	for _, name := range []string{"wixl", "msibuild", "msiextract"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skip("needs wixl, msibuild and msiextract: apt-get install wixl msitools")
		}
	}
	dir := t.TempDir()
	for arch, want := range map[string]struct {
		template string
		machine  uint16
	}{
		"amd64": {"x64;1033", pe.IMAGE_FILE_MACHINE_AMD64}, "arm64": {"Arm64;1033", pe.IMAGE_FILE_MACHINE_ARM64},
	} {
		must(t, "package/windows/build.sh", dir, "1.2.3", "-s -w -X main.version=1.2.3", arch)
		msi := filepath.Join(dir, "quantix-kvm-agent_1.2.3_windows_"+arch+".msi")
		if out := must(t, "msiinfo", "suminfo", msi); !strings.Contains(out, "Template: "+want.template+"\n") || !strings.Contains(out, "Version: 500 ") {
			t.Errorf("%s: %s", arch, out)
		}
		tree := filepath.Join(dir, arch)
		must(t, "msiextract", "-C", tree, msi)
		found := 0
		err := filepath.WalkDir(tree, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || filepath.Ext(path) != ".exe" {
				return err
			}
			found++
			file, err := pe.Open(path)
			if err != nil {
				return err
			}
			defer file.Close()
			if file.Machine != want.machine {
				t.Errorf("%s is for %#x", path, file.Machine)
			}
			return nil
		})
		if err != nil || found != 2 {
			t.Errorf("%s: %d programs, %v", arch, found, err)
		}
	}
}
