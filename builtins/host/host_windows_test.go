package host

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func call(t *testing.T, name string, in proto.Message) (proto.Message, error) {
	t.Helper()
	for _, op := range New(&guest.Guest{Live: true}, "1.2.3").Room().Ops {
		if op.Name == name {
			return op.Call(t.Context(), &builtins.Call{}, in)
		}
	}
	t.Fatal("there is no", name)
	return nil, nil
}

// Scripts can tell that they are on Windows, and what is not there is refused by name.
func TestInfo(t *testing.T) {
	out, err := call(t, "host.info", &pb.NoArgs{})
	if err != nil {
		t.Fatal(err)
	}
	name, _ := os.Hostname()
	info := out.(*pb.HostInfo)
	if info.Os != "windows" || info.OsId != "windows" || !strings.Contains(info.Product, "Windows") || info.Hostname != name ||
		info.AgentVersion != "1.2.3" {
		t.Error(info)
	}
	for op, in := range map[string]proto.Message{
		"host.locale": &pb.LocaleArgs{}, "host.keymap": &pb.KeymapArgs{}, "host.sysctl": &pb.SysctlArgs{Name: "x"},
		"host.mount": &pb.MountArgs{Source: "x", Target: "/x"},
	} {
		if _, err := call(t, op, in); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", op, err)
		}
	}
	if out, err := call(t, "network", &pb.NetworkRequest{}); err != nil || len(out.(*pb.NetworkResponse).Interfaces) == 0 ||
		out.(*pb.NetworkResponse).Dns.GetManager() != "windows" {
		t.Error(out, err)
	}
}

// kept is a transaction that keeps what is announced to it.
type kept struct {
	builtins.Tx
	list []*pb.SettingUndo
}

func (k *kept) Undo(_ context.Context, op string, args proto.Message) error {
	if op != settingUndo {
		return errors.New(op)
	}
	k.list = append(k.list, args.(*pb.SettingUndo))
	return nil
}

// The name and the zone are set once, predicted, and taken back.
func TestSettings(t *testing.T) {
	name, zone, writes := "WAS", "UTC", 0
	s := windowsSettings()
	s.pendingName = func() (string, error) { return name, nil }
	s.setName = func(to string) error { name = to; writes++; return nil }
	s.zone = func() (string, error) { return zone, nil }
	s.setZone = func(to string) error { zone = to; writes++; return nil }
	set := func(c *builtins.Call, f func(context.Context, *builtins.Call, bool, string) (*pb.LuaValue, error), to string,
		want bool) {
		t.Helper()
		if out, err := f(t.Context(), c, true, to); err != nil || !proto.Equal(out, yes(want)) {
			t.Fatal(to, out, err)
		}
	}
	const vienna = "W. Europe Standard Time"
	dry := &builtins.Call{DryRun: &builtins.DryRun{}}
	tx := &kept{}
	for _, c := range []*builtins.Call{dry, {Tx: tx}} {
		set(c, s.hostname, "web-1", true)
		set(c, s.hostname, "WEB-1", false)
		set(c, s.timezone, vienna, true)
		set(c, s.timezone, vienna, false)
		if c == dry && writes != 0 {
			t.Fatal("a dry run writes")
		}
		if out, err := s.timezone(t.Context(), c, true, ""); err != nil || !proto.Equal(out, text(vienna)) {
			t.Error(out, err)
		}
	}
	for _, undo := range tx.list {
		for range 2 {
			if _, err := s.undo(undo); err != nil {
				t.Fatal(err)
			}
		}
	}
	if name != "WAS" || zone != "UTC" {
		t.Error(name, zone)
	}
	for _, bad := range []string{"a.b", "-a", "a_b", "1234", strings.Repeat("x", 16), "a b"} {
		if _, err := s.hostname(t.Context(), &builtins.Call{}, true, bad); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for _, bad := range []string{"Europe/Vienna", `..\x`, "no such zone"} {
		if _, err := s.timezone(t.Context(), &builtins.Call{}, true, bad); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	s.setZone = func(string) error { return nil }
	if _, err := s.timezone(t.Context(), &builtins.Call{}, true, "Tokyo Standard Time"); err == nil {
		t.Error("a zone that is not set is told as set")
	}
}

// What the calls of Windows say of this machine makes sense, and a name that is set is that of the next boot.
func TestSettingsOfThisMachine(t *testing.T) {
	before, err := pendingName()
	if err != nil || before == "" {
		t.Fatal(before, err)
	}
	if os.Getenv("WINEPREFIX") == "" {
		t.Skip("would change the name of this machine; it runs under Wine")
	}
	t.Cleanup(func() {
		if err := setComputerName(before); err != nil {
			t.Error(err)
		}
	})
	if err := setComputerName("quantix-test"); err != nil {
		t.Fatal(err)
	}
	if now, err := pendingName(); err != nil || now != "quantix-test" {
		t.Error(now, err)
	}
	if zone, err := currentZone(); err != nil {
		t.Error(zone, err)
	}
}
