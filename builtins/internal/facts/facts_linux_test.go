package facts

import (
	"context"
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

	"github.com/shirou/gopsutil/v3/disk"
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
	d := &Disks{usage: func(path string) (*disk.UsageStat, error) {
		if path == "/" {
			questions <- path
			<-answer
		}
		return disk.Usage(path)
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
	d := &Disks{usage: func(path string) (*disk.UsageStat, error) {
		if path == "/" && hang {
			<-answer
		}
		return disk.Usage(path)
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
