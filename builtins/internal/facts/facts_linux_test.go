package facts

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestParseRelease(t *testing.T) {
	got := parseRelease([]byte("# a comment\nNAME=\"Debian \\\"GNU\\\"/Linux\"\nVERSION_ID='12'\nID=debian\nVERSION_CODENAME=bookworm\n"))
	if want := (Release{Name: `Debian "GNU"/Linux`, Version: "12", ID: "debian"}); got != want {
		t.Errorf("%+v", got)
	}
}

func TestImageUnderRoot(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"etc", "usr/lib"} {
		os.MkdirAll(filepath.Join(root, dir), 0o755)
	}
	os.WriteFile(root+"/usr/lib/os-release", []byte("NAME=Image\n"), 0o644)
	os.Symlink("../usr/lib/os-release", root+"/etc/os-release")
	os.WriteFile(root+"/etc/hostname", []byte("box\n"), 0o644)
	os.Symlink("/etc/machine-id", root+"/etc/machine-id") // the build machine's, which must not be read
	if r, name, id := ReadRelease(context.Background(), root), Hostname(root), MachineID(root); r.Name != "Image" || name != "box" || id != "" {
		t.Error(r, name, id)
	}
}

func TestMachineIDs(t *testing.T) {
	const id = "5f1f3c0b6d2a4e0c9a7b8d1e2f304152"
	for text, want := range map[string]string{
		id + "\n": id, id: id, strings.ToUpper(id) + "\n": id, "uninitialized\n": "", "": "", "\n": "", id[1:] + "\n": "", strings.Repeat("0", 32): "",
	} {
		root := t.TempDir()
		os.Mkdir(root+"/etc", 0o755)
		os.WriteFile(root+"/etc/machine-id", []byte(text), 0o644)
		if got := MachineID(root); got != want {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
	}
}

func TestCPUs(t *testing.T) {
	for list, want := range map[string]int{"0": 1, "0-3": 4, "0-1,3,8-9": 5, "": runtime.NumCPU(), "0-x": runtime.NumCPU(), "3-0": runtime.NumCPU()} {
		if got := cpusIn(list); got != want {
			t.Errorf("%q is %d, want %d", list, got, want)
		}
	}
	out, err := exec.Command("getconf", "_NPROCESSORS_ONLN").Output()
	if err == nil && strings.TrimSpace(string(out)) != strconv.Itoa(CPUs()) {
		t.Errorf("%d, and getconf says %s", CPUs(), out)
	}
}

func TestHostnameIn(t *testing.T) {
	for text, want := range map[string]string{
		"box\n": "box", "web1.example.com.\n": "web1.example.com", "# comment\nweb1\n": "web1", "\n\n  # c\n web1 \r\nother\n": "web1", "#only": "", "": "",
	} {
		if got := HostnameIn([]byte(text)); got != want {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
	}
}

// Of each file system the mount is listed that its path leads to.
func TestVisibleData(t *testing.T) {
	const root = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
	for name, c := range map[string]struct{ mountinfo, want string }{
		"alone":                      {root, "/=/dev/sda1"},
		"mounted over":               {root + "2 1 7:0 / /mnt rw - ext4 /dev/a rw\n3 2 7:1 / /mnt rw - ext4 /dev/b rw\n", "/=/dev/sda1 /mnt=/dev/b"},
		"mounted over twice":         {root + "2 1 7:0 / /mnt rw - ext4 /dev/a rw\n3 2 7:1 / /mnt rw - ext4 /dev/b rw\n4 3 7:2 / /mnt rw - ext4 /dev/c rw\n", "/=/dev/sda1 /mnt=/dev/c"},
		"mounted over by memory":     {root + "2 1 7:0 / /mnt rw - ext4 /dev/a rw\n3 2 0:9 / /mnt rw - tmpfs tmpfs rw\n", "/=/dev/sda1"},
		"below what is mounted over": {root + "2 1 7:0 / /mnt/a rw - ext4 /dev/a rw\n3 1 7:1 / /mnt rw - ext4 /dev/b rw\n", "/=/dev/sda1 /mnt=/dev/b"},
		"within what is covered":     {root + "2 1 7:0 / /mnt rw - ext4 /dev/a rw\n3 2 7:1 / /mnt/x rw - ext4 /dev/b rw\n4 2 7:2 / /mnt rw - ext4 /dev/c rw\n", "/=/dev/sda1 /mnt=/dev/c"},
		"within what covers":         {root + "2 1 7:0 / /mnt rw - ext4 /dev/a rw\n3 2 7:1 / /mnt rw - ext4 /dev/b rw\n4 3 7:2 / /mnt/x rw - ext4 /dev/c rw\n", "/=/dev/sda1 /mnt=/dev/b /mnt/x=/dev/c"},
		"a bind mount first":         {root + "2 1 7:0 /srv /srv rw - ext4 /dev/a rw\n3 1 7:0 / /data rw - ext4 /dev/a rw\n", "/=/dev/sda1 /data=/dev/a"},
		"a bind mount of / first":    {"2 1 8:1 /x /srv rw - ext4 /dev/sda1 rw\n" + root, "/=/dev/sda1"},
		"bind mounts alone":          {root + "2 1 7:0 /a /srv/a rw - ext4 /dev/a rw\n3 1 7:0 /b /srv/b rw - ext4 /dev/a rw\n", "/=/dev/sda1 /srv/a=/dev/a"},
		"the first is mounted over":  {root + "2 1 7:0 / /data rw - ext4 /dev/a rw\n3 2 7:1 / /data rw - ext4 /dev/b rw\n4 1 7:0 / /again rw - ext4 /dev/a rw\n", "/=/dev/sda1 /data=/dev/b /again=/dev/a"},
		"the root of an initramfs":   {"1 1 0:1 / / rw - rootfs rootfs rw\n2 1 8:1 / / rw - ext4 /dev/sda1 rw\n", "/=/dev/sda1"},
		"subvolumes":                 {"1 0 0:30 /@ / rw - btrfs /dev/sda1 rw\n2 1 0:30 /@home /home rw - btrfs /dev/sda1 rw\n", "/=/dev/sda1"},
		"blanks and tags":            {root + `2 1 7:0 / /my\040disk rw shared:1 master:2 - ext4 /dev/a\134b rw` + "\n", `/=/dev/sda1 /my disk=/dev/a\b`},
		"other blanks":               {root + "2 1 7:0 / /my\u3000disk\u00a0 rw - ext4 /dev/a rw\n", "/=/dev/sda1 /my\u3000disk\u00a0=/dev/a"},
		"a pool of others":           {root + "2 1 0:50 / /pool rw - fuse.mergerfs disk1:disk2 rw\n", "/=/dev/sda1 /pool=disk1:disk2"},
		"no file system":             {root + "2 1 0:5 / /proc rw - proc proc rw\nnot a line\n3 x\n", "/=/dev/sda1"},
	} {
		var got []string
		for _, d := range visibleData(c.mountinfo) {
			got = append(got, d.point+"="+d.source)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %q, want %s", name, got, c.want)
		}
	}
}

// A real file system over another one.
func TestDiskThatIsMountedOver(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root for a mount namespace: run the test binary as root")
	}
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip("needs mkfs.ext4 of e2fsprogs")
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // the thread ends with the test, and its mounts with it
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			t.Errorf("no mount namespace: %v", err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Error(err)
			return
		}
		over := dir + "/over"
		os.Mkdir(over, 0o755)
		var above string
		for i := 1; i <= 2; i++ {
			image := dir + "/" + strconv.Itoa(i)
			run := func(command string) string {
				out, err := exec.Command("sh", "-ec", command).CombinedOutput()
				if err != nil {
					t.Errorf("%s: %v %s", command, err, out)
				}
				return strings.TrimSpace(string(out))
			}
			run("truncate -s " + strconv.Itoa(20*i) + "M " + image + "; mkfs.ext4 -qF " + image)
			above = run("losetup -f --show " + image)
			defer run("losetup -d " + above)
			if err := unix.Mount(above, over, "ext4", 0, ""); err != nil {
				t.Error(err)
				return
			}
			defer unix.Unmount(over, unix.MNT_DETACH)
		}
		text, err := os.ReadFile("/proc/thread-self/mountinfo")
		if err != nil {
			t.Error(err)
			return
		}
		list := visibleData(string(text))
		at := slices.IndexFunc(list, func(m *mount) bool { return m.point == over })
		if at < 0 || list[at].source != above {
			t.Errorf("%+v, want %s above", list, above)
		}
	}()
	<-done
}

// Blocks are counted by the fragment size, of which the block size is a multiple where FUSE says so.
func TestSizesOf(t *testing.T) {
	s := unix.Statfs_t{Bsize: 131072, Frsize: 512, Blocks: 100, Bfree: 40, Bavail: 30, Files: 9, Ffree: 4}
	if got := sizesOf(s); got != (Disk{Total: 51200, Used: 30720, Available: 15360, Inodes: 9, InodesUsed: 5}) {
		t.Errorf("%+v", got)
	}
	s = unix.Statfs_t{Bsize: 4096, Blocks: 100, Bfree: 101, Ffree: 1}
	if got := sizesOf(s); got != (Disk{Total: 409600}) {
		t.Errorf("%+v", got)
	}
}

// The device that the kernel calls /dev/root is found by its number.
func TestDeviceName(t *testing.T) {
	root := t.TempDir()
	os.MkdirAll(root+"/sys/dev/block", 0o755)
	os.Symlink("../../devices/pci0000:00/virtio1/block/vda/vda1", root+"/sys/dev/block/253:1")
	for _, c := range []struct{ source, device, want string }{
		{"/dev/root", "253:1", "/dev/vda1"}, {"/dev/root", "0:24", "/dev/root"}, {"/dev/vdb", "253:1", "/dev/vdb"},
	} {
		m := &mount{source: c.source, device: c.device}
		if got := m.deviceName(root); got != c.want {
			t.Errorf("%s of %s is %s, want %s", c.source, c.device, got, c.want)
		}
	}
}

func TestReadMemory(t *testing.T) {
	m, err := ReadMemory(context.Background())
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		t.Fatal(err)
	}
	total := info.Totalram * uint64(info.Unit)
	if err != nil || m.Total != total || m.Available == 0 || m.Available > m.Total || m.SwapFree > m.SwapTotal || m.SwapTotal != info.Totalswap*uint64(info.Unit) {
		t.Errorf("%+v %v, sysinfo says %d", m, err, total)
	}
}

func TestProcessesExcludeThreads(t *testing.T) {
	count := func() int {
		n, err := Processes(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	const threads = 300
	before, stop := count(), make(chan struct{})
	ready, ended := make(chan struct{}), make(chan struct{})
	for range threads {
		go func() {
			runtime.LockOSThread()
			ready <- struct{}{}
			<-stop
			ended <- struct{}{}
		}()
	}
	for range threads {
		<-ready
	}
	during := count()
	close(stop)
	for range threads {
		<-ended
	}
	if before < 1 || during > before+threads/2 { // other processes may start meanwhile
		t.Errorf("%d before, %d with %d threads more", before, during, threads)
	}
}

func TestLinks(t *testing.T) {
	links, err := Links()
	if err != nil {
		t.Fatal(err)
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range interfaces {
		at := slices.IndexFunc(links, func(l Link) bool { return l.Index == i.Index })
		if at < 0 {
			t.Errorf("%s is missing", i.Name)
			continue
		}
		l := links[at]
		var addresses []string
		list, _ := i.Addrs()
		for _, a := range list {
			addresses = append(addresses, a.String())
		}
		var ours []string
		for _, p := range l.Prefixes {
			ours = append(ours, p.String())
		}
		slices.Sort(addresses)
		slices.Sort(ours)
		if l.Name != i.Name || int(l.MTU) != i.MTU || l.Enabled != (i.Flags&net.FlagUp != 0) || l.Loopback != (i.Flags&net.FlagLoopback != 0) ||
			!l.Loopback && l.MAC != i.HardwareAddr.String() || !slices.Equal(addresses, ours) {
			t.Errorf("%+v is not %+v %v", l, i, addresses)
		}
	}
}

// withNetworkNamespace runs f in a network namespace of its own, on a thread that ends with it.
func withNetworkNamespace(t *testing.T, f func(ip func(args string))) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for a network namespace: run the test binary as root")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("no network namespace: %v", err)
			return
		}
		f(func(args string) {
			if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
				t.Errorf("ip %s: %v %s", args, err, out)
			}
		})
	}()
	<-done
}

// Routes of every kind and table are told as ip shows them, and what the kernel has for itself is not.
func TestRoutes(t *testing.T) {
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs ip of iproute2")
	}
	withNetworkNamespace(t, func(ip func(string)) {
		for _, args := range []string{
			"link set lo up", "link add lan0 type ifb", "link add lan1 type ifb", "link set lan0 up", "link set lan1 up",
			"addr add 192.0.2.7/24 dev lan0", "addr add 192.0.2.8/24 dev lan1 metric 900", "addr add 2001:db8::7/64 dev lan0 nodad",
			"route add default via 192.0.2.1 dev lan0 proto dhcp src 192.0.2.7 metric 100",
			"route add 198.51.100.0/24 dev lan1 scope link", "route add 203.0.113.0/24 nexthop via 192.0.2.2 dev lan0 nexthop via 192.0.2.3 dev lan1",
			"route add blackhole 10.0.0.0/8", "route add 192.0.2.128/25 dev lan1 table 77 proto static", "-6 route add default via 2001:db8::1 dev lan0 metric 5 proto ra",
			"-6 route add unreachable 2001:db8:dead::/48 metric 7",
		} {
			ip(args)
		}
		routes, err := Routes()
		if err != nil {
			t.Error(err)
			return
		}
		links, err := Links()
		if err != nil {
			t.Error(err)
			return
		}
		var got []string
		for _, r := range routes {
			name := ""
			for _, l := range links {
				if l.Index == r.Link {
					name = l.Name
				}
			}
			if addr := r.Destination.Addr(); addr.Is6() && addr.IsLinkLocalUnicast() { // one for each link
				continue
			}
			got = append(got, fmt.Sprintf("%v %s via %v dev %s src %v metric %d table %d proto %s scope %s", r.Destination, r.Kind, r.Gateway, name, r.Source, r.Metric, r.Table, r.Protocol, r.Scope))
		}
		const none = "invalid IP"
		want := []string{
			"0.0.0.0/0 unicast via 192.0.2.1 dev lan0 src 192.0.2.7 metric 100 table 254 proto dhcp scope global",
			"10.0.0.0/8 blackhole via " + none + " dev  src " + none + " metric 0 table 254 proto boot scope global",
			"192.0.2.0/24 unicast via " + none + " dev lan0 src 192.0.2.7 metric 0 table 254 proto kernel scope link",
			"192.0.2.0/24 unicast via " + none + " dev lan1 src 192.0.2.8 metric 900 table 254 proto kernel scope link",
			"198.51.100.0/24 unicast via " + none + " dev lan1 src " + none + " metric 0 table 254 proto boot scope link",
			"203.0.113.0/24 unicast via 192.0.2.2 dev lan0 src " + none + " metric 0 table 254 proto boot scope global",
			"203.0.113.0/24 unicast via 192.0.2.3 dev lan1 src " + none + " metric 0 table 254 proto boot scope global",
			"192.0.2.128/25 unicast via " + none + " dev lan1 src " + none + " metric 0 table 77 proto static scope link",
			"::/0 unicast via 2001:db8::1 dev lan0 src " + none + " metric 5 table 254 proto ra scope global",
			"2001:db8::/64 unicast via " + none + " dev lan0 src " + none + " metric 256 table 254 proto kernel scope global",
			"2001:db8:dead::/48 unreachable via " + none + " dev lo src " + none + " metric 7 table 254 proto boot scope global",
		}
		if !slices.Equal(got, want) {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

// An address that is checked for duplicates cannot be used yet.
func TestTentativeAddress(t *testing.T) {
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs ip of iproute2")
	}
	withNetworkNamespace(t, func(ip func(string)) {
		ip("link add v0 type veth peer name v1")
		ip("link set v1 up")
		ip("link set v0 up")
		ip("addr add 2001:db8::9/64 dev v0")
		ip("addr add 2001:db8::a/64 dev v0 nodad")
		links, err := Links()
		if err != nil {
			t.Error(err)
			return
		}
		for _, l := range links {
			if l.Name != "v0" {
				continue
			}
			for text, want := range map[string]bool{"2001:db8::9/64": true, "2001:db8::a/64": false} {
				if p := netip.MustParsePrefix(text); !slices.Contains(l.Prefixes, p) || slices.Contains(l.Tentative, p) != want {
					t.Errorf("%v: %+v", p, l)
				}
			}
		}
	})
}

func TestLinkKinds(t *testing.T) {
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs ip of iproute2")
	}
	withNetworkNamespace(t, func(ip func(string)) {
		ip("link set lo up")
		ip("link add lolan0 type ifb") // stands for hardware, with a name that looks like loopback
		ip("addr add 192.0.2.7/24 dev lolan0")
		ip("addr add 2001:db8::7/64 dev lolan0 nodad")
		ip("link set lolan0 up mtu 1400")
		ip("link add down0 type ifb")
		ip("addr add 192.0.2.99/24 dev down0")
		ip("link add docker0 type bridge")
		ip("addr add 172.17.0.1/16 dev docker0")
		ip("link set docker0 up")
		ip("link add eth77 type veth peer name inside") // with a name that looks like hardware
		ip("link set eth77 master docker0 up")
		ip("link add br-lan type bridge") // a bridge to the outside, with a name like docker's
		ip("link add port0 type ifb")
		ip("link set port0 master br-lan up")
		ip("addr add 198.51.100.7/24 dev br-lan")
		ip("link set br-lan up")
		for name, overlay := range map[string]string{"eth8": "vxlan id 1 dstport 8472", "eth9": "vxlan id 2 dstport 8473"} { // with names like hardware
			ip("link add " + name + " type " + overlay)
			ip("addr add 10.244." + name[3:] + ".0/32 dev " + name)
			ip("link set " + name + " up")
		}
		links, err := Links()
		if err != nil {
			t.Error(err)
			return
		}
		want := map[string]struct {
			plumbing, enabled bool
			prefix            string
		}{
			"lo": {false, true, "127.0.0.1/8"}, "lolan0": {false, true, "192.0.2.7/24"}, "down0": {false, false, "192.0.2.99/24"},
			"docker0": {true, true, "172.17.0.1/16"}, "eth77": {true, true, ""}, "inside": {true, false, ""},
			"br-lan": {false, true, "198.51.100.7/24"}, "port0": {false, true, ""},
			"eth8": {true, true, "10.244.8.0/32"}, "eth9": {true, true, "10.244.9.0/32"},
		}
		for _, l := range links {
			w, ok := want[l.Name]
			if !ok {
				continue
			}
			delete(want, l.Name)
			if l.Plumbing != w.plumbing || l.Enabled != w.enabled || w.prefix != "" && !slices.Contains(l.Prefixes, netip.MustParsePrefix(w.prefix)) ||
				l.Loopback != (l.Name == "lo") || l.Up && !l.Enabled {
				t.Errorf("%+v", l)
			}
			if l.Name == "lolan0" && (l.MTU != 1400 || l.Kind != "ifb" || len(l.MAC) != 17 || !l.Up) {
				t.Errorf("%+v", l)
			}
		}
		if len(want) > 0 {
			t.Errorf("missing: %v", want)
		}
		var addresses []string
		for _, a := range Addresses(links) {
			addresses = append(addresses, a.String())
		}
		slices.Sort(addresses)
		if !slices.Equal(addresses, []string{"192.0.2.7", "198.51.100.7", "2001:db8::7"}) {
			t.Errorf("%v", addresses)
		}
	})
}

// An overlay network leads outside where nothing else does.
func TestOverlayAlone(t *testing.T) {
	links := []Link{
		{Index: 1, Kind: "loopback", Loopback: true, Enabled: true, Prefixes: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/8")}},
		{Index: 2, Kind: "physical", Enabled: true, Prefixes: []netip.Prefix{netip.MustParsePrefix("fe80::1/64")}},
		{Index: 3, Kind: "vxlan", Enabled: true, Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24")}},
	}
	markPlumbing(links, false)
	if links[2].Plumbing {
		t.Error("the only address is left out")
	}
	links[1].Prefixes[0] = netip.MustParsePrefix("198.51.100.1/24")
	markPlumbing(links, false)
	if !links[2].Plumbing {
		t.Error("the address of an overlay is not left out")
	}
}

// What sets the MTU of a bridge of containers, or carries it to other machines, is no way outside.
func TestBridgeOfContainers(t *testing.T) {
	for kind, plumbing := range map[string]bool{"physical": false, "bond": false, "vlan": false, "dummy": true, "gretap": true, "tun": true} {
		links := []Link{{Index: 2, Kind: "bridge", Enabled: true}, {Index: 3, Kind: kind, Master: 2}, {Index: 4, Kind: "veth", Master: 2}}
		markPlumbing(links, false)
		if links[0].Plumbing != plumbing {
			t.Errorf("with a port of kind %s: %v", kind, links[0].Plumbing)
		}
	}
}

func TestDisks(t *testing.T) {
	var d Disks
	list, err := d.Read(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	at := slices.IndexFunc(list, func(d Disk) bool { return d.Mount == "/" })
	if at < 0 {
		t.Fatalf("no root file system in %+v", list)
	}
	var s unix.Statfs_t
	if err := unix.Statfs("/", &s); err != nil {
		t.Fatal(err)
	}
	if root := list[at]; root.Total != s.Blocks*uint64(s.Bsize) || root.Used > root.Total || root.Available > root.Total || root.Type == "" {
		t.Errorf("%+v", root)
	}
	for _, e := range list {
		if e.Type == "proc" || e.Type == "sysfs" || e.Type == "tmpfs" {
			t.Errorf("%+v holds no data", e)
		}
	}
}

func TestDisksWithHungFileSystem(t *testing.T) {
	questions, answer := make(chan string, 100), make(chan struct{})
	d := &Disks{sizes: func(path string) (Disk, error) {
		if path == "/" {
			questions <- path
			<-answer
		}
		return sizes(path)
	}}
	for range 3 {
		begin := time.Now()
		list, err := d.Read(context.Background())
		if took := time.Since(begin); err != nil || took > 30*time.Second {
			t.Errorf("%v after %s", err, took)
		}
		if slices.ContainsFunc(list, func(d Disk) bool { return d.Mount == "/" }) {
			t.Errorf("an answer without a query: %+v", list)
		}
	}
	if len(questions) != 1 {
		t.Errorf("%d questions are open to one file system", len(questions))
	}
	close(answer)
	begin := time.Now()
	for found := false; !found; {
		list, err := d.Read(context.Background())
		if err != nil || time.Since(begin) > 60*time.Second {
			t.Fatal("it does not come back", err)
		}
		found = slices.ContainsFunc(list, func(d Disk) bool { return d.Mount == "/" })
	}
}

func TestDisksLastAnswerOfHungFileSystem(t *testing.T) {
	answer, hang := make(chan struct{}), false
	d := &Disks{sizes: func(path string) (Disk, error) {
		if path == "/" && hang {
			<-answer
		}
		return sizes(path)
	}}
	first, err := d.Read(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	hang = true // no query is in flight
	second, err := d.Read(context.Background())
	if err != nil || len(second) != len(first) {
		t.Errorf("%+v became %+v, %v", first, second, err)
	}
	d.mu.Lock()
	d.probes["/"].at = time.Now().Add(-2 * diskStale)
	d.mu.Unlock()
	third, err := d.Read(context.Background())
	if err != nil || slices.ContainsFunc(third, func(d Disk) bool { return d.Mount == "/" }) {
		t.Errorf("a stale answer is returned: %+v %v", third, err)
	}
	close(answer)
}

// TestDeadFuseMount mounts a FUSE file system without a server, in the mount namespace of another process.
func TestDeadFuseMount(t *testing.T) {
	const inside = "FACTS_TEST_DEAD_FUSE"
	point := os.Getenv(inside)
	if point == "" {
		if os.Getuid() != 0 {
			t.Skip("needs root for a mount namespace: run the test binary as root")
		}
		if _, err := os.Stat("/dev/fuse"); err != nil {
			t.Skip("needs /dev/fuse: load the fuse module")
		}
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestDeadFuseMount$", "-test.v")
		cmd.Env = append(os.Environ(), inside+"="+t.TempDir())
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	fuse, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("dead", point, "fuse.sshfs", 0, "fd="+strconv.Itoa(fuse)+",rootmode=40000,user_id=0,group_id=0"); err != nil {
		t.Fatal(err)
	}
	mounts, err := dataMounts(context.Background())
	if err != nil || !slices.ContainsFunc(mounts, func(d Disk) bool { return d.Mount == point }) {
		t.Fatalf("the mount is not seen: %+v %v", mounts, err)
	}
	var d Disks
	for range 3 {
		begin := time.Now()
		list, err := d.Read(context.Background())
		if took := time.Since(begin); err != nil || took > 30*time.Second || !slices.ContainsFunc(list, func(d Disk) bool { return d.Mount == "/" }) {
			t.Errorf("%+v %v after %s", list, err, took)
		}
	}
	unix.Close(fuse) // makes pending requests fail
	begin := time.Now()
	for open := true; open; time.Sleep(time.Millisecond) {
		d.mu.Lock()
		open = d.probes[point].inFlight != nil
		d.mu.Unlock()
		if time.Since(begin) > 60*time.Second {
			t.Fatal("the query does not end")
		}
	}
}

// What stands in the place of a file of a tree is read neither for ever nor whole, and a link leads nowhere else.
func TestTreesWithTraps(t *testing.T) {
	root := t.TempDir()
	etc := filepath.Join(root, "etc")
	if err := errors.Join(os.MkdirAll(etc, 0o755), os.MkdirAll(filepath.Join(root, "usr/lib"), 0o755)); err != nil {
		t.Fatal(err)
	}
	files := []string{"os-release", "hostname", "machine-id"}
	check := func(what string, trap func(path string) error) {
		t.Helper()
		for _, name := range files {
			path := filepath.Join(etc, name)
			if err := errors.Join(os.RemoveAll(path), trap(path)); err != nil {
				t.Fatal(err)
			}
		}
		if got := ReadRelease(t.Context(), root); got != (Release{}) || Hostname(root) != "" || MachineID(root) != "" {
			t.Errorf("%s: %+v %.20q %.20q", what, got, Hostname(root), MachineID(root))
		}
	}
	check("a pipe", func(path string) error { return unix.Mkfifo(path, 0o644) })
	check("a directory", func(path string) error { return os.Mkdir(path, 0o755) })
	check("a device", func(path string) error { return os.Symlink("/dev/zero", path) })
	check("a huge file", func(path string) error {
		if err := os.WriteFile(path, []byte("ID=x\n"), 0o644); err != nil {
			return err
		}
		return os.Truncate(path, 1<<40)
	})
	check("a link out of it", func(path string) error { return os.Symlink("../../../../../../../etc/"+filepath.Base(path), path) })
	if err := os.WriteFile(filepath.Join(root, "usr/lib/os-release"), []byte("ID=x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"../usr/lib/os-release", "/usr/lib/os-release"} {
		if err := errors.Join(os.Remove(filepath.Join(etc, "os-release")), os.Symlink(target, filepath.Join(etc, "os-release"))); err != nil {
			t.Fatal(err)
		}
		if got := ReadRelease(t.Context(), root); got.ID != "x" {
			t.Errorf("%s: %+v", target, got)
		}
	}
}
