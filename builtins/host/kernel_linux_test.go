package host

import (
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
	if is, err := os.ReadFile(setting); err != nil || string(is) != string(was) {
		t.Errorf("it is %q, and was %q, error %v", is, was, err)
	}
}
