package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/builtins/internal/txtest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func TestNames(t *testing.T) {
	for name, want := range map[string]unit{
		"nginx": "nginx.service", "sshd.service": "sshd.service", "backup.timer": "backup.timer", "getty@tty1": "getty@tty1.service",
		"foo.bar": "foo.bar.service", "a@": "a@.service",
		"": "", "-h": "", "a/b": "", "a\nb": "", "a b": "", "*": "", strings.Repeat("x", 4096): "", ".service": "", "@x": "",
	} {
		if u, err := parseUnit(name); u != want || (err == nil) != (want != "") {
			t.Errorf("%.20q is %q, want %q: %v", name, u, want, err)
		}
	}
}

// newTree is a room for a tree with units, and a place to see its files at.
func newTree(t *testing.T, files map[string]string) (*Room, string) {
	t.Helper()
	dir := t.TempDir()
	for path, content := range files {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root, err := fsys.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return New(&guest.Guest{Files: root, Dir: dir}), dir
}

const units = "/usr/lib/systemd/system/"

func call(t *testing.T, r *Room, c *builtins.Call, name string, in proto.Message) (proto.Message, error) {
	t.Helper()
	for _, op := range r.Room().Ops {
		if op.Name == name {
			return op.Call(t.Context(), c, in)
		}
	}
	t.Fatal("there is no", name)
	return nil, nil
}

// Links of a tree that is not booted are made as systemctl makes them, once, and removed again.
func TestLinksOfATree(t *testing.T) {
	r, dir := newTree(t, map[string]string{
		units + "web.service":    "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\nAlias=www.service\nAlso=web.socket\n",
		units + "web.socket":     "[Install]\nWantedBy=sockets.target\n",
		units + "vpn@.service":   "[Install]\nWantedBy=multi-user.target\n",
		units + "static.service": "[Service]\nExecStart=/bin/true\n",
	})
	for _, name := range []string{"web", "vpn@office"} {
		for _, want := range []bool{true, false} {
			out, err := call(t, r, &builtins.Call{}, "service.enable", &pb.ServiceEnableArgs{Name: name})
			if err != nil || out.(*pb.Changed).Changed != want {
				t.Fatal(name, out, err)
			}
		}
		if out, err := call(t, r, &builtins.Call{}, "service.status", &pb.ServiceArgs{Name: name}); err != nil || out.(*pb.Service).Enabled != "enabled" {
			t.Error(name, out, err)
		}
	}
	for link, want := range map[string]string{
		"multi-user.target.wants/web.service": units + "web.service", "www.service": units + "web.service",
		"sockets.target.wants/web.socket": units + "web.socket", "multi-user.target.wants/vpn@office.service": units + "vpn@.service",
	} {
		if got, err := os.Readlink(dir + systemDir + "/" + link); err != nil || got != want {
			t.Errorf("%s leads to %q, want %q: %v", link, got, want, err)
		}
	}
	for _, want := range []bool{true, false} {
		out, err := call(t, r, &builtins.Call{}, "service.disable", &pb.ServiceEnableArgs{Name: "web"})
		if err != nil || out.(*pb.Changed).Changed != want {
			t.Error(out, err)
		}
	}
	for _, want := range []bool{true, false} { // by its alias, whose link goes with it
		if want {
			if _, err := call(t, r, &builtins.Call{}, "service.enable", &pb.ServiceEnableArgs{Name: "web"}); err != nil {
				t.Fatal(err)
			}
		}
		out, err := call(t, r, &builtins.Call{}, "service.disable", &pb.ServiceEnableArgs{Name: "www"})
		if err != nil || out.(*pb.Changed).Changed != want {
			t.Error(want, out, err)
		}
	}
	left, _ := filepath.Glob(dir + systemDir + "/*/web*")
	if _, err := os.Lstat(dir + systemDir + "/www.service"); err == nil || len(left) > 0 {
		t.Error("left are", left)
	}
	for _, step := range []struct{ op, enabled string }{{"mask", "masked"}, {"unmask", "disabled"}} {
		if out, err := call(t, r, &builtins.Call{}, "service."+step.op, &pb.ServiceEnableArgs{Name: "web"}); err != nil || !out.(*pb.Changed).Changed {
			t.Error(step, out, err)
		}
		if out, err := call(t, r, &builtins.Call{}, "service.status", &pb.ServiceArgs{Name: "web"}); err != nil || out.(*pb.Service).Enabled != step.enabled {
			t.Error(step, out, err)
		}
	}
	if _, err := call(t, r, &builtins.Call{}, "service.enable", &pb.ServiceEnableArgs{Name: "static"}); err == nil {
		t.Error("a unit without [Install] is enabled")
	}
	for _, op := range []string{"enable", "disable", "mask"} {
		if _, err := call(t, r, &builtins.Call{}, "service."+op, &pb.ServiceEnableArgs{Name: "nosuch"}); !errors.Is(err, fs.ErrNotExist) {
			t.Error(op, err)
		}
	}
	if _, err := call(t, r, &builtins.Call{}, "service.start", &pb.ServiceRunArgs{Name: "web"}); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

// [Install] is read as systemd reads it.
func TestInstallOfUnits(t *testing.T) {
	const wants = "[Install]\nWantedBy=multi-user.target\n"
	r, dir := newTree(t, map[string]string{
		units + "also.service": "[Install]\nAlso=a.service nosuch.service\n", units + "a.service": wants,
		units + "comment.service": "[Install]\nWantedBy=multi-user.target \\\n# not a target\n  graphical.target\n",
		units + "end.service":     "[Install]\nWantedBy=multi-user.target \\\n# the last line\n",
		units + "quoted.service":  "[Install]\nWantedBy=\"multi-user.target\" 'graphical.target'\n",
		units + "mark.service":    "\ufeff" + wants, units + "blank.service": "[Install]\r\n WantedBy = x.target\\ \r\n",
		units + "hidden.service": wants, units + "hidden.service.d/1.conf": "[Install]\nWantedBy=vendor.target\n",
		systemDir + "/hidden.service.d/1.conf": "[Install]\nWantedBy=admin.target\n",
		units + "order.service":                wants, systemDir + "/order.service.d/1.conf": "[Install]\nWantedBy=one.target\n",
		units + "order.service.d/2.conf": "[Install]\nWantedBy=\nWantedBy=two.target\n",
		units + "i@.service":             wants, units + "i@.service.d/1.conf": "[Install]\nWantedBy=all.target\n",
		units + "i@one.service.d/2.conf": "[Install]\nWantedBy=one.target\n",
		units + "p@.service":             wants, systemDir + "/p@.service.d/1.conf": "[Install]\nWantedBy=all.target\n",
		units + "p@one.service.d/1.conf": "[Install]\nWantedBy=one.target\n",
		units + "q@one.service":          wants, units + "q@.service.d/1.conf": "[Install]\nWantedBy=all.target\n",
		units + "alias@.service": "[Install]\nWantedBy=multi-user.target\nAlias=other-%i.service\n",
		units + "fixed@.service": "[Install]\nAlias=fixed2@b.service\nWantedBy=multi-user.target\n",
		units + "plain.service":  "[Install]\nAlias=plain@.service\n",
	})
	if err := os.Symlink(nullDevice, dir+systemDir+"/order.service.d/3.conf"); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"also": "multi-user.target.wants/a.service", "comment": "graphical.target.wants/comment.service multi-user.target.wants/comment.service",
		"end":    "multi-user.target.wants/end.service",
		"quoted": "graphical.target.wants/quoted.service multi-user.target.wants/quoted.service", "mark": "multi-user.target.wants/mark.service",
		"hidden": "admin.target.wants/hidden.service multi-user.target.wants/hidden.service", "order": "two.target.wants/order.service",
		"i@one":   "all.target.wants/i@one.service multi-user.target.wants/i@one.service one.target.wants/i@one.service",
		"i@two":   "all.target.wants/i@two.service multi-user.target.wants/i@two.service",
		"p@one":   "multi-user.target.wants/p@one.service one.target.wants/p@one.service",
		"q@one":   "all.target.wants/q@one.service multi-user.target.wants/q@one.service",
		"fixed@b": "fixed2@b.service multi-user.target.wants/fixed@b.service",
		"blank":   "", "alias@x": "", "fixed@c": "", "plain": "",
	} {
		_, err := call(t, r, &builtins.Call{}, "service.enable", &pb.ServiceEnableArgs{Name: name})
		if (err == nil) != (want != "") {
			t.Error(name, err)
		}
		links, _ := filepath.Glob(dir + systemDir + "/*.wants/*")
		aliases, _ := filepath.Glob(dir + systemDir + "/*.service")
		var got []string
		for _, link := range append(links, aliases...) {
			got = append(got, strings.TrimPrefix(link, dir+systemDir+"/"))
			if err := os.Remove(link); err != nil {
				t.Fatal(err)
			}
		}
		slices.Sort(got)
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	if state := newIndex(dir, 1).of("mark.service"); state != "disabled" {
		t.Error(state)
	}
}

// A setting of many lines is read in a time that grows with its length alone.
func TestSettingOfManyLines(t *testing.T) {
	begin := time.Now()
	f := &found{}
	f.parse("[Install]\nWantedBy=a.target " + strings.Repeat("\\\n", maxUnitFile/2-30) + "b.target\n")
	if took := time.Since(begin); took > 10*time.Second || !slices.Equal(f.install.wantedBy, []string{"a.target", "b.target"}) {
		t.Error(took, f.install.wantedBy)
	}
}

// Who writes units does not decide how much is held of their links.
func TestTooManyLinksAreAnError(t *testing.T) {
	files := map[string]string{}
	for i := range 10 {
		files[fmt.Sprintf("%sa%d.service", units, i)] = fmt.Sprintf("[Install]\nAlso=a%d.service\nWantedBy=%s\n",
			i+1, strings.Repeat("b.target ", 150))
	}
	files[units+"one.service"] = "[Install]\nWantedBy=" + strings.Repeat("b.target ", 100_000) + "\n"
	r, dir := newTree(t, files)
	for _, name := range []string{"a0", "one"} {
		if _, err := call(t, r, &builtins.Call{}, "service.enable", &pb.ServiceEnableArgs{Name: name}); !errors.Is(err, fault.ErrTooLarge) {
			t.Error(name, err)
		}
	}
	if made, _ := filepath.Glob(dir + systemDir + "/*"); len(made) > 0 {
		t.Error("made are", made)
	}
}

// What has no file of its own is named as what it is, and can be masked as any unit.
func TestUnitsThatAreMadeFromOthers(t *testing.T) {
	r, dir := newTree(t, map[string]string{
		units + "web.service": "[Service]\n", "/run/systemd/generator.late/old.service": "[Service]\n", "/etc/init.d/older": "#!/bin/sh\n",
	})
	for name, words := range map[string]string{"old": "generated", "older": "update-rc.d"} {
		for _, op := range []string{"enable", "disable"} {
			if _, err := call(t, r, &builtins.Call{}, "service."+op, &pb.ServiceEnableArgs{Name: name}); !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), words) {
				t.Errorf("%s %s: %v", op, name, err)
			}
		}
		if out, err := call(t, r, &builtins.Call{}, "service.mask", &pb.ServiceEnableArgs{Name: name}); err != nil || !out.(*pb.Changed).Changed {
			t.Error(name, out, err)
		}
		if target, err := os.Readlink(dir + systemDir + "/" + name + ".service"); err != nil || target != nullDevice {
			t.Error(name, target, err)
		}
	}
}

func TestRunlevelsOfATree(t *testing.T) {
	r, dir := newTree(t, map[string]string{"/etc/init.d/web": "", "/etc/runlevels/default/.keep": ""})
	for _, want := range []bool{true, false} {
		if out, err := call(t, r, &builtins.Call{}, "service.enable", &pb.ServiceEnableArgs{Name: "web"}); err != nil || out.(*pb.Changed).Changed != want {
			t.Fatal(out, err)
		}
	}
	if got, err := os.Readlink(dir + "/etc/runlevels/default/web"); err != nil || got != "/etc/init.d/web" {
		t.Error(got, err)
	}
	if out, err := call(t, r, &builtins.Call{}, "service.disable", &pb.ServiceEnableArgs{Name: "web"}); err != nil || !out.(*pb.Changed).Changed {
		t.Error(out, err)
	}
}

// A systemd that takes connections and never answers costs five seconds, and the error says so.
func TestSystemdThatDoesNotAnswer(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "private")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+socket)
	r := New(&guest.Guest{Live: true})
	if _, err := r.openSystemd(t.Context()); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "does not answer") {
		t.Error(err)
	}
}

// undo is a transaction that remembers the last inverse.
type undo struct {
	builtins.Tx
	was *pb.ServiceRestore
}

func (u *undo) UndoLast(_ context.Context, _ string, args proto.Message) error {
	u.was = args.(*pb.ServiceRestore)
	return nil
}
func (*undo) Before(context.Context, ...string) error   { return nil }
func (*undo) HeldNames(fsys.Meta) uint32                { return 0 }
func (*undo) Kept(path string) (builtins.Touched, bool) { return txtest.Kept("/", path) }
func (*undo) NotBegun()                                 {}

const bootedEnv = "SERVICE_TEST_SYSTEMD"

// It is run in a machine that systemd booted, such as one of systemd-nspawn, as root, with SERVICE_TEST_SYSTEMD=1.
func TestSystemd(t *testing.T) {
	if os.Getenv(bootedEnv) == "" {
		t.Skip("it starts and stops services: set " + bootedEnv + "=1 as root in a machine that systemd booted")
	}
	root, err := fsys.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	r := New(&guest.Guest{Files: root, Live: true, Runner: proc.New(proc.Config{Name: "service-test", Cgroup: "none", JobCgroup: "none"})})
	file := systemDir + "/quantix-test.service"
	write := func(exec string) {
		if err := os.WriteFile(file, []byte("[Service]\nExecStart="+exec+"\n[Install]\nWantedBy=multi-user.target\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("/bin/sleep 1000")
	t.Cleanup(func() {
		exec.Command("systemctl", "disable", "--now", "quantix-test").Run()
		os.Remove(file)
		exec.Command("systemctl", "daemon-reload").Run()
	})
	tx := &undo{}
	in := func() *builtins.Call { return &builtins.Call{Tx: tx} }
	isActive := func(want string) {
		t.Helper()
		got, _ := exec.Command("systemctl", "is-active", "quantix-test").Output()
		if strings.TrimSpace(string(got)) != want {
			t.Errorf("it is %s, want %s", got, want)
		}
	}
	for _, want := range []bool{true, false} {
		if out, err := call(t, r, in(), "service.start", &pb.ServiceRunArgs{Name: "quantix-test"}); err != nil || out.(*pb.Changed).Changed != want {
			t.Fatal(out, err)
		}
	}
	isActive("active")
	out, err := call(t, r, in(), "service.enable", &pb.ServiceEnableArgs{Name: "quantix-test"})
	if err != nil || !out.(*pb.Changed).Changed {
		t.Error(out, err)
	}
	if got, _ := exec.Command("systemctl", "is-enabled", "quantix-test").Output(); strings.TrimSpace(string(got)) != "enabled" {
		t.Errorf("it is %s", got)
	}
	status, err := call(t, r, in(), "service.status", &pb.ServiceArgs{Name: "quantix-test"})
	if s := status.(*pb.Service); err != nil || !s.Running || s.Pid == 0 || s.Enabled != "enabled" {
		t.Error(status, err)
	}
	// A changed file with which it does not stay up: what is notified fails, and the state comes back with the file.
	write("/bin/sh -c 'echo the words of the unit; exit 3'")
	if _, err := call(t, r, in(), "service.notified", &pb.ServiceNotifyArgs{Unit: "quantix-test"}); err == nil {
		_, err = call(t, r, in(), "service.settled", &pb.ServiceNotifyArgs{Unit: "quantix-test"})
		if err == nil || !strings.Contains(err.Error(), "the words of the unit") {
			t.Error(err)
		}
	} else if !strings.Contains(err.Error(), "the words of the unit") {
		t.Error(err)
	}
	write("/bin/sleep 1000")
	for range 2 {
		if _, err := call(t, r, &builtins.Call{Undo: true}, restoreOp, tx.was); err != nil {
			t.Fatal(err)
		}
		isActive("active")
	}
	// One that ends all the time, and is started again by systemd.
	write("/bin/sleep 0.3\nRestart=always\nRestartSec=0\nStartLimitBurst=1000")
	if _, err := call(t, r, in(), "service.notified", &pb.ServiceNotifyArgs{Unit: "quantix-test"}); err != nil {
		t.Error(err)
	}
	_, err = call(t, r, in(), "service.settled", &pb.ServiceNotifyArgs{Unit: "quantix-test"})
	if err == nil || !strings.Contains(err.Error(), "did not stay active") {
		t.Error(err)
	}
	// One that never becomes active.
	if err := os.WriteFile(file, []byte("[Service]\nType=notify\nExecStart=/bin/sleep 1000\nTimeoutStartSec=infinity\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = call(t, r, in(), "service.restart", &pb.ServiceRunArgs{Name: "quantix-test", Timeout: 8})
	if err == nil || !strings.Contains(err.Error(), "activating") {
		t.Error(err)
	}
	write("/bin/sleep 1000")
	if _, err := call(t, r, in(), "service.restart", &pb.ServiceRunArgs{Name: "quantix-test"}); err != nil {
		t.Error(err)
	}
	if out, err := call(t, r, in(), "service.stop", &pb.ServiceRunArgs{Name: "quantix-test"}); err != nil || !out.(*pb.Changed).Changed {
		t.Error(out, err)
	}
	isActive("inactive")
	// Hosts.
	for name, action := range map[string]pb.ServiceAction{"nosuch": pb.ServiceAction_SERVICE_ACTION_STATUS, "quantix-test": 77, "-h": 0} {
		if out, err := call(t, r, &builtins.Call{}, "service_control", &pb.ServiceControlRequest{Name: name, Action: action}); err == nil {
			t.Error(name, out)
		}
	}
	control, err := call(t, r, &builtins.Call{}, "service_control", &pb.ServiceControlRequest{Name: "quantix-test.service"})
	if err != nil || control.(*pb.ServiceControlResponse).NewState != "running" {
		t.Error(control, err)
	}
	listed, err := call(t, r, &builtins.Call{}, "list_services", &pb.ListServicesRequest{Filter: "quantix-TEST", RunningOnly: true})
	if services := listed.(*pb.ListServicesResponse).Services; err != nil || len(services) != 1 || services[0].Pid == 0 {
		t.Error(listed, err)
	}
	for _, step := range []struct {
		action         pb.ServiceAction
		changed        bool
		state, enabled string
	}{
		{pb.ServiceAction_SERVICE_ACTION_STATUS, false, "running", "auto"},
		{pb.ServiceAction_SERVICE_ACTION_START, false, "running", "auto"},
		{pb.ServiceAction_SERVICE_ACTION_DISABLE, true, "running", "disabled"},
		{pb.ServiceAction_SERVICE_ACTION_DISABLE, false, "running", "disabled"},
		{pb.ServiceAction_SERVICE_ACTION_ENABLE, true, "running", "auto"},
		{pb.ServiceAction_SERVICE_ACTION_RESTART, true, "running", "auto"},
		{pb.ServiceAction_SERVICE_ACTION_STOP, true, "inactive", "auto"},
		{pb.ServiceAction_SERVICE_ACTION_STOP, false, "inactive", "auto"},
	} {
		out, err := call(t, r, &builtins.Call{}, "service_control", &pb.ServiceControlRequest{Name: "quantix-test", Action: step.action})
		if err != nil {
			t.Error(step, err)
			continue
		}
		got := out.(*pb.ServiceControlResponse)
		if got.Changed != step.changed || got.NewState != step.state || got.Service.StartType != step.enabled {
			t.Error(step, got)
		}
		if listed, err := r.find(t.Context(), "quantix-test", false); err != nil || len(listed) != 1 || startType(listed[0].file) != step.enabled {
			t.Error(step, listed, err)
		}
	}
	_, err = call(t, r, &builtins.Call{}, "service_control", &pb.ServiceControlRequest{Name: "quantix-test", Action: pb.ServiceAction_SERVICE_ACTION_RELOAD})
	if err == nil || !strings.Contains(err.Error(), "inactive") {
		t.Error(err)
	}
	// What the list says of each unit is what systemctl says.
	listedAll, err := r.find(t.Context(), "", false)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range listedAll {
		if got, _ := exec.Command("systemctl", "is-enabled", "--", string(s.unit)).Output(); strings.TrimSpace(string(got)) != s.file && s.load != "not-found" {
			t.Errorf("%s is %q, and systemctl says %q", s.unit, s.file, strings.TrimSpace(string(got)))
		}
	}
}

// BenchmarkList lists all services, in turns with a bare ListUnits. It needs what TestSystemd needs.
func BenchmarkList(b *testing.B) {
	if os.Getenv(bootedEnv) == "" {
		b.Skip("set " + bootedEnv + "=1 as root in a machine that systemd booted")
	}
	r := New(&guest.Guest{Live: true})
	var ours, bare time.Duration
	var units []listed
	count := 0
	for b.Loop() {
		began := time.Now()
		out, err := r.list(b.Context(), nil, &pb.ListServicesRequest{})
		if err != nil {
			b.Fatal(err)
		}
		ours += time.Since(began)
		count = len(out.Services)
		began = time.Now()
		m, err := r.openSystemd(b.Context())
		if err == nil {
			err = m.manager(b.Context(), "ListUnits", []any{&units})
			m.close()
		}
		if err != nil {
			b.Fatal(err)
		}
		bare += time.Since(began)
	}
	b.ReportMetric(float64(count), "services")
	b.ReportMetric(float64(len(units)), "units")
	b.ReportMetric(float64(bare.Microseconds())/float64(b.N), "µs/ListUnits")
	b.ReportMetric(float64(ours)/float64(bare), "times-ListUnits")
}

// The list of all services says of each how it is enabled as the look at one does, and notices what changes.
func TestIndex(t *testing.T) {
	const text = "[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n"
	r, dir := newTree(t, map[string]string{
		units + "on.service": text, units + "off.service": text, units + "static.service": "[Service]\nExecStart=/bin/true\n",
		units + "also.service": "[Install]\nAlso=off.service\n", units + "empty.service": "", units + "vpn@.service": text,
		units + "dropped.service": "[Service]\n", units + "dropped.service.d/install.conf": "[Install]\nWantedBy=multi-user.target\n",
		units + "alias.service": "[Install]\nAlias=other.service\n", "/opt/linked.service": text, units + "masked.service": text,
		systemDir + "/own.service": text, units + "own.service": "", "/run/systemd/generator.late/sysv.service": "[Service]\n",
	})
	for link, target := range map[string]string{
		systemDir + "/multi-user.target.wants/on.service": units + "on.service", systemDir + "/masked.service": nullDevice,
		systemDir + "/other.service": units + "alias.service", systemDir + "/linked.service": "/opt/linked.service",
		systemDir + "/multi-user.target.wants/vpn@office.service":     units + "vpn@.service",
		"/run/systemd/generator/local-fs.target.wants/static.service": units + "static.service",
	} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(dir+link), 0o755), os.Symlink(target, dir+link)); err != nil {
			t.Fatal(err)
		}
	}
	want := map[unit]string{
		"on": "enabled", "off": "disabled", "static": "enabled-runtime", "also": "indirect", "empty": "masked", "dropped": "disabled",
		"alias": "enabled", "other": "alias", "linked": "linked", "masked": "masked", "own": "disabled", "sysv": "generated",
		"vpn@office": "enabled", "vpn@home": "disabled", "nosuch": "",
	}
	x := newIndex(dir, 1)
	for u, state := range want {
		if got := x.of(u + suffix); got != state {
			t.Errorf("%s is %q, want %q", u, got, state)
		}
	}
	for u := range x.states {
		state, err := tree{r.guest.Files}.state(u)
		if got := x.of(u); !u.isTemplate() && got != state && got != "alias" && got != runtime && got != "generated" {
			t.Errorf("%s is %q in the list, and %q alone: %v", u, got, state, err)
		}
	}
	if x.current(dir, 1) {
		t.Error("what was changed just before it was read is held for current")
	}
	old := time.Now().Add(-time.Hour)
	for path := range x.dirs {
		if err := os.Chtimes(dir+path, old, old); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if x = newIndex(dir, 1); !x.current(dir, 1) || x.current(dir, 2) {
		t.Error("an index is not current, or is so when systemd read the files again")
	}
	for _, path := range []string{systemDir + "/multi-user.target.wants/off.service", units + "new.service", "/lib/systemd/system/old.service"} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(dir+path), 0o755), os.WriteFile(dir+path, nil, 0o644)); err != nil {
			t.Fatal(err)
		}
		if x.current(dir, 1) {
			t.Errorf("%s came, and the index is current", path)
		}
		if err := errors.Join(os.Remove(dir+path), os.Chtimes(filepath.Dir(dir+path), old, old)); err != nil {
			t.Fatal(err)
		}
		x = newIndex(dir, 1)
	}
}

const openrcEnv = "SERVICE_TEST_OPENRC"

// It is run in a machine that OpenRC booted, such as one of systemd-nspawn with Debian's openrc and sysvinit-core, as root, with
// SERVICE_TEST_OPENRC=1.
func TestOpenRC(t *testing.T) {
	if os.Getenv(openrcEnv) == "" {
		t.Skip("it starts and stops services: set " + openrcEnv + "=1 as root in a machine that OpenRC booted")
	}
	root, err := fsys.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	r := New(&guest.Guest{Files: root, Live: true, Runner: proc.New(proc.Config{Name: "service-test", Cgroup: "none", JobCgroup: "none"})})
	const good = "#!/sbin/openrc-run\ncommand=/bin/sleep\ncommand_args=1000\ncommand_background=true\npidfile=/run/quantix-test.pid\n"
	write := func(content string) {
		if err := os.WriteFile(openrcInit+"/quantix-test", []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(good)
	t.Cleanup(func() {
		exec.Command("rc-service", "quantix-test", "stop").Run()
		exec.Command("rc-update", "delete", "quantix-test").Run()
		os.Remove(openrcInit + "/quantix-test")
	})
	tx := &undo{}
	starts := func(want bool) {
		t.Helper()
		if err := exec.Command("rc-service", "quantix-test", "status").Run(); (err == nil) != want {
			t.Errorf("that it is started is %v: %v", !want, err)
		}
	}
	for _, step := range []struct {
		op      string
		in      proto.Message
		changed bool
		started bool
	}{
		{"start", &pb.ServiceRunArgs{Name: "quantix-test"}, true, true},
		{"start", &pb.ServiceRunArgs{Name: "quantix-test"}, false, true},
		{"restart", &pb.ServiceRunArgs{Name: "quantix-test.service"}, true, true},
		{"enable", &pb.ServiceEnableArgs{Name: "quantix-test"}, true, true},
		{"enable", &pb.ServiceEnableArgs{Name: "quantix-test"}, false, true},
		{"stop", &pb.ServiceRunArgs{Name: "quantix-test"}, true, false},
		{"stop", &pb.ServiceRunArgs{Name: "quantix-test"}, false, false},
		{"start", &pb.ServiceRunArgs{Name: "quantix-test"}, true, true},
	} {
		out, err := call(t, r, &builtins.Call{Tx: tx}, "service."+step.op, step.in)
		if err != nil || out.(*pb.Changed).Changed != step.changed {
			t.Error(step, out, err)
		}
		starts(step.started)
	}
	if out, err := exec.Command("rc-update", "show", "default").Output(); err != nil || !strings.Contains(string(out), "quantix-test") {
		t.Errorf("%s, %v", out, err)
	}
	write("#!/sbin/openrc-run\nstart() { echo the words of the service; return 1; }\n")
	_, err = call(t, r, &builtins.Call{Tx: tx}, "service.notified", &pb.ServiceNotifyArgs{Unit: "quantix-test"})
	if err == nil || !strings.Contains(err.Error(), "the words of the service") {
		t.Error(err)
	}
	write(good)
	for range 2 {
		if _, err := call(t, r, &builtins.Call{Undo: true}, restoreOp, tx.was); err != nil {
			t.Error(err)
		}
		starts(true)
	}
	listed, err := r.find(t.Context(), "quantix-test", true)
	if err != nil || len(listed) != 1 || listed[0].file != "enabled" {
		t.Error(listed, err)
	}
	if out, err := call(t, r, &builtins.Call{Tx: tx}, "service.disable", &pb.ServiceEnableArgs{Name: "quantix-test"}); err != nil || !out.(*pb.Changed).Changed {
		t.Error(out, err)
	}
	if out, err := exec.Command("rc-update", "show").Output(); err != nil || strings.Contains(string(out), "quantix-test") {
		t.Errorf("%s, %v", out, err)
	}
}
