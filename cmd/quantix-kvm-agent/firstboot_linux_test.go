package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// awaitFirstBoot waits until the first-boot scripts have ended.
func awaitFirstBoot(t *testing.T, a *agenttest.Agent) *pb.FirstBoot {
	t.Helper()
	c := a.Client(t, client.Options{})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		s, err := client.Call[*pb.GetStatusResponse](t.Context(), c, &pb.GetStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		switch s.FirstBoot.GetState() {
		case pb.FirstBootState_FIRST_BOOT_STATE_CONFIGURED, pb.FirstBootState_FIRST_BOOT_STATE_FAILED:
			return s.FirstBoot
		}
		if time.Now().After(deadline) {
			t.Fatalf("first boot: %v", s.FirstBoot)
		}
	}
}

// The scripts of an image run once in each guest, in their order, and again in its clone.
func TestFirstBoot(t *testing.T) {
	root, state := scratch(t), t.TempDir()
	dir := filepath.Join(root, firstBootDir)
	put := func(name, content string) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	log := func() string {
		text, _ := os.ReadFile(filepath.Join(root, "srv/log"))
		return string(text)
	}
	put("etc/machine-id", "0123456789abcdef0123456789abcdef\n")
	put(firstBootDir+"/20-second.lua", `file.append("/srv/log", "second " .. params.word .. "\n")`)
	put(firstBootDir+"/20-second.json", `{"word": "two"}`)
	put(firstBootDir+"/10-first.lua", `file.append("/srv/log", "first\n")`)
	put(firstBootDir+"/README", "no script")

	boot := func() *pb.FirstBoot {
		t.Helper()
		a := agenttest.Start(t, agenttest.Options{Root: root, State: state})
		defer a.Stop()
		return awaitFirstBoot(t, a)
	}
	configured := func(what, want string) {
		t.Helper()
		if s := boot(); s.State != pb.FirstBootState_FIRST_BOOT_STATE_CONFIGURED || log() != want {
			t.Errorf("%s: %v %q", what, s, log())
		}
	}
	configured("first boot", "first\nsecond two\n")
	configured("second boot", "first\nsecond two\n")

	put(firstBootDir+"/15-broken.lua", "file.append(\"/srv/log\", \"broken\\n\")\nerror(\"out of luck\")")
	put(firstBootDir+"/30-third.lua", `file.append("/srv/log", "third\n")`)
	s := boot()
	if s.State != pb.FirstBootState_FIRST_BOOT_STATE_FAILED || s.Script != "15-broken" || !strings.Contains(s.Error, "out of luck") {
		t.Error(s)
	}
	if got := log(); got != "first\nsecond two\n" {
		t.Errorf("a script that failed left something, or one behind it ran: %q", got)
	}
	if err := os.Remove(filepath.Join(dir, "15-broken.lua")); err != nil {
		t.Fatal(err)
	}
	configured("repaired", "first\nsecond two\nthird\n")

	put("etc/machine-id", "fedcba9876543210fedcba9876543210\n")
	configured("a clone", "first\nsecond two\nthird\nfirst\nsecond two\nthird\n")

	if err := os.Chmod(filepath.Join(dir, "10-first.lua"), 0o666); err != nil {
		t.Fatal(err)
	}
	if s := boot(); s.State != pb.FirstBootState_FIRST_BOOT_STATE_FAILED || !strings.Contains(s.Error, "can be written by any user") {
		t.Error(s)
	}
}

// An agent that is killed in the middle of a first-boot script runs it when it starts again, and one that is killed after it
// does not.
func TestFirstBootKilled(t *testing.T) {
	root, state := scratch(t), t.TempDir()
	dir := filepath.Join(root, firstBootDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	script := `file.append("/srv/log", "half") if not file.exists("/srv/go-on") then while true do end end file.append("/srv/log", " done\n")`
	if err := os.WriteFile(filepath.Join(dir, "10-slow.lua"), []byte(script), 0o644); err != nil {
		t.Fatal(err)
	}
	a := agenttest.Start(t, agenttest.Options{Root: root, State: state})
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if text, err := os.ReadFile(filepath.Join(root, "srv/log")); err == nil && string(text) == "half" {
			break
		}
	}
	a.Kill()
	if err := os.WriteFile(filepath.Join(root, "srv/go-on"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, forget := range []bool{false, true} {
		if forget { // killed after the commit, before it was written down
			if err := os.Remove(filepath.Join(state, "first-boot.json")); err != nil {
				t.Fatal(err)
			}
		}
		a := agenttest.Start(t, agenttest.Options{Root: root, State: state})
		s := awaitFirstBoot(t, a)
		text, err := os.ReadFile(filepath.Join(root, "srv/log"))
		if err != nil || s.State != pb.FirstBootState_FIRST_BOOT_STATE_CONFIGURED || string(text) != "half done\n" {
			t.Errorf("%v %q %v", s, text, err)
		}
		a.Stop()
	}
}

// While a host's transaction awaits its confirmation first-boot scripts wait: none of them has failed.
func TestFirstBootWaitsForAConfirmation(t *testing.T) {
	root, state := scratch(t), t.TempDir()
	dir := filepath.Join(root, firstBootDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	a := agenttest.Start(t, agenttest.Options{Root: root, State: state})
	awaitFirstBoot(t, a)
	reply := runUnconfirmed(t, a.Client(t, client.Options{}), 600)
	a.Kill()
	for _, name := range []string{"10-first", "20-second"} {
		if err := os.WriteFile(filepath.Join(dir, name+".lua"), []byte(`file.append("/srv/log", "`+name+`\n")`), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	a = agenttest.Start(t, agenttest.Options{Root: root, State: state})
	c := a.Client(t, client.Options{})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		s, err := client.Call[*pb.GetStatusResponse](t.Context(), c, &pb.GetStatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		first := s.FirstBoot
		if first.GetState() == pb.FirstBootState_FIRST_BOOT_STATE_RUNNING && strings.Contains(first.Error, reply.TransactionId) {
			break
		}
		if first.GetState() == pb.FirstBootState_FIRST_BOOT_STATE_FAILED || time.Now().After(deadline) {
			t.Fatalf("first boot: %v", first)
		}
	}
	if got := confirmAs(t, c, reply.TransactionId, pb.ConfirmAction_CONFIRM_ACTION_CONFIRM); got.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		t.Error(got)
	}
	s := awaitFirstBoot(t, a)
	text, err := os.ReadFile(filepath.Join(root, "srv/log"))
	if err != nil || s.State != pb.FirstBootState_FIRST_BOOT_STATE_CONFIGURED || string(text) != "10-first\n20-second\n" {
		t.Errorf("%v %q %v", s, text, err)
	}
}

// A script that gives the guest its machine ID, as in an image that has none or an old one, does not have the scripts run
// again: not when it is taken back, and not once it has committed.
func TestFirstBootSetsTheMachineID(t *testing.T) {
	root, state := scratch(t), t.TempDir()
	dir := filepath.Join(root, firstBootDir)
	const former, own = "0123456789abcdef0123456789abcdef\n", "fedcba9876543210fedcba9876543210\n"
	machine, log := filepath.Join(root, "etc/machine-id"), filepath.Join(root, "srv/log")
	err := os.MkdirAll(dir, 0o755)
	for path, content := range map[string]string{
		machine:                        former,
		filepath.Join(dir, "10-a.lua"): `file.append("/srv/log", "a ")`,
		filepath.Join(dir, "20-b.lua"): `file.write("/etc/machine-id", "` + own[:32] + `\n") file.append("/srv/log", "b ")
if not file.exists("/srv/go-on") then while true do end end`,
		filepath.Join(dir, "30-c.lua"): `file.append("/srv/log", "c ")`,
	} {
		err = errors.Join(err, os.WriteFile(path, []byte(content), 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
	read := func(path string) string {
		text, _ := os.ReadFile(path)
		return string(text)
	}
	a := agenttest.Start(t, agenttest.Options{Root: root, State: state})
	for deadline := time.Now().Add(time.Minute); read(log) != "a b " && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	a.Kill()
	if read(machine) != own {
		t.Fatalf("the script has not come to set it: %q, %q", read(machine), read(log))
	}
	if err := os.WriteFile(filepath.Join(root, "srv/go-on"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"taken back", "committed"} {
		a := agenttest.Start(t, agenttest.Options{Root: root, State: state})
		s := awaitFirstBoot(t, a)
		if s.State != pb.FirstBootState_FIRST_BOOT_STATE_CONFIGURED || read(log) != "a b c " || read(machine) != own {
			t.Errorf("%s: %v, %q, %q", when, s, read(log), read(machine))
		}
		a.Stop()
	}
}

func TestFirstBootFromTheHost(t *testing.T) {
	params := map[string]map[string]any{}
	for _, text := range []string{"org.quantix.firstboot:10-net.mtu=9000", "another vendor's", "org.quantix.firstboot:10-net.name=a=b"} {
		if err := addParam(text, params); err != nil {
			t.Error(err)
		}
	}
	if p := params["10-net"]; len(params) != 1 || p["mtu"] != 9000.0 || p["name"] != "a=b" {
		t.Error(params)
	}
	for _, wrong := range []string{"org.quantix.firstboot:", "org.quantix.firstboot:x=1", "org.quantix.firstboot:.x=1", "org.quantix.firstboot:a.=1", "org.quantix.firstboot:a.b"} {
		if err := addParam(wrong, params); err == nil {
			t.Error(wrong)
		}
	}
	dir := t.TempDir()
	for name, content := range map[string]string{"10-a.lua/raw": "return 1", "10-a.json/raw": "{}", "other/raw": "x"} {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	files := map[string]firstBootText{}
	if err := readFirmware(dir, files); err != nil || len(files) != 2 || string(files["10-a.lua"].text) != "return 1" {
		t.Error(files, err)
	}
}
