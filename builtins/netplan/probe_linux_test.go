package netplan

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// wire is two network namespaces with a cable between them: that of the test's goroutine, with the interface here, and that of
// a process, with there.
type wire struct {
	t    *testing.T
	peer int
}

// newWire moves the goroutine, whose thread ends with it, into a network of its own.
func newWire(t *testing.T) *wire {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes networks of its own")
	}
	for _, program := range []string{"ip", "sleep", "nsenter"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s: install iproute2 and util-linux", program)
		}
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skipf("needs network namespaces: %v", err)
	}
	peer := exec.Command("sleep", "600")
	peer.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := peer.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = peer.Process.Kill()
		_ = peer.Wait()
	})
	w := &wire{t, peer.Process.Pid}
	w.here("link add here type veth peer name there")
	w.here(fmt.Sprintf("link set there netns %d", w.peer))
	w.there("link set there up")
	w.here("link set here up")
	w.there("addr add 192.0.2.1/24 dev there")
	w.there("addr add 2001:db8::1/64 dev there nodad")
	return w
}

func (w *wire) here(line string) { w.run(append([]string{"ip"}, strings.Fields(line)...)) }

func (w *wire) there(line string) {
	w.run(append([]string{"nsenter", "-t", fmt.Sprint(w.peer), "-n", "ip"}, strings.Fields(line)...))
}

func (w *wire) run(argv []string) string {
	w.t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		w.t.Fatalf("%q: %v %s", argv, err, out)
	}
	return string(out)
}

func (w *wire) index() int {
	w.t.Helper()
	link, err := net.InterfaceByName("here")
	if err != nil {
		w.t.Fatal(err)
	}
	return link.Index
}

// until tries until it holds; the test's own time is its end.
func (w *wire) until(what string, try func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !try(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatal(what)
		}
	}
}

// A neighbour is heard whatever the kernel believes, and one that is not there is not.
func TestAsk(t *testing.T) {
	w := newWire(t)
	w.here("addr add 192.0.2.7/24 dev here")
	w.here("addr add 2001:db8::7/64 dev here nodad")
	mac := strings.Fields(w.run([]string{"nsenter", "-t", fmt.Sprint(w.peer), "-n", "ip", "-o", "link", "show", "there"}))
	want := mac[slices.Index(mac, "link/ether")+1]
	own := netip.MustParseAddr("192.0.2.7")
	for _, addr := range []string{"192.0.2.1", "2001:db8::1"} {
		// The kernel's table says that it has another hardware address.
		w.here("neigh replace " + addr + " lladdr 02:00:00:00:00:99 dev here")
		who, err := ask(t.Context(), w.index(), netip.MustParseAddr(addr), own)
		if err != nil || who.String() != want {
			t.Errorf("%s is %v, %v, want %s", addr, who, err, want)
		}
	}
	if who, err := ask(t.Context(), w.index(), netip.MustParseAddr("192.0.2.1"), netip.Addr{}); err != nil || who.String() != want {
		t.Errorf("who has no address yet hears %v, %v", who, err)
	}
	for _, addr := range []string{"192.0.2.99", "2001:db8::99", "192.0.2.7"} {
		// The kernel's table says that it is there.
		if addr != "192.0.2.7" {
			w.here("neigh replace " + addr + " lladdr " + want + " dev here nud permanent")
		}
		if who, err := ask(t.Context(), w.index(), netip.MustParseAddr(addr), own); err == nil || !strings.Contains(err.Error(), "does not answer on here") {
			t.Errorf("%s, which is not there, is %v, %v", addr, who, err)
		}
	}
	stopped, cancel := context.WithCancelCause(t.Context())
	cancel(context.Canceled)
	if _, err := ask(stopped, w.index(), netip.MustParseAddr("192.0.2.99"), own); err == nil {
		t.Error("it is asked although nobody waits")
	}
	if _, err := ask(t.Context(), 1, netip.MustParseAddr("127.0.0.9"), own); err != errNoNeighbours {
		t.Error(err)
	}
}

func TestGateways(t *testing.T) {
	w := newWire(t)
	if list, err := gateways(); err != nil || len(list) > 0 {
		t.Fatal(list, err)
	}
	if _, err := gatewayAnswers(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "no default gateway") {
		t.Error(err)
	}
	w.here("addr add 192.0.2.7/24 dev here")
	w.here("addr add 2001:db8::7/64 dev here nodad")
	w.here("route add default nexthop via 192.0.2.1 dev here nexthop via 192.0.2.2 dev here")
	w.here("route add default via 192.0.2.3 dev here metric 500")
	w.here("route add 198.51.100.0/24 via 192.0.2.4 dev here")
	w.here("route add default via 192.0.2.5 dev here table 77")
	w.here("-6 route add default via 2001:db8::1 dev here")
	w.here("route add blackhole default metric 900")
	list, err := gateways()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, g := range list {
		if g.index != w.index() {
			t.Errorf("%v is on %d", g.addr, g.index)
		}
		got = append(got, g.addr.String())
	}
	slices.Sort(got)
	if want := []string{"192.0.2.1", "192.0.2.2", "2001:db8::1"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	for i := range 2 {
		if seen, err := gatewayAnswers(t.Context(), &i); err != nil {
			t.Errorf("of family %d: %v, %v", i, seen, err)
		}
	}
	w.here("route del default metric 0")
	if _, err := gatewayAnswers(t.Context(), new(int)); err == nil || !strings.Contains(err.Error(), "192.0.2.3 does not answer on here") {
		t.Error("of the other route:", err)
	}
	w.here("route add default via 192.0.2.1 dev here")
	if _, err := gatewayAnswers(t.Context(), new(int)); err != nil {
		t.Error(err)
	}
	w.there("addr del 192.0.2.1/24 dev there")
	if _, err := gatewayAnswers(t.Context(), new(int)); err == nil {
		t.Error("a gateway that is gone answers")
	}
}

// An interface is as it was asked for, or it is said in what it is not.
func TestFits(t *testing.T) {
	w := newWire(t)
	r := New(&guest.Guest{}, Config{})
	look := func() *snapshot {
		t.Helper()
		n, err := r.look(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	want := &link{id: "x", name: "here", addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/24"), netip.MustParsePrefix("2001:db8::7/64")}}
	says := func(expected string) {
		t.Helper()
		if seen, err := look().fits(t.Context(), &daemons{}, want, &former{}, false); err == nil && expected != "" || err != nil && (expected == "" || !strings.Contains(err.Error(), expected)) {
			t.Errorf("seen %q, %v, want %q", seen, err, expected)
		}
	}
	w.until("the link is not up", func() bool {
		return slices.ContainsFunc(look().links, func(l facts.Link) bool { return l.Name == "here" && l.Up })
	})
	says("here has no 192.0.2.7/24")
	w.here("addr add 192.0.2.7/16 dev here")
	says("here has no 192.0.2.7/24")
	w.here("addr add 192.0.2.7/24 dev here")
	w.here("addr del 192.0.2.7/16 dev here")
	says("here has no 2001:db8::7/64")
	w.here("addr add 2001:db8::7/64 dev here nodad")
	says("")
	want.dhcp = [2]bool{true, false}
	says("here got no address of IPv4 by DHCP")
	w.here("addr add 192.0.2.9/24 dev here") // a lease without an end
	says("")
	had := &former{addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.9/24")}}
	if seen, err := look().fits(t.Context(), &daemons{}, want, had, false); err == nil {
		t.Error("an address that was set before is a lease:", seen)
	}
	had.dhcp[0] = true
	if _, err := look().fits(t.Context(), &daemons{}, want, had, false); err != nil {
		t.Error(err)
	}
	w.here("addr del 192.0.2.9/24 dev here")
	w.here("addr add 192.0.2.8/24 dev here valid_lft 600 preferred_lft 600")
	says("")
	want.dhcp = [2]bool{true, true}
	says("")
	want.dhcp = [2]bool{false, true}
	says("")
	was := look().before(look().links[slices.IndexFunc(look().links, func(l facts.Link) bool { return l.Name == "here" })])
	if !was.Up || !was.Leased4 || was.Leased6 || !slices.Contains(was.Addresses, "192.0.2.7/24") || slices.Contains(was.Addresses, "192.0.2.8/24") {
		t.Error(was)
	}
	if err := look().isAs(was); err != nil {
		t.Error(err)
	}
	w.here("addr del 192.0.2.8/24 dev here")
	if err := look().isAs(was); err == nil || !strings.Contains(err.Error(), "no lease") {
		t.Error(err)
	}
	want.dhcp = [2]bool{}
	w.here("addr del 192.0.2.7/24 dev here")
	if err := look().isAs(was); err == nil || !strings.Contains(err.Error(), "it has no 192.0.2.7/24") {
		t.Error(err)
	}
	w.here("addr del 2001:db8::7/64 dev here")
	want.addresses = []netip.Prefix{netip.MustParsePrefix("2001:db8::1/64")} // the other end has it
	w.here("addr add 2001:db8::1/64 dev here")
	w.until("the kernel does not see that the address is in use", func() bool {
		_, err := look().fits(t.Context(), &daemons{}, want, &former{}, false)
		return err != nil && strings.Contains(err.Error(), "somebody else has it")
	})
	w.there("link set there down")
	w.until("no carrier is not seen", func() bool {
		_, err := look().fits(t.Context(), &daemons{}, want, &former{}, false)
		return err != nil && strings.Contains(err.Error(), "no carrier")
	})
	if seen, err := look().fits(t.Context(), &daemons{}, want, &former{bare: true}, false); err != nil {
		t.Error("one that had no carrier before is", seen, err)
	}
	w.here("link set here down")
	says("here is down")
	want.name = "elsewhere"
	says("there is no such interface")
	want.optional = true
	says("")
}

// An address that somebody has is refused; one's own is not.
func TestAddressInUse(t *testing.T) {
	w := newWire(t)
	w.until("the link is not up", func() bool {
		n, err := New(&guest.Guest{}, Config{}).look(t.Context())
		return err == nil && slices.ContainsFunc(n.links, func(l facts.Link) bool { return l.Name == "here" && l.Up })
	})
	n, err := New(&guest.Guest{}, Config{}).look(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for addr, used := range map[string]bool{"192.0.2.1": true, "192.0.2.50": false} {
		p := &plan{changed: []*link{{id: "x", name: "here", addresses: []netip.Prefix{netip.MustParsePrefix(addr + "/24")}}}}
		asked := n.inquire(t.Context(), p)
		err := asked.end(t.Context(), nil)
		asked.close()
		if used != (err != nil && strings.Contains(err.Error(), addr+" is in use")) {
			t.Errorf("%s: %v", addr, err)
		}
	}
}

// Names come back by the hardware address where that tells one interface, and where two exchanged theirs.
func TestNamesComeBack(t *testing.T) {
	w := newWire(t)
	w.here("link add one type veth peer name oneo")
	w.here("link add two type veth peer name twoo")
	n := &snapshot{}
	names := func(list ...string) (links []*pb.NetplanLinkBefore) {
		n.links = nil
		for _, name := range []string{"one", "two"} {
			link, err := net.InterfaceByName(name)
			if err != nil {
				t.Fatal(err)
			}
			n.links = append(n.links, facts.Link{Index: link.Index, Name: name, MAC: link.HardwareAddr.String(), Kind: "physical"})
			links = append(links, &pb.NetplanLinkBefore{Name: list[len(links)], Mac: link.HardwareAddr.String(), Index: int32(link.Index)})
		}
		return links
	}
	for _, same := range []sameness{sameMAC, sameIndex} {
		was := names("two", "one")
		if err := n.renamed(was, same); err != nil {
			t.Fatal(err)
		}
		for _, l := range was {
			if link, err := net.InterfaceByName(l.Name); err != nil || link.HardwareAddr.String() != l.Mac {
				t.Errorf("%s is %v, %v, want %s", l.Name, link, err, l.Mac)
			}
		}
	}
	bond := names("three", "four")
	bond[0].Mac, n.links[0].MAC, n.links[1].MAC = bond[1].Mac, bond[1].Mac, bond[1].Mac
	if err := n.renamed(bond, sameMAC); err != nil {
		t.Fatal(err)
	}
	names("one", "two") // both are there still
}

func TestLinksAreRenamedAndDeleted(t *testing.T) {
	w := newWire(t)
	if err := renameLink(w.index(), "other"); err != nil {
		t.Fatal(err)
	}
	link, err := net.InterfaceByName("other")
	if err != nil {
		t.Fatal(err)
	}
	if err := renameLink(link.Index, "lo"); err != unix.EEXIST {
		t.Error(err)
	}
	w.here("link property add dev other altname wanted")
	if err := errors.Join(renameLink(link.Index, "wanted"), renameLink(link.Index, "other")); err != nil {
		t.Error("udev has made the name an alternative one:", err)
	}
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 7}
	if err := errors.Join(setMTU(link.Index, 1400), setMAC(link.Index, mac)); err != nil {
		t.Error(err)
	}
	if link, err = net.InterfaceByName("other"); err != nil || link.MTU != 1400 || link.HardwareAddr.String() != mac.String() {
		t.Error(link, err)
	}
	r := New(&guest.Guest{}, Config{})
	for range 2 {
		n, err := r.look(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := n.delete("other"); err != nil {
			t.Error(err)
		}
	}
	if _, err := net.InterfaceByName("other"); err == nil {
		t.Error("it is still there")
	}
	n, err := r.look(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := n.delete("lo"); err == nil {
		t.Error("the loopback interface is deleted")
	}
	if err := deleteLink(link.Index); err != nil {
		t.Error("one that is gone cannot be deleted:", err)
	}
}

// Where the former network does not come back, that is said.
func TestRestoredIsSeen(t *testing.T) {
	w := newWire(t)
	r := New(&guest.Guest{}, Config{})
	w.here("addr add 192.0.2.7/24 dev here")
	undo := &pb.NetplanUndo{
		Links:    []*pb.NetplanLinkBefore{{Name: "here", Up: true, Addresses: []string{"192.0.2.7/24"}}},
		Gateways: []*pb.NetplanGateway{{Link: "here", Address: "192.0.2.1"}},
	}
	if err := r.restored(t.Context(), undo, time.Second); err == nil || !strings.Contains(err.Error(), "it is not the default gateway on here") {
		t.Error(err)
	}
	w.here("route add default via 192.0.2.1")
	if err := r.restored(t.Context(), undo, 20*time.Second); err != nil {
		t.Error(err)
	}
	w.here("route replace default via 192.0.2.99")
	undo.Gateways[0].Address = "192.0.2.99"
	if err := r.restored(t.Context(), undo, time.Second); err == nil || !strings.Contains(err.Error(), "192.0.2.99 does not answer") {
		t.Error(err)
	}
	undo.Links[0].Addresses[0] = "192.0.2.8/24"
	if err := r.restored(t.Context(), undo, time.Second); err == nil || !strings.Contains(err.Error(), "it has no 192.0.2.8/24") {
		t.Error(err)
	}
}
