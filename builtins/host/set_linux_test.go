package host

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/txtest"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// tree is a guest of files, whose /proc/sys is ordinary ones. What the real one does is for the tests in a guest.
type tree struct {
	t       *testing.T
	dir     string
	room    *Room
	call    *builtins.Call
	kept    []string
	changes []*pb.Change
}

// keeper is a builtins.Tx that only records the paths given to Before.
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

func newTree(t *testing.T) *tree {
	t.Helper()
	g := &tree{t: t, dir: t.TempDir()}
	for name, content := range map[string]string{
		"etc/hostname": "box\n", "etc/timezone": "Etc/UTC\n", "usr/share/zoneinfo/Europe/Vienna": "TZif2…", "usr/share/zoneinfo/tzdata.zi": "# text",
		"proc/sys/kernel/hostname": "box\n", "proc/sys/net/ipv4/ip_local_port_range": "32768\t60999\n", "proc/sys/net/ipv4/conf/eth0.7/forwarding": "0\n",
	} {
		path := filepath.Join(g.dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := fsys.Open(g.dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	g.room = New(&guest.Guest{Dir: g.dir, Files: root, Live: true}, "")
	g.call = &builtins.Call{Tx: keeper{tree: g}, Changed: func(c *pb.Change) { g.changes = append(g.changes, c) }}
	return g
}

func (g *tree) do(name string, in proto.Message) (*pb.LuaValue, error) {
	g.t.Helper()
	g.kept, g.changes = nil, nil
	out, err := invokeAs(g.call, g.room, name, in)
	if err != nil {
		return nil, err
	}
	return out.(*pb.LuaValue), nil
}

// sets does it twice: the second time nothing changes.
func (g *tree) sets(name string, in proto.Message, kept ...string) {
	g.t.Helper()
	for round, want := range []bool{true, false} {
		out, err := g.do(name, in)
		if err != nil || out.GetBoolean() != want {
			g.t.Fatalf("round %d of %s %v: changed is %v, error %v", round, name, in, out, err)
		}
		if !want {
			kept = nil
		}
		if !slices.Equal(g.kept, kept) || len(g.changes) != len(kept) {
			g.t.Errorf("round %d of %s: kept %q, want %q; changes %v", round, name, g.kept, kept, g.changes)
		}
	}
}

func (g *tree) holds(name, want string) {
	g.t.Helper()
	if have, err := os.ReadFile(filepath.Join(g.dir, name)); err != nil || string(have) != want {
		g.t.Errorf("%s is %q, want %q, error %v", name, have, want, err)
	}
}

func TestHostname(t *testing.T) {
	g := newTree(t)
	if out, err := invoke(t, New(&guest.Guest{}, ""), "host.hostname", &pb.HostnameArgs{}); err != nil || string(out.(*pb.LuaValue).GetString_()) != uname(t, "-n") {
		t.Error(out, err)
	}
	if out, err := g.do("host.hostname", &pb.HostnameArgs{}); err != nil || string(out.GetString_()) != "box" {
		t.Error(out, err)
	}
	g.sets("host.hostname", &pb.HostnameArgs{New: "web-1.example"}, "/etc/hostname", "/proc/sys/kernel/hostname")
	g.holds("etc/hostname", "web-1.example\n")
	g.holds("proc/sys/kernel/hostname", "web-1.example\n")
	for _, wrong := range []string{"-a", "a_b", "a b", "a\nb", strings.Repeat("a", 65), "a..b"} {
		if _, err := g.do("host.hostname", &pb.HostnameArgs{New: wrong}); err == nil || g.kept != nil {
			t.Errorf("%q was taken", wrong)
		}
	}
	// Comments are none of the name, and stay where the name is the same.
	const commented = "# made by the image build\n\n  web-2 \n"
	if err := os.WriteFile(filepath.Join(g.dir, "etc/hostname"), []byte(commented), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := g.do("host.hostname", &pb.HostnameArgs{New: "web-2"}); err != nil || slices.Contains(g.kept, "/etc/hostname") {
		t.Error(g.kept, err)
	}
	g.holds("etc/hostname", commented)
	g.room.guest.Live = false // a tree that is not the running machine
	if out, err := g.do("host.hostname", &pb.HostnameArgs{}); err != nil || string(out.GetString_()) != "web-2" {
		t.Error(out, err)
	}
	g.sets("host.hostname", &pb.HostnameArgs{New: "image"}, "/etc/hostname")
	g.holds("proc/sys/kernel/hostname", "web-2\n")
	if _, err := invoke(t, New(&guest.Guest{}, ""), "host.hostname", &pb.HostnameArgs{New: "x"}); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

func TestTimezone(t *testing.T) {
	g := newTree(t)
	is := func(want string) {
		t.Helper()
		if out, err := g.do("host.timezone", &pb.TimezoneArgs{}); err != nil || string(out.GetString_()) != want {
			t.Errorf("time zone is %v, want %s, error %v", out, want, err)
		}
	}
	is("UTC")
	g.sets("host.timezone", &pb.TimezoneArgs{New: "Europe/Vienna"}, "/etc/localtime", "/etc/timezone")
	is("Europe/Vienna")
	g.holds("etc/timezone", "Europe/Vienna\n")
	g.holds("etc/localtime", "TZif2…") // through the link
	for zone, words := range map[string]string{"Europe/Wien": "no such time zone", "../../etc/hostname": "no name", "tzdata.zi": "no name", "/etc": "no name"} {
		if _, err := g.do("host.timezone", &pb.TimezoneArgs{New: zone}); err == nil || !strings.Contains(err.Error(), words) || g.kept != nil {
			t.Errorf("%s: %v", zone, err)
		}
	}
	is("Europe/Vienna")
}

// A copy of a zone in place of the link is replaced by the link, and has a name as long as it is there.
func TestTimezoneThatIsAFile(t *testing.T) {
	for _, c := range []struct{ content, timezone, is string }{
		{"TZif2 of Tokyo", "", "Asia/Tokyo"}, {"TZif2 of Tokyo", "Europe/Vienna\n", "Asia/Tokyo"}, {"TZif2 of Tokyo", "Japan\n", "Japan"},
		{"TZif2 of nowhere", "Europe/Vienna\n", ""},
	} {
		g := newTree(t)
		for name, content := range map[string]string{
			"etc/localtime": c.content, "etc/timezone": c.timezone, "usr/share/zoneinfo/Asia/Tokyo": "TZif2 of Tokyo", "usr/share/zoneinfo/Japan": "TZif2 of Tokyo",
			"usr/share/zoneinfo/zone1970.tab": "# comment\nAT\t+4813+01620\tEurope/Vienna\nJP,AU\t+353916+1394441\tAsia/Tokyo\n",
		} {
			path := filepath.Join(g.dir, name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		if c.timezone == "" {
			os.Remove(filepath.Join(g.dir, "etc/timezone"))
		}
		out, err := g.do("host.timezone", &pb.TimezoneArgs{})
		if c.is == "" && err == nil || c.is != "" && (err != nil || string(out.GetString_()) != c.is) {
			t.Errorf("%q beside %q: %v, %v", c.content, c.timezone, out, err)
		}
		for _, no := range []string{"localtime", "posixrules"} {
			if _, err := g.do("host.timezone", &pb.TimezoneArgs{New: no}); err == nil || g.kept != nil {
				t.Errorf("%s was taken", no)
			}
		}
		if out, err := g.do("host.timezone", &pb.TimezoneArgs{New: "Europe/Vienna"}); err != nil || !out.GetBoolean() || g.kept[0] != "/etc/localtime" {
			t.Errorf("%v, %v, kept %q", out, err, g.kept)
		}
		if target, err := os.Readlink(filepath.Join(g.dir, "etc/localtime")); err != nil || target != "../usr/share/zoneinfo/Europe/Vienna" {
			t.Error(target, err)
		}
	}
}

// What cannot be set whole is not begun: a dry run could not take the one half back.
func TestTimezoneIsSetWholeOrNotAtAll(t *testing.T) {
	g := newTree(t)
	if err := errors.Join(os.Remove(filepath.Join(g.dir, "etc/timezone")), os.Mkdir(filepath.Join(g.dir, "etc/timezone"), 0o755)); err != nil {
		t.Fatal(err)
	}
	_, err := g.do("host.timezone", &pb.TimezoneArgs{New: "Europe/Vienna"})
	if err == nil || !strings.Contains(err.Error(), "/etc/timezone") || len(g.changes) > 0 {
		t.Errorf("changes %v, error %v", g.changes, err)
	}
	if _, err := os.Lstat(filepath.Join(g.dir, "etc/localtime")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the link was made: ", err)
	}
}

func TestSysctl(t *testing.T) {
	g := newTree(t)
	if out, err := g.do("host.sysctl", &pb.SysctlArgs{Name: "net.ipv4.ip_local_port_range"}); err != nil || string(out.GetString_()) != "32768 60999" {
		t.Error(out, err)
	}
	g.sets("host.sysctl", &pb.SysctlArgs{Name: "net.ipv4.ip_local_port_range", Value: new("1024 60999")}, "/proc/sys/net/ipv4/ip_local_port_range")
	g.holds("proc/sys/net/ipv4/ip_local_port_range", "1024 60999\n")
	g.sets("host.sysctl", &pb.SysctlArgs{Name: "net.ipv4.conf.eth0/7.forwarding", Value: new("1")}, "/proc/sys/net/ipv4/conf/eth0.7/forwarding")
	if out, err := g.do("host.sysctl", &pb.SysctlArgs{Name: "net/ipv4/conf/eth0.7/forwarding"}); err != nil || string(out.GetString_()) != "1" {
		t.Error(out, err)
	}
	if _, err := g.do("host.sysctl", &pb.SysctlArgs{Name: "vm.nothing"}); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	for _, wrong := range []string{"", "../../etc/hostname", "a//b", "/a", "kernel/../../../etc/hostname", "a.//.//.etc"} {
		if _, err := g.do("host.sysctl", &pb.SysctlArgs{Name: wrong, Value: new("1")}); err == nil || g.kept != nil {
			t.Errorf("%q: %v", wrong, err)
		}
	}
	if _, err := g.do("host.sysctl", &pb.SysctlArgs{Name: "kernel.hostname", Value: new("a\nb")}); err == nil || g.kept != nil {
		t.Error(err)
	}
	g.room.guest.Live = false
	if _, err := g.do("host.sysctl", &pb.SysctlArgs{Name: "kernel.hostname"}); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

func TestSettingsOfADryRun(t *testing.T) {
	g := newTree(t)
	files, err := g.room.guest.Files.Overlay(filepath.Join(t.TempDir(), "overlay"))
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	g.call.Tx, g.call.DryRun = nil, &builtins.DryRun{Files: files}
	for name, in := range map[string]proto.Message{
		"host.hostname": &pb.HostnameArgs{New: "planned"}, "host.timezone": &pb.TimezoneArgs{New: "Europe/Vienna"},
		"host.sysctl": &pb.SysctlArgs{Name: "net.ipv4.ip_local_port_range", Value: new("1 2")},
	} {
		out, err := g.do(name, in)
		if err != nil || !out.GetBoolean() || len(g.changes) == 0 || g.changes[0].State != pb.ChangeState_CHANGE_STATE_WOULD {
			t.Errorf("%s: %v, %v, error %v", name, out, g.changes, err)
		}
		if out, err := g.do(name, in); err != nil || out.GetBoolean() {
			t.Errorf("%s again: %v, error %v", name, out, err)
		}
	}
	g.call.DryRun.Changed = true
	if out, err := g.do("host.hostname", &pb.HostnameArgs{}); err != nil || string(out.GetString_()) != "planned" {
		t.Error(out, err)
	}
	g.holds("etc/hostname", "box\n")
	g.holds("proc/sys/net/ipv4/ip_local_port_range", "32768\t60999\n")
	if _, err := os.Lstat(filepath.Join(g.dir, "etc/localtime")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// A change of the name warns where /etc/hosts still has the old one.
func TestHostnameInHosts(t *testing.T) {
	for hosts, warns := range map[string]bool{
		"127.0.0.1 localhost\n127.0.1.1\tbox.example BOX # box\n": true, "127.0.0.1 localhost\n": false, "127.0.1.1 box\n10.0.0.1 web1\n": false,
		"127.0.0.1 localhost # box\n": false,
	} {
		g := newTree(t)
		g.put("etc/hosts", hosts)
		var said []string
		g.call.Warned = func(text string) { said = append(said, text) }
		for range 2 { // the second time nothing changes
			if _, err := g.do("host.hostname", &pb.HostnameArgs{New: "web1"}); err != nil {
				t.Fatal(err)
			}
		}
		if (len(said) == 1) != warns || len(said) > 1 {
			t.Errorf("%q: %q", hosts, said)
		}
	}
}
