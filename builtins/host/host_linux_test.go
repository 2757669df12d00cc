package host

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/runtime/call"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func invoke(t *testing.T, r *Room, name string, in proto.Message) (proto.Message, error) {
	t.Helper()
	return invokeAs(&builtins.Call{}, r, name, in)
}

// invokeAs runs a row as the executor does for anybody.
func invokeAs(c *builtins.Call, r *Room, name string, in proto.Message) (proto.Message, error) {
	table := builtins.NewTable(r.Room())
	return call.New(call.Config{Table: table}).Execute(context.Background(), c, table.Script(name), in)
}

func uname(t *testing.T, flag string) string {
	t.Helper()
	out, err := exec.Command("uname", flag).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

func TestReadyIsWhatTheGuestIs(t *testing.T) {
	ready := New(&guest.Guest{}, "").Ready(context.Background())
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		t.Skip("this system has no /etc/os-release")
	}
	for _, line := range []string{"NAME=" + ready.GetOsName(), "VERSION_ID=" + ready.GetOsVersion()} {
		if !strings.Contains("\n"+strings.ReplaceAll(string(release), `"`, "")+"\n", "\n"+line+"\n") && !strings.HasSuffix(line, "=Unknown") {
			t.Errorf("%s is not in os-release", line)
		}
	}
	if ready.GetKernelVersion() != uname(t, "-r") || ready.GetArchitecture() != uname(t, "-m") || ready.GetHostname() != uname(t, "-n") {
		t.Error(ready)
	}
	for _, text := range ready.GetIpAddresses() {
		if ip := net.ParseIP(text); ip == nil || ip.IsLoopback() || ip.IsLinkLocalUnicast() {
			t.Errorf("%q is no address to reach the guest by", text)
		}
	}
	for path, id := range map[string]string{"/sys/class/dmi/id/product_uuid": ready.GetProductUuid(), "/etc/machine-id": ready.GetMachineId()} {
		if text, _ := os.ReadFile(path); strings.TrimSpace(string(text)) != id { // what cannot be read is empty
			t.Errorf("%s says %q, and ready %q", path, text, id)
		}
	}
	if ready.GetVersion() != "" || len(ready.GetCapabilities()) > 0 {
		t.Error("version and capabilities are the caller's", ready)
	}
}

// What is told of a tree is what its files say: no name, address or identity of the machine that works on it.
func TestATreeShowsNothingOfTheMachine(t *testing.T) {
	root := t.TempDir()
	r := New(&guest.Guest{Dir: root}, "")
	ready := r.Ready(t.Context())
	if ready.Hostname != facts.Unknown || ready.MachineId+ready.ProductUuid != "" || len(ready.IpAddresses) > 0 || ready.OsName != facts.Unknown {
		t.Error("an empty tree:", ready)
	}
	for name, text := range map[string]string{"etc/hostname": "box\n", "etc/machine-id": "5f1f3c0b6d2a4e0c9a7b8d1e2f304152\n", "etc/os-release": "NAME=Some\n"} {
		if err := errors.Join(os.MkdirAll(filepath.Join(root, "etc"), 0o755), os.WriteFile(filepath.Join(root, name), []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if ready = r.Ready(t.Context()); ready.Hostname != "box" || ready.MachineId != "5f1f3c0b6d2a4e0c9a7b8d1e2f304152" || ready.OsName != "Some" {
		t.Error(ready)
	}
	for _, name := range []string{"host.interfaces", "host.routes"} {
		out, err := invoke(t, r, name, &pb.NoArgs{})
		if err != nil || proto.Size(out) > 0 {
			t.Errorf("%s: %v, %v", name, out, err)
		}
	}
	if out, err := invoke(t, r, "host.info", &pb.NoArgs{}); err != nil || out.(*pb.HostInfo).ProductUuid != "" {
		t.Error(out, err)
	}
	if out, err := invoke(t, New(&guest.Guest{}, ""), "host.interfaces", &pb.NoArgs{}); err != nil || proto.Size(out) == 0 {
		t.Error("the running machine has interfaces:", out, err)
	}
}

func TestInfoOfAnImage(t *testing.T) {
	root := t.TempDir()
	os.Mkdir(filepath.Join(root, "etc"), 0o755)
	for name, text := range map[string]string{"os-release": "NAME=\"Some Linux\"\nVERSION_ID=3\nID=some\n", "hostname": "# made by the image build\n\n box\r\n", "machine-id": "5F1F3c0b6d2a4e0c9a7b8d1e2f304152\n"} {
		if err := os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, err := invoke(t, New(&guest.Guest{Dir: root}, "1.2.3"), "host.info", &pb.NoArgs{})
	if err != nil {
		t.Fatal(err)
	}
	info := out.(*pb.HostInfo)
	if info.GetOs() != "Some Linux" || info.GetOsVersion() != "3" || info.GetOsId() != "some" || info.GetHostname() != "box" || info.GetMachineId() != "5f1f3c0b6d2a4e0c9a7b8d1e2f304152" ||
		info.GetAgentVersion() != "1.2.3" || info.GetKernel() != uname(t, "-r") || info.GetCpus() < 1 || info.GetMemoryBytes() < 1<<20 {
		t.Error(info)
	}
}

// Below another root there is no uptime, memory or mount; a test of a script gets those of its own machine.
func TestATreeDoesNotRun(t *testing.T) {
	for _, name := range []string{"host.uptime", "host.memory", "host.disks"} {
		tree := &guest.Guest{Dir: t.TempDir()}
		if out, err := invoke(t, New(tree, ""), name, &pb.NoArgs{}); !errors.Is(err, errors.ErrUnsupported) {
			t.Error(name, out, err)
		}
		tree.Answer = func(context.Context, guest.Command) (*pb.RunResult, error) { return nil, nil }
		if _, err := invoke(t, New(tree, ""), name, &pb.NoArgs{}); err != nil {
			t.Error(name, err)
		}
	}
}

func TestReading(t *testing.T) {
	r := New(&guest.Guest{}, "")
	out, err := invoke(t, r, "host.interfaces", &pb.NoArgs{})
	if err != nil {
		t.Fatal(err)
	}
	loopback := false
	for _, i := range out.(*pb.Interfaces).GetInterfaces() {
		loopback = loopback || i.GetLoopback() && i.GetName() == "lo"
		for _, address := range i.GetAddresses() {
			if _, _, err := net.ParseCIDR(address); err != nil {
				t.Error(err)
			}
		}
	}
	if !loopback {
		t.Error("no lo in", out)
	}
	if out, err = invoke(t, r, "host.uptime", &pb.NoArgs{}); err != nil || out.(*pb.Uptime).GetSeconds() < 1 {
		t.Error(out, err)
	}
	if out, err = invoke(t, r, "host.memory", &pb.NoArgs{}); err != nil || out.(*pb.Memory).GetAvailable() > out.(*pb.Memory).GetTotal() || out.(*pb.Memory).GetTotal() == 0 {
		t.Error(out, err)
	}
	out, err = invoke(t, r, "host.disks", &pb.NoArgs{})
	if err != nil || len(out.(*pb.Disks).GetDisks()) == 0 {
		t.Fatal(out, err)
	}
	for _, d := range out.(*pb.Disks).GetDisks() {
		if d.GetUsed() > d.GetTotal() || d.GetAvailable() > d.GetTotal() || !filepath.IsAbs(d.GetMount()) {
			t.Error(d)
		}
	}
}

func BenchmarkReady(b *testing.B) {
	r := New(&guest.Guest{}, "")
	for b.Loop() {
		r.Ready(context.Background())
	}
}
