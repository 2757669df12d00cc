package netplan

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/builtins/internal/txtest"
	"github.com/quantix-kvm/guest-agent/runtime/call"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func TestMain(m *testing.M) {
	if proc.ChildMain() {
		return
	}
	os.Exit(m.Run())
}

// tree is a system below a directory, which has netplan's generator, and the room for it.
type tree struct {
	testing.TB
	dir     string
	room    *Room
	call    *builtins.Call
	changes []*pb.Change
	kept    []string
	undo    []*pb.NetplanUndo
}

// keeper is a builtins.Tx that records what it is told.
type keeper struct {
	builtins.Tx
	tree *tree
}

func (k keeper) Before(_ context.Context, paths ...string) error {
	k.tree.kept = append(k.tree.kept, paths...)
	return nil
}

func (k keeper) Kept(path string) (builtins.Touched, bool) { return txtest.Kept(k.tree.dir, path) }

func (keeper) HeldNames(fsys.Meta) uint32 { return 0 }

func (k keeper) Undo(_ context.Context, op string, args proto.Message) error {
	if op != undoRow {
		k.tree.Errorf("%s is not the inverse that is declared", op)
	}
	k.tree.undo = append(k.tree.undo, args.(*pb.NetplanUndo))
	return nil
}

func generatorHere(t testing.TB) string {
	t.Helper()
	for _, path := range generators {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	t.Skip("needs netplan's generator: install netplan.io")
	return ""
}

// newTree copies the machine's generator into a tree, with the libraries that it needs.
func newTree(t testing.TB) *tree {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: commands are run in another root directory")
	}
	program := generatorHere(t)
	tr := &tree{TB: t, dir: t.TempDir()}
	out, err := exec.Command("ldd", program).Output()
	if err != nil {
		t.Fatal(err)
	}
	names := []string{program}
	for word := range strings.FieldsSeq(string(out)) {
		if strings.HasPrefix(word, "/") {
			names = append(names, word)
		}
	}
	for _, name := range names {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		tr.put(name, string(content))
		if err := os.Chmod(tr.path(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"/run", "/tmp", "/dev"} {
		if err := os.MkdirAll(tr.path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	tr.put("/dev/null", "") // where a command without a descriptor is given one
	files, err := fsys.Open(tr.dir)
	if err != nil {
		t.Fatal(err)
	}
	runner := proc.New(proc.Config{Name: "netplantest", Reexec: true, Cgroup: "none", JobCgroup: "none"})
	t.Cleanup(func() {
		if err := errors.Join(runner.Release(), files.Close()); err != nil {
			t.Error(err)
		}
	})
	tr.room = New(&guest.Guest{Files: files, Dir: tr.dir, Runner: runner}, Config{})
	tr.call = &builtins.Call{Tx: keeper{tree: tr}, Changed: func(c *pb.Change) { tr.changes = append(tr.changes, c) }}
	return tr
}

func (tr *tree) path(name string) string { return filepath.Join(tr.dir, name) }

func (tr *tree) put(name, content string) {
	tr.Helper()
	err := os.MkdirAll(filepath.Dir(tr.path(name)), 0o755)
	if err = errors.Join(err, os.WriteFile(tr.path(name), []byte(content), 0o600)); err != nil {
		tr.Fatal(err)
	}
}

// run runs a row as the executor does.
func (tr *tree) run(name string, in proto.Message) (proto.Message, error) {
	table := builtins.NewTable(tr.room.Room())
	op := table.Script(name)
	if op == nil {
		op = table.Native(in)
	}
	own := *tr.call
	if !op.Mutates {
		own.Tx = nil
	}
	return op.Call(tr.Context(), &own, in)
}

func (tr *tree) set(name, config string) (bool, error) {
	out, err := tr.run("netplan.set", &pb.NetplanSetArgs{Name: name, Config: text(config)})
	if err != nil {
		return false, err
	}
	return out.(*pb.Changed).Changed, nil
}

func (tr *tree) mustSet(name, config string) {
	tr.Helper()
	if _, err := tr.set(name, config); err != nil {
		tr.Fatal(err)
	}
}

func text(s string) *pb.LuaValue { return &pb.LuaValue{Kind: &pb.LuaValue_String_{String_: []byte(s)}} }

func number(n float64) *pb.LuaValue { return &pb.LuaValue{Kind: &pb.LuaValue_Number{Number: n}} }

func yes() *pb.LuaValue { return &pb.LuaValue{Kind: &pb.LuaValue_Boolean{Boolean: true}} }

func sequence(list ...*pb.LuaValue) *pb.LuaValue {
	return &pb.LuaValue{Kind: &pb.LuaValue_Table{Table: &pb.LuaTable{Array: list}}}
}

func mapping(pairs ...any) *pb.LuaValue {
	table := &pb.LuaTable{}
	for i := 0; i < len(pairs); i += 2 {
		table.Fields = append(table.Fields, &pb.LuaField{Key: []byte(pairs[i].(string)), Value: pairs[i+1].(*pb.LuaValue)})
	}
	return &pb.LuaValue{Kind: &pb.LuaValue_Table{Table: table}}
}

const fixed = `network:
  version: 2
  ethernets:
    eth0:
      addresses: [192.0.2.7/24]
      routes: [{to: default, via: 192.0.2.1}]
`

func TestSetWritesAndASecondTimeNothing(t *testing.T) {
	tr := newTree(t)
	made, err := os.Stat(tr.path("/run"))
	if err != nil {
		t.Fatal(err)
	}
	if changed, err := tr.set("60-lan", fixed); err != nil || !changed {
		t.Fatal(changed, err)
	}
	path := tr.path("/etc/netplan/60-lan.yaml")
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o600 {
		t.Error(info.Mode(), err)
	}
	if len(tr.kept) == 0 || !slices.Contains(tr.kept, "/etc/netplan/60-lan.yaml") {
		t.Errorf("the transaction kept %q", tr.kept)
	}
	for _, c := range tr.changes {
		if c.Diff != "" {
			t.Errorf("what may hold secrets is shown: %v", c)
		}
	}
	kept := len(tr.kept)
	if changed, err := tr.set("60-lan.yaml", fixed); err != nil || changed || len(tr.kept) != kept {
		t.Error("a second time it is", changed, err, tr.kept)
	}
	if again, err := os.Stat(path); err != nil || !os.SameFile(info, again) || again.ModTime() != info.ModTime() {
		t.Error("a second time the file was touched", err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if changed, err := tr.set("60-lan", fixed); err != nil || !changed {
		t.Error("a mode that all can read is", changed, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Error(info.Mode(), err)
	}
	out, err := tr.run("netplan.get", &pb.NetplanGetArgs{Name: "60-lan"})
	if err != nil || string(out.(*pb.LuaValue).GetString_()) != fixed {
		t.Error(out, err)
	}
	if out, err = tr.run("netplan.get", &pb.NetplanGetArgs{}); err != nil || len(out.(*pb.LuaValue).GetTable().GetFields()) != 1 {
		t.Error(out, err)
	}
	if _, err = tr.run("netplan.get", &pb.NetplanGetArgs{Name: "61"}); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	run, err := os.Stat(tr.path("/run"))
	if err != nil || run.ModTime() != made.ModTime() {
		t.Error("the check left another time of change:", run.ModTime(), err)
	}
	left, err := os.ReadDir(tr.path("/run"))
	if err != nil || len(left) > 0 {
		t.Errorf("the check left %v, %v", left, err)
	}
}

// What is wrong is refused, the file stays as it was, and the error says where it is wrong.
func TestBadFilesAreRefused(t *testing.T) {
	tr := newTree(t)
	tr.mustSet("60-lan", fixed)
	tr.put("/etc/netplan/10-other.yaml", "network:\n  ethernets:\n    eth5: {dhcp4: true}\n  bridges:\n    br0: {}\n")
	for _, c := range []struct{ name, config, want string }{
		{"not YAML", "network: [", "did not find expected"},
		{"a tab", "network:\n\tversion: 2\n", "line 2 begins with a tab"},
		{"a key twice", "network:\n  ethernets:\n    eth0: {dhcp4: true}\n    eth0: {dhcp6: true}\n", "line 4: the key ethernets.eth0 stands there twice, first in line 3"},
		{"a deep key twice", "network:\n  ethernets:\n    eth0: {dhcp4: true, mtu: 1400, dhcp4: false}\n", "ethernets.eth0.dhcp4 stands there twice"},
		{"too many values", "network: [" + strings.Repeat("1,", 40_000) + "1]", "values"},
		{"two documents", "network: {}\n---\nnetwork: {}\n", "second document"},
		{"an alias", "network:\n  ethernets:\n    eth0: &a {dhcp4: true}\n    eth1: *a\n", "write it out"},
		{"an unknown key", "network:\n  ethernets:\n    eth0: {dhpc4: true}\n", "unknown key 'dhpc4'"},
		{"an unknown key above", "network:\n  etherents: {}\n", "unknown key 'etherents'"},
		{"nothing", "# nothing\n", "it says nothing"},
		{"no network", "ethernets: {eth0: {dhcp4: true}}\n", "there is no key network"},
		{"no address", "network:\n  ethernets:\n    eth0: {addresses: [192.0.2.700/24]}\n", "192.0.2.700"},
		{"no prefix", "network:\n  ethernets:\n    eth0: {addresses: [192.0.2.7]}\n", "missing /prefixlength"},
		{"a VLAN of nothing", "network:\n  vlans:\n    v5: {id: 5, link: eth9}\n", "eth9"},
		{"a VLAN without a number", "network:\n  vlans:\n    v5: {link: eth5}\n", "missing 'id'"},
		{"another kind in another file", "network:\n  vlans:\n    br0: {id: 5, link: eth5}\n", "changes device type"},
		{"a gateway out of reach", "network:\n  ethernets:\n    eth0:\n      addresses: [192.0.2.7/24]\n      routes: [{to: default, via: 198.51.100.1}]\n",
			"line 5: ethernets.eth0.routes.via is 198.51.100.1, which is in no network of eth0"},
		{"a gateway of IPv6 out of reach", "network:\n  ethernets:\n    eth0:\n      addresses: ['2001:db8::7/64']\n      gateway6: 2001:DB8:1:0::1\n",
			"line 5: ethernets.eth0.gateway6 is 2001:db8:1::1, which is in no network of eth0"},
		{"a long name", "network:\n  bridges:\n    averyveryverylongbridge: {}\n", "line 3: averyveryverylongbridge has 23 characters"},
		{"a long other name", "network:\n  ethernets:\n    lan: {match: {macaddress: '52:54:00:00:00:01'}, set-name: sixteen-letters1}\n", "sixteen-letters1 has 16 characters"},
		{"too large", "network: {}\n#" + strings.Repeat("x", maxConfig), "the limit is"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := tr.set("60-lan", c.config)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
			var told *fault.Error
			if strings.Contains(c.want, "in no network") && (!errors.As(err, &told) || !strings.Contains(told.Hint, "on-link: true")) {
				t.Errorf("%v has no hint", err)
			}
			if err != nil && strings.Contains(err.Error(), "quantix-netplan-") {
				t.Errorf("it names a place that is gone: %v", err)
			}
			if have, _ := os.ReadFile(tr.path("/etc/netplan/60-lan.yaml")); string(have) != fixed {
				t.Errorf("the file is %q", have)
			}
		})
	}
	for _, name := range []string{"", "../x", "a/b", ".hidden", "x.", strings.Repeat("x", 200), "a\x00"} {
		if _, err := tr.set(name, fixed); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("the name %q gives %v", name, err)
		}
	}
	if _, err := tr.run("netplan.set", &pb.NetplanSetArgs{Name: "x"}); !errors.Is(err, fs.ErrInvalid) {
		t.Error("no configuration gives", err)
	}
}

func TestConflictsAreNamed(t *testing.T) {
	tr := newTree(t)
	tr.put("/etc/cloud/cloud.cfg", "users: [default]\n")
	const cloud = "network:\n  version: 2\n  ethernets:\n    eth0:\n      dhcp4: true\n      mtu: 1400\n"
	tr.put("/etc/netplan/50-cloud-init.yaml", cloud)
	tr.put("/etc/netplan/70-more.yaml", "network:\n  ethernets:\n    eth0: {mtu: 9000, addresses: [192.0.2.8/24]}\n    eth1: {addresses: [203.0.113.1/24]}\n")
	const ours = "network:\n  ethernets:\n    eth0: {mtu: 1500, addresses: [192.0.2.7/24]}\n"
	out, err := tr.run("netplan.validate", &pb.NetplanValidateArgs{Config: text(ours), Name: "60-lan"})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, c := range out.(*pb.NetplanValidated).Conflicts {
		got[c.File+" "+c.Key] = c.Meaning
	}
	want := map[string]string{
		"/etc/netplan/50-cloud-init.yaml ethernets.eth0.mtu":   "this file is read later, so the value here holds",
		"/etc/netplan/50-cloud-init.yaml ethernets.eth0.dhcp4": "the interface asks for an address as well; say here that it does not",
		"/etc/netplan/70-more.yaml ethernets.eth0.mtu":         "that file is read later, so its value holds",
		"/etc/netplan/70-more.yaml ethernets.eth0.addresses":   "both lists hold",
	}
	if !maps.Equal(got, want) {
		t.Errorf("conflicts are %q", got)
	}
	_, err = tr.set("60-lan", ours)
	var f *fault.Error
	if !errors.Is(err, fault.ErrRefused) || !errors.As(err, &f) || !strings.Contains(f.Hint, cloudStop) || !strings.Contains(f.Hint, "override") ||
		!strings.Contains(err.Error(), "line 6 of /etc/netplan/50-cloud-init.yaml") {
		t.Errorf("%v, hint %q", err, f.Hint)
	}
	if _, err := os.Stat(tr.path("/etc/netplan/60-lan.yaml")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("it was written all the same", err)
	}
	if out, err := tr.run("netplan.set", &pb.NetplanSetArgs{Name: "60-lan", Config: text(ours), Override: true}); err != nil || !out.(*pb.Changed).Changed {
		t.Error(out, err)
	}
	tr.mustSet("62-way", "network:\n  ethernets:\n    eth5: {addresses: [203.0.113.5/24], routes: [{to: default, via: 203.0.113.1}]}\n")
	way := func(metric string) error {
		_, err := tr.set("63-way", "network:\n  ethernets:\n    eth6: {addresses: [198.51.100.5/24], routes: [{to: 0.0.0.0/0, via: 198.51.100.1"+metric+"}]}\n")
		return err
	}
	if err := way(""); !errors.Is(err, fault.ErrRefused) || !strings.Contains(err.Error(), "ethernets.eth5.routes stands in line 3 of /etc/netplan/62-way.yaml") {
		t.Error(err)
	}
	if err := way(", metric: 200"); err != nil {
		t.Error(err)
	}
	// Those of one file are named, and not refused.
	both := func(metric string) []*pb.NetplanConflict {
		const way = "network:\n  ethernets:\n    eth7: {addresses: [192.0.2.70/26], routes: [{to: default, via: 192.0.2.65, table: 9}]}\n"
		out, err := tr.run("netplan.validate", &pb.NetplanValidateArgs{Name: "64-both",
			Config: text(way + "    eth8: {addresses: [192.0.2.130/26], routes: [{to: default, via: 192.0.2.129, table: 9" + metric + "}]}\n")})
		if err != nil {
			t.Fatal(err)
		}
		return out.(*pb.NetplanValidated).Conflicts
	}
	if got := both(""); len(got) != 1 || got[0].Key != "ethernets.eth7.routes" || got[0].File != "/etc/netplan/64-both.yaml" || got[0].Line != 3 {
		t.Error(got)
	}
	if got := both(", metric: 200"); len(got) != 0 {
		t.Error(got)
	}
	// What is not in conflict: the same value, another interface.
	tr.mustSet("61-same", "network:\n  ethernets:\n    eth1: {addresses: [203.0.113.1/24]}\n    eth2: {mtu: 1500}\n")

	for _, row := range []struct {
		name string
		in   proto.Message
	}{
		{"netplan.set", &pb.NetplanSetArgs{Name: "50-cloud-init", Config: text(fixed)}},
		{"netplan.remove", &pb.NetplanRemoveArgs{Name: "50-cloud-init"}},
	} {
		if _, err := tr.run(row.name, row.in); !errors.Is(err, fault.ErrRefused) || !errors.As(err, &f) || f.Hint != cloudHint {
			t.Errorf("%s of cloud-init's file gives %v", row.name, err)
		}
	}
	if have, _ := os.ReadFile(tr.path("/etc/netplan/50-cloud-init.yaml")); string(have) != cloud {
		t.Errorf("cloud-init's file is %q", have)
	}
	tr.put(cloudStop, "network: {config: disabled}\n")
	if out, err := tr.run("netplan.remove", &pb.NetplanRemoveArgs{Name: "50-cloud-init"}); err != nil || !out.(*pb.Changed).Changed {
		t.Error(out, err)
	}
}

// Of a tree that is not booted the files are checked, so that a script for an image is one for a guest; the network of the machine
// is left alone.
func TestApplyOfATree(t *testing.T) {
	tr := newTree(t)
	tr.mustSet("60-lan", fixed)
	out, err := tr.run("netplan.apply", &pb.NetplanApplyArgs{Verify: &pb.NetplanVerify{Gateway: true}})
	if err != nil || out.(*pb.NetplanApplied).Changed || !strings.Contains(out.(*pb.NetplanApplied).Steps[0].Seen, "not booted") {
		t.Error(out, err)
	}
	tr.put("/etc/netplan/61-broken.yaml", "network: [")
	if _, err := tr.run("netplan.apply", &pb.NetplanApplyArgs{}); err == nil || !strings.Contains(err.Error(), "61-broken.yaml") {
		t.Error(err)
	}
	for _, bad := range []*pb.NetplanApplyArgs{
		{Verify: &pb.NetplanVerify{Tcp: "host"}}, {Verify: &pb.NetplanVerify{Tcp: ":80"}}, {Verify: &pb.NetplanVerify{Dns: "a b"}}, {Timeout: 1000},
	} {
		if _, err := tr.run("netplan.apply", bad); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%v gives %v", bad, err)
		}
	}
	tr.room.guest.Live = true // and the agent is not that of the machine
	if _, err := tr.run("netplan.apply", &pb.NetplanApplyArgs{}); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

func TestRemove(t *testing.T) {
	tr := newTree(t)
	tr.put("/etc/netplan/10-nic.yaml", "network:\n  ethernets:\n    eth0: {}\n")
	tr.mustSet("20-vlan", "network:\n  vlans:\n    v5: {id: 5, link: eth0}\n")
	if _, err := tr.run("netplan.remove", &pb.NetplanRemoveArgs{Name: "10-nic"}); err == nil || !strings.Contains(err.Error(), "eth0") {
		t.Error("what others need is removed:", err)
	}
	for i, want := range []bool{true, false} {
		out, err := tr.run("netplan.remove", &pb.NetplanRemoveArgs{Name: "20-vlan"})
		if err != nil || out.(*pb.Changed).Changed != want {
			t.Errorf("%d: %v %v", i, out, err)
		}
	}
	tr.put("/etc/netplan/30-broken.yaml", "network: [\n")
	if _, err := tr.set("40-more", fixed); err == nil || !strings.Contains(err.Error(), "30-broken.yaml") {
		t.Error("a broken file beside it gives", err)
	}
	if _, err := tr.run("netplan.remove", &pb.NetplanRemoveArgs{Name: "30-broken"}); err != nil {
		t.Error("a broken file cannot be removed:", err)
	}
	tr.mustSet("40-more", fixed)
}

// A table becomes a text that netplan reads as what the table says.
func TestTablesBecomeYAML(t *testing.T) {
	tr := newTree(t)
	config := mapping("network", mapping(
		"ethernets", mapping("eth0", mapping(
			"match", mapping("macaddress", text("52:54:00:12:34:56")), "set-name", text("yes"), "dhcp4", yes(), "mtu", number(1400),
			"addresses", sequence(text("192.0.2.7/24"), text("2001:db8::7/64")),
			"nameservers", mapping("search", sequence(text("on"), text("1e3"), text("a b: #c"), text(`"q\`)), "addresses", sequence(text("192.0.2.1"))),
			"routes", sequence(mapping("to", text("198.51.100.0/24"), "via", text("192.0.2.1"), "metric", number(4294967295))),
		), "eth1", mapping()),
		"version", number(2)))
	out, err := tr.run("netplan.validate", &pb.NetplanValidateArgs{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	const want = `network:
  version: 2
  ethernets:
    eth0:
      addresses:
        - "192.0.2.7/24"
        - "2001:db8::7/64"
      dhcp4: true
      match:
        macaddress: "52:54:00:12:34:56"
      mtu: 1400
      nameservers:
        addresses:
          - "192.0.2.1"
        search:
          - "on"
          - "1e3"
          - "a b: #c"
          - "\"q\\"
      routes:
        - metric: 4294967295
          to: "198.51.100.0/24"
          via: "192.0.2.1"
      set-name: "yes"
    eth1: {}
`
	if got := out.(*pb.NetplanValidated).Yaml; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	made, err := tr.room.generate(t.Context(), []*document{{path: "/etc/netplan/x.yaml", text: []byte(want)}})
	if err != nil {
		t.Fatal(err)
	}
	l := linksOf(made)["eth0"]
	if l == nil || l.rename != "yes" || l.mac != "52:54:00:12:34:56" || len(l.addresses) != 2 || !l.dhcp[0] || l.dhcp[1] {
		t.Errorf("%+v", l)
	}
	for _, c := range []struct {
		config *pb.LuaValue
		want   string
	}{
		{mapping("network", mapping("version", number(2.5))), "config.network.version is 2.5"},
		{mapping("network", mapping("ethernets", sequence(text("a")))), "expected mapping"},
		{mapping("network", &pb.LuaValue{Kind: &pb.LuaValue_Table{Table: &pb.LuaTable{
			Array: []*pb.LuaValue{yes()}, Fields: []*pb.LuaField{{Key: []byte("a"), Value: yes()}}}}}), "both names and a list"},
		{mapping("network", mapping("renderer", text("a\nb"))), "control character"},
		{sequence(text("a")), "a list"},
	} {
		if _, err := tr.run("netplan.validate", &pb.NetplanValidateArgs{Config: c.config}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
}

func TestInterfaceThatIsNotThere(t *testing.T) {
	generatorHere(t)
	tr := newTree(t)
	here := facts.Link{Name: "eth0", MAC: "52:54:00:12:34:56", Kind: "physical"}
	tr.room.system.links = func() ([]facts.Link, error) { return []facts.Link{here, {Name: "lo", Loopback: true}}, nil }
	tr.room.guest.Live = true
	for _, c := range []struct{ config, want string }{
		{"{eth0: {dhcp4: true}}", ""},
		{"{eth9: {dhcp4: true}}", "ethernets.eth9: there is no interface eth9"},
		{"{eth9: {dhcp4: true, optional: true}}", ""},
		{"{lan: {match: {macaddress: '52:54:00:12:34:56'}, dhcp4: true}}", ""},
		{"{lan: {match: {macaddress: '52:54:00:12:34:99'}, dhcp4: true}}", "there is no interface with the hardware address 52:54:00:12:34:99"},
		{"{lan: {match: {name: 'eth*'}, dhcp4: true}}", ""},
		{"{lan: {match: {macaddress: '52:54:00:12:34:56'}, set-name: wan0, dhcp4: true}}", ""},
	} {
		_, err := tr.run("netplan.validate", &pb.NetplanValidateArgs{Config: text("network: {ethernets: " + c.config + "}\n")})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s gives %v, want %q", c.config, err, c.want)
		}
	}
}

// What an agent that was killed left, with secrets in it, is removed by the next one of the machine. What has such a name in a
// directory where any user makes names is not looked at, and what cannot be removed holds up nothing.
func TestSweep(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to whom /run belongs")
	}
	// Of this thread alone: what is mounted here is seen by nobody else, and ends with the thread, which is not used again.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Skip("needs a mount namespace: ", err)
	}
	mount := func(point string) {
		t.Helper()
		if err := unix.Mount("none", point, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	mount("/run")
	mount("/tmp")
	ours, held, others := "/run/"+scratchName+"test", "/run/"+scratchName+"held", "/tmp/"+scratchName+"test"
	for _, dir := range []string{ours, held, others} {
		if err := os.MkdirAll(dir+"/etc/netplan", 0o700); err != nil {
			t.Fatal(err)
		}
	}
	mount(held)
	for _, machine := range []bool{false, true} {
		if err := New(&guest.Guest{Live: true}, Config{Machine: machine}).sweep(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(ours); (err == nil) == machine {
			t.Errorf("of the machine: %t, it is there: %v", machine, err)
		}
	}
	if _, err := os.Stat(others + "/etc/netplan"); err != nil {
		t.Error("what any user may have made is looked at: ", err)
	}
}

func TestWithoutTheGenerator(t *testing.T) {
	dir := t.TempDir()
	files, err := fsys.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { files.Close() })
	tr := &tree{TB: t, dir: dir, room: New(&guest.Guest{Files: files, Dir: dir}, Config{}), call: &builtins.Call{}}
	for range 2 {
		if _, err := tr.set("60-lan", fixed); !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "generator") {
			t.Error(err)
		}
		tr.put("/usr/libexec/netplan/generate", "no program: its mode says so\n")
	}
	if _, err := os.Stat(tr.path("/etc/netplan")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := tr.run("netplan.apply", &pb.NetplanApplyArgs{}); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	if _, err := tr.run("configure_network", &pb.ConfigureNetworkRequest{NetplanConfig: fixed, ApplyNow: true}); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

// The host's file is one of netplan's like any other.
func TestConfigureNetworkWritesTheHostsFile(t *testing.T) {
	tr := newTree(t)
	out, err := tr.run("configure_network", &pb.ConfigureNetworkRequest{NetplanConfig: fixed})
	if err != nil {
		t.Fatal(err)
	}
	if reply := out.(*pb.ConfigureNetworkResponse); !reply.Success || !reply.Changed {
		t.Error(reply)
	}
	if have, err := os.ReadFile(tr.path("/etc/netplan/99-limiquantix.yaml")); err != nil || string(have) != fixed {
		t.Errorf("%q %v", have, err)
	}
	if out, err = tr.run("configure_network", &pb.ConfigureNetworkRequest{NetplanConfig: fixed}); err != nil || out.(*pb.ConfigureNetworkResponse).Changed {
		t.Error(out, err)
	}
	if _, err = tr.run("configure_network", &pb.ConfigureNetworkRequest{NetplanConfig: "network: ["}); err == nil {
		t.Error("what is no YAML is taken")
	}
	if have, err := os.ReadFile(tr.path("/etc/netplan/99-limiquantix.yaml")); err != nil || string(have) != fixed {
		t.Errorf("%q %v", have, err)
	}
}

// A host may have its change taken back unless it confirms it, and is told by what.
func TestConfigureNetworkToBeConfirmed(t *testing.T) {
	tr := newTree(t)
	until := time.Unix(1_800_000_000, 0)
	var asked time.Duration
	tell := func() {}
	tr.call.Confirm = func(within time.Duration, told func(string, time.Time)) error {
		asked, tell = within, func() { told("id", until) }
		if within > time.Hour {
			return fault.Invalid("too long")
		}
		return nil
	}
	out, err := tr.run("configure_network", &pb.ConfigureNetworkRequest{NetplanConfig: fixed, ConfirmSeconds: 60})
	if err != nil || asked != time.Minute {
		t.Fatal(asked, err)
	}
	tell()
	if reply := out.(*pb.ConfigureNetworkResponse); reply.TransactionId != "id" || !reply.ConfirmUntil.AsTime().Equal(until) {
		t.Error(reply)
	}
	before := tr.path("/etc/netplan/99-limiquantix.yaml")
	if err := os.Remove(before); err != nil {
		t.Fatal(err)
	}
	if _, err := tr.run("configure_network", &pb.ConfigureNetworkRequest{NetplanConfig: fixed, ConfirmSeconds: 7200}); !errors.Is(err, fs.ErrInvalid) {
		t.Error(err)
	}
	if _, err := os.Stat(before); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a request that is refused wrote something: ", err)
	}
}

// In a dry run later calls see what would be there, and nothing is.
func TestDryRun(t *testing.T) {
	tr := newTree(t)
	overlay, err := tr.room.guest.Files.Overlay(filepath.Join(t.TempDir(), "overlay"))
	if err != nil {
		t.Fatal(err)
	}
	defer overlay.Close()
	tr.call = &builtins.Call{DryRun: &builtins.DryRun{Files: overlay}, Changed: tr.call.Changed}
	tr.mustSet("10-nic", "network:\n  ethernets:\n    eth0: {}\n")
	tr.mustSet("20-vlan", "network:\n  vlans:\n    v5: {id: 5, link: eth0}\n")
	if _, err := tr.run("netplan.remove", &pb.NetplanRemoveArgs{Name: "10-nic"}); err == nil {
		t.Error("what a file of the dry run needs is removed")
	}
	if _, err := os.Stat(tr.path("/etc/netplan")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a dry run changed something", err)
	}
	if len(tr.changes) != 4 || tr.changes[0].State != pb.ChangeState_CHANGE_STATE_WOULD {
		t.Error(tr.changes)
	}
}

// The file of secrets has the mode 0600 from the first moment that it has a name.
func TestModeFromTheFirstMoment(t *testing.T) {
	tr := newTree(t)
	if err := os.MkdirAll(tr.path("/etc/netplan"), 0o755); err != nil {
		t.Fatal(err)
	}
	stop, seen := make(chan struct{}), make(chan []string)
	go func() { // whoever looks all the time
		var bad []string
		defer func() { seen <- bad }()
		for {
			select {
			case <-stop:
				return
			default:
			}
			entries, _ := os.ReadDir(tr.path("/etc/netplan"))
			for _, e := range entries {
				if info, err := e.Info(); err == nil && info.Mode().Perm()&0o077 != 0 {
					bad = append(bad, info.Mode().String()+" "+e.Name())
				}
			}
		}
	}()
	for i := range 5 {
		tr.mustSet("60-lan", strings.Replace(fixed, "192.0.2.7", "192.0.2.1"+string(rune('0'+i)), 1))
	}
	close(stop)
	if bad := <-seen; len(bad) > 0 {
		t.Error(bad)
	}
}

func TestExecutorNamesTheRow(t *testing.T) {
	tr := newTree(t)
	table := builtins.NewTable(tr.room.Room())
	_, err := call.New(call.Config{Table: table}).Execute(t.Context(), tr.call, table.Script("netplan.set"), &pb.NetplanSetArgs{Name: "60-lan", Config: text("network: [")})
	if err == nil || !strings.HasPrefix(err.Error(), "netplan.set /etc/netplan/60-lan.yaml: ") {
		t.Error(err)
	}
}

// What is installed is what was generated, and what is so already stays the file that it is.
func TestInstall(t *testing.T) {
	tr := newTree(t)
	set := []*document{{path: "/etc/netplan/x.yaml", text: []byte(fixed)}}
	want, err := tr.room.generate(t.Context(), set)
	if err != nil {
		t.Fatal(err)
	}
	if len(want) == 0 || want["/run/systemd/network/10-netplan-eth0.network"] == nil {
		t.Fatalf("%q was generated", sorted(want))
	}
	if err := tr.room.install(want); err != nil {
		t.Fatal(err)
	}
	have, err := tr.room.current(nil)
	if err != nil || len(differing(have, want)) > 0 {
		t.Fatal(differing(have, want), err)
	}
	file := tr.path("/run/systemd/network/10-netplan-eth0.network")
	before, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.room.install(want); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(file); err != nil || !os.SameFile(before, after) || after.ModTime() != before.ModTime() {
		t.Error("it was written again", err)
	}
	// As netplan itself has it.
	out, err := exec.Command("chroot", tr.dir, generators[0], "--root-dir", "/").CombinedOutput()
	if err == nil {
		tr.put("/etc/netplan/x.yaml", fixed)
		out, err = exec.Command("chroot", tr.dir, generatorHere(t)).CombinedOutput()
	}
	if err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if have, err = tr.room.current(nil); err != nil || len(differing(have, want)) > 0 {
		t.Error("netplan itself generates something else:", differing(have, want), err)
	}
	gone := map[string]*generated{}
	for name := range want {
		gone[name] = nil
	}
	for range 2 {
		if err := tr.room.install(gone); err != nil {
			t.Fatal(err)
		}
	}
	if have, err = tr.room.current(nil); err != nil || len(have) > 0 {
		t.Error(sorted(have), err)
	}
	if _, err := os.Stat(tr.path("/run/systemd/network")); err != nil {
		t.Error(err)
	}
	if bytes.Contains(want["/run/systemd/network/10-netplan-eth0.network"].content, []byte("quantix-netplan")) {
		t.Error("it names a place that is gone")
	}
}

// What a change makes of interfaces: which change, which virtual ones are made, and which are deleted.
func TestPlan(t *testing.T) {
	tr := newTree(t)
	generate := func(text string) map[string]*generated {
		t.Helper()
		made, err := tr.room.generate(t.Context(), []*document{{path: "/etc/netplan/x.yaml", text: []byte("network:\n" + text)}})
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	const nic = "  ethernets:\n    eth0: {dhcp4: true}\n    eth1: {dhcp4: false}\n"
	was := generate(nic + "  vlans:\n    v5: {id: 5, link: eth0}\n    v6: {id: 6, link: eth0}\n    v7: {id: 7, link: eth0}\n")
	is := generate(nic + "  vlans:\n    v5: {id: 5, link: eth0, mtu: 1400}\n    v6: {id: 66, link: eth0}\n    v8: {id: 8, link: eth0}\n")
	p := newPlan(was, is)
	if names := p.names(); !slices.Equal(names, []string{"eth0", "v5", "v6", "v8", "v7"}) {
		t.Errorf("%q change", names)
	}
	if !slices.Contains(p.gone, "v7") || !slices.Contains(p.gone, "v6") || slices.Contains(p.gone, "v8") {
		t.Errorf("%q are deleted", p.gone)
	}
	if !slices.Contains(p.made, "v8") || !slices.Contains(p.made, "v6") || slices.Contains(p.made, "v7") {
		t.Errorf("%q are made", p.made)
	}
	if !p.makesByNetworkd() || newPlan(is, generate(nic)).makesByNetworkd() {
		t.Error("it is not seen whether systemd-networkd makes an interface")
	}
	if p := newPlan(is, is); len(p.paths)+len(p.changed)+len(p.made)+len(p.gone) > 0 {
		t.Errorf("nothing changed, and the plan is %+v", p)
	}
	wifi := maps.Clone(is)
	wifi["/run/systemd/system/netplan-wpa-wlan0.service"] = &generated{}
	if err := newPlan(is, wifi).supported(); !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "wifis") {
		t.Error(err)
	}
}

// The check of a file beside the bare generator, which is most of it; in a tree, and as the machine itself has it. The file is
// another one each time: what was generated of the last one is kept.
func BenchmarkValidate(b *testing.B) {
	tr := newTree(b)
	tr.put("/etc/netplan/10-other.yaml", "network:\n  ethernets:\n    eth5: {dhcp4: true}\n")
	tr.put("/scratch/etc/netplan/10-other.yaml", "network:\n  ethernets:\n    eth5: {dhcp4: true}\n")
	files, err := fsys.Open("/")
	if err != nil {
		b.Fatal(err)
	}
	defer files.Close()
	live := New(&guest.Guest{Files: files, Runner: tr.room.guest.Runner, Live: true}, Config{})
	scratch := tr.path("/alone")
	another := 0
	next := func() string {
		another++
		return strings.ReplaceAll(fixed, "192.0.2.7", fmt.Sprintf("192.0.2.%d", another%250+2))
	}
	run := func(argv ...string) {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			b.Fatalf("%v %s", err, out)
		}
	}
	for _, side := range []struct {
		name       string
		bare, ours func()
	}{
		{"here", func() {
			tr.put("/alone/etc/netplan/60-lan.yaml", next())
			run(generatorHere(b), "--root-dir", scratch)
		}, func() {
			if _, err := live.generate(b.Context(), []*document{{path: "/etc/netplan/60-lan.yaml", text: []byte(next())}}); err != nil {
				b.Fatal(err)
			}
		}},
		{"tree", func() {
			tr.put("/scratch/etc/netplan/60-lan.yaml", next())
			run("chroot", tr.dir, generatorHere(b), "--root-dir", "/scratch")
		}, func() {
			if _, err := tr.run("netplan.validate", &pb.NetplanValidateArgs{Config: text(next())}); err != nil {
				b.Fatal(err)
			}
		}},
	} {
		b.Run(side.name, func(b *testing.B) {
			var times [2][]time.Duration
			for b.Loop() {
				for i, do := range []func(){side.bare, side.ours} {
					began := time.Now()
					do()
					times[i] = append(times[i], time.Since(began))
				}
			}
			var medians [2]float64
			for i, list := range times {
				slices.Sort(list)
				medians[i] = float64(list[len(list)/2].Microseconds()) / 1000
			}
			b.ReportMetric(medians[0], "generator-ms")
			b.ReportMetric(medians[1], "ours-ms")
			b.ReportMetric(medians[1]/medians[0], "x")
			b.ReportMetric(0, "ns/op")
		})
	}
}
