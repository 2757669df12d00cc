package host

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/runtime/call"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// treeWith returns a room on a tree that is not booted, with a resolv.conf; empty: without.
func treeWith(t *testing.T, content string) *Room {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if content != "" {
		if err := os.WriteFile(filepath.Join(dir, "etc/resolv.conf"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	files, err := fsys.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { files.Close() })
	return New(&guest.Guest{Files: files, Dir: dir}, "")
}

// resolv.conf is read as resolv.conf(5) says; what is no line of it is left out.
func TestDNS(t *testing.T) {
	for content, want := range map[string]*pb.NetDns{
		"": {Manager: "resolv.conf"},
		"# nameserver 192.0.2.1\n; nameserver 192.0.2.2\nnameserver 192.0.2.3\n\tnameserver 192.0.2.4\nnameserver   2001:db8::53  # here\nnameserver\nnameserver ns1\nsearch a.example b.example\ndomain c.example d\noptions timeout:1 rotate\nunknown x\noptions edns0": {
			Manager: "resolv.conf", Servers: []string{"192.0.2.3", "2001:db8::53"}, Search: []string{"c.example"}, Options: []string{"timeout:1", "rotate", "edns0"},
		},
		"nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver fe80::1%eth0\nnameserver 192.0.2.4\n": {
			Manager: "resolv.conf", Servers: []string{"192.0.2.1", "192.0.2.2", "fe80::1%eth0"},
		},
		"nameserver 127.1\nnameserver 010.0.0.0x35\nnameserver 192.0.2.256\nnameserver 192.0.0513\n": {
			Manager: "resolv.conf", Servers: []string{"127.0.0.1", "8.0.0.53", "192.0.1.75"},
		},
		"nameserver 08.8.8.8\nnameserver 192.0.2.1.\nnameserver 1.2.3.4.5\nnameserver 0xc0000201\nnameserver -1\n": {
			Manager: "resolv.conf", Servers: []string{"192.0.2.1"},
		},
		"nameserver 127.0.0.53\nsearch .\n": {Manager: "resolv.conf", Servers: []string{"127.0.0.53"}, Search: []string{"."}}, // nothing runs in the tree
	} {
		got, err := invoke(t, treeWith(t, content), "host.dns", &pb.NoArgs{})
		if err != nil || !proto.Equal(got, want) {
			t.Errorf("%q: %v, %v", content, got, err)
		}
	}
	large := treeWith(t, "nameserver 192.0.2.1\n"+string(make([]byte, maxResolvConf)))
	if got, err := invoke(t, large, "host.dns", &pb.NoArgs{}); err == nil {
		t.Error("it is read whole: ", got)
	}
	if _, err := invoke(t, New(&guest.Guest{}, ""), "host.dns", &pb.NoArgs{}); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

// What systemd-resolved says of all interfaces, and of each.
func TestDescribeResolved(t *testing.T) {
	links := []facts.Link{{Name: "lan0", Index: 2}, {Name: "vpn0", Index: 7}}
	got := describeResolved(
		[]resolveServer{
			{Link: 0, Address: []byte{192, 0, 2, 1}}, {Link: 2, Address: []byte{192, 0, 2, 1}, Port: 53}, {Link: 2, Address: []byte{192, 0, 2, 2}, Port: 853},
			{Link: 9, Address: []byte{0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}}, {Link: 7, Address: []byte{1}},
		},
		[]resolveDomain{{0, "a.example", false}, {7, "corp.example", true}, {7, "b.example", false}, {2, "a.example", false}, {7, ".", true}},
		links)
	want := &pb.NetDns{
		Manager: "systemd-resolved", Servers: []string{"192.0.2.1", "192.0.2.2#853", "2001:db8::1", "unknown"}, Search: []string{"a.example", "b.example"},
		Links: []*pb.NetDnsLink{
			{Interface: "lan0", Servers: []string{"192.0.2.1", "192.0.2.2#853"}, Search: []string{"a.example"}}, {Interface: "9", Servers: []string{"2001:db8::1"}},
			{Interface: "vpn0", Servers: []string{"unknown"}, Search: []string{"~corp.example", "b.example", "~."}},
		},
	}
	if !proto.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// Hosts see what scripts see, in one view.
func TestNetworkIsOneView(t *testing.T) {
	r := treeWith(t, "nameserver 192.0.2.3\n")
	r.guest.Dir = "" // the machine's own interfaces, with the name server of the tree
	table := builtins.NewTable(r.Room())
	in := &pb.NetworkRequest{}
	out, err := call.New(call.Config{Table: table}).Execute(t.Context(), &builtins.Call{}, table.Native(in), in)
	if err != nil {
		t.Fatal(err)
	}
	view := out.(*pb.NetworkResponse)
	interfaces, err := invoke(t, r, "host.interfaces", &pb.NoArgs{})
	routes, routesErr := invoke(t, r, "host.routes", &pb.NoArgs{})
	dns, dnsErr := invoke(t, r, "host.dns", &pb.NoArgs{})
	if err := errors.Join(err, routesErr, dnsErr); err != nil {
		t.Fatal(err)
	}
	want := &pb.NetworkResponse{Interfaces: interfaces.(*pb.Interfaces).Interfaces, Routes: routes.(*pb.NetRoutes).Routes, Dns: dns.(*pb.NetDns)}
	if !proto.Equal(view, want) || len(view.Interfaces) == 0 {
		t.Errorf("got  %v\nwant %v", view, want)
	}
}
