package host

import (
	"errors"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A value that the kernel does not take is the caller's mistake, and the setting stays as it was.
func TestTheKernelRefusesAValue(t *testing.T) {
	runtime.LockOSThread() // and the thread ends with the test, for it is in a network of its own
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skip("run it as root: ", err)
	}
	const setting = "/proc/sys/net/ipv4/ip_forward"
	was, err := os.ReadFile(setting)
	if err == nil {
		err = os.WriteFile(setting, was, 0)
	}
	if err != nil {
		t.Skip("run it where settings of a network of one's own can be set: ", err)
	}
	root, err := fsys.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	g := &tree{t: t, room: New(&guest.Guest{Files: root, Live: true}, "")}
	g.call = newTree(t).call
	_, err = g.do("host.sysctl", &pb.SysctlArgs{Name: "net.ipv4.ip_forward", Value: new("banana")})
	if fault.Code(err) != "invalid" || !strings.Contains(err.Error(), "banana") {
		t.Errorf("code %s: %v", fault.Code(err), err)
	}
	_, err = g.do("host.sysctl", &pb.SysctlArgs{Name: "net.ipv4.tcp_congestion_control", Value: new("nosuchone")})
	var told *fault.Error
	if fault.Code(err) != "invalid" || !errors.As(err, &told) || !strings.Contains(told.Hint, "module") {
		t.Errorf("code %s: %v", fault.Code(err), err)
	}
	if is, err := os.ReadFile(setting); err != nil || string(is) != string(was) {
		t.Errorf("it is %q, and was %q, error %v", is, was, err)
	}
	if value, err := g.do("host.sysctl", &pb.SysctlArgs{Name: "net.ipv4.icmp_ratemask", Value: new("0x1819")}); err != nil || !value.GetBoolean() {
		t.Error(value, err)
	}
	if value, err := g.do("host.sysctl", &pb.SysctlArgs{Name: "net.ipv4.icmp_ratemask", Value: new("0x1819")}); err != nil || value.GetBoolean() {
		t.Error(value, err)
	}
	const ports = "9149,8080,9148,9150"
	if value, err := g.do("host.sysctl", &pb.SysctlArgs{Name: "net.ipv4.ip_local_reserved_ports", Value: new(ports)}); err != nil || !value.GetBoolean() {
		t.Error(value, err)
	}
	for _, value := range []*string{nil, new("1")} {
		_, err := g.do("host.sysctl", &pb.SysctlArgs{Name: "net.ipv4.route.flush", Value: value})
		if fault.Code(err) != "refused" || !strings.Contains(err.Error(), "only be written") {
			t.Error(err)
		}
	}
}

// Where an agent that is not root may not read a setting that others read, that is no write-only one.
func TestWriteOnlySettings(t *testing.T) {
	g := newTree(t)
	for name, want := range map[string]fs.FileMode{"/only": 0o200, "/root": 0o600, "/all": 0o644} {
		g.put(name, "1\n")
		if err := os.Chmod(g.dir+name, want); err != nil {
			t.Fatal(err)
		}
		if got := isWriteOnly(g.room.guest.Files, name); got != (want == 0o200) {
			t.Error(name, got)
		}
	}
}

func TestSameSetting(t *testing.T) {
	for _, c := range []struct {
		told, said string
		want       bool
	}{
		{"16\n", "0x10", true}, {"8", "010", true}, {"10", "010", false}, {"4\t4\t1\t7", "4 4 1 7", true}, {"4 4", "4", false},
		{"8080,9148-9150", "9150,9148,8080,9149", true}, {"1-5", "1-3,2-5", true}, {"1-5", "1-4", false}, {"1-5", "1,5", false},
		{"-1", "-1", true}, {"-1", "1", false}, {"", "", true}, {"9223372036854775807", "9223372036854775806", false},
		{"18446744073692774399", "18446744073692774398", false}, {"a,b", "b,a", false},
		{"2", "0b10", false}, {"10", "1_0", false}, {"15", "0o17", false}, {"5", "+5", false}, {"-8", "-010", true}, {"0", "00", true},
	} {
		if got := sameSetting(c.told, c.said); got != c.want {
			t.Errorf("%q and %q: %v", c.told, c.said, got)
		}
	}
}
