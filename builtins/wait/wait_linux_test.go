package wait

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/runtime/call"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// hangs is longer than anything here takes.
const hangs = 30 * time.Second

// answer is what became of a request.
type answer struct {
	reply *pb.WaitResponse
	err   error
}

// ask has the executor run a request on a guest whose root is dir; empty: the running machine.
func ask(t *testing.T, dir string, in *pb.WaitRequest) <-chan answer {
	t.Helper()
	return askUntil(t, t.Context(), dir, in)
}

func askUntil(t *testing.T, ctx context.Context, dir string, in *pb.WaitRequest) <-chan answer {
	t.Helper()
	g := &guest.Guest{Dir: dir, Live: dir == ""}
	files, err := fsys.Open(g.Root())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { files.Close() })
	g.Files = files
	table := builtins.NewTable(New(g).Room())
	x := call.New(call.Config{Table: table, Files: files})
	done := make(chan answer, 1)
	go func() {
		out, err := x.Execute(ctx, &builtins.Call{}, table.Native(in), in)
		reply, _ := out.(*pb.WaitResponse)
		done <- answer{reply, err}
	}()
	return done
}

func get(t *testing.T, done <-chan answer) *pb.WaitResponse {
	t.Helper()
	select {
	case a := <-done:
		if a.err != nil {
			t.Fatal(a.err)
		}
		return a.reply
	case <-time.After(hangs):
		t.Fatal("it does not end")
		return nil
	}
}

func getError(t *testing.T, done <-chan answer) error {
	t.Helper()
	select {
	case a := <-done:
		if a.err == nil {
			t.Fatal("no error, but ", a.reply)
		}
		return a.err
	case <-time.After(hangs):
		t.Fatal("it does not end")
		return nil
	}
}

// waits says that a request is not answered yet: it watches by now, and has seen that it does not hold.
func waits(t *testing.T, done <-chan answer) {
	t.Helper()
	select {
	case a := <-done:
		t.Fatal("it does not wait: ", a.reply, a.err)
	case <-time.After(50 * time.Millisecond):
	}
}

func forFile(path string) *pb.WaitRequest {
	return &pb.WaitRequest{Condition: &pb.WaitRequest_File{File: &pb.WaitFile{Path: path}}}
}

func forAddress(network, mac string) *pb.WaitRequest {
	return &pb.WaitRequest{Condition: &pb.WaitRequest_Address{Address: &pb.WaitAddress{Network: network, Mac: mac}}}
}

// However a file comes to be at a path, that is seen: made, renamed, linked, below directories that are made or moved, or where
// a link leads that led nowhere.
func TestFile(t *testing.T) {
	for name, c := range map[string]struct {
		path           string
		before, create func(in func(string) string) error
	}{
		"is there":    {"/etc/there", func(in func(string) string) error { return os.WriteFile(in("etc/there"), nil, 0o600) }, nil},
		"written":     {"/etc/new", nil, func(in func(string) string) error { return os.WriteFile(in("etc/new"), nil, 0o600) }},
		"a directory": {"/etc/new", nil, func(in func(string) string) error { return os.Mkdir(in("etc/new"), 0o700) }},
		"renamed": {"/etc/new", func(in func(string) string) error { return os.WriteFile(in("other"), nil, 0o600) },
			func(in func(string) string) error { return os.Rename(in("other"), in("etc/new")) }},
		"another name": {"/etc/new", func(in func(string) string) error { return os.WriteFile(in("other"), nil, 0o600) },
			func(in func(string) string) error { return os.Link(in("other"), in("etc/new")) }},
		"below new directories": {"/a/b/c", nil, func(in func(string) string) error {
			return errors.Join(os.Mkdir(in("a"), 0o755), os.Mkdir(in("a/b"), 0o755), os.WriteFile(in("a/b/c"), nil, 0o600))
		}},
		"in a directory that is moved there": {"/a/b/c", func(in func(string) string) error {
			return errors.Join(os.MkdirAll(in("x/b"), 0o755), os.WriteFile(in("x/b/c"), nil, 0o600))
		}, func(in func(string) string) error { return os.Rename(in("x"), in("a")) }},
		"in place of a file": {"/f/x", func(in func(string) string) error { return os.WriteFile(in("f"), nil, 0o600) }, func(in func(string) string) error {
			return errors.Join(os.Remove(in("f")), os.Mkdir(in("f"), 0o755), os.WriteFile(in("f/x"), nil, 0o600))
		}},
		"where a link leads": {"/l/x", func(in func(string) string) error { return os.Symlink("/etc/later", in("l")) }, func(in func(string) string) error {
			return errors.Join(os.Mkdir(in("etc/later"), 0o755), os.WriteFile(in("etc/later/x"), nil, 0o600))
		}},
		"a link that leads nowhere first": {"/l", func(in func(string) string) error { return os.Symlink("../etc/./later", in("l")) }, func(in func(string) string) error {
			return os.WriteFile(in("etc/later"), nil, 0o600)
		}},
		"a link that is made": {"/etc/l", nil, func(in func(string) string) error { return os.Symlink("/etc", in("etc/l")) }},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			in := func(path string) string { return filepath.Join(dir, path) }
			if err := os.Mkdir(in("etc"), 0o755); err != nil {
				t.Fatal(err)
			}
			if c.before != nil {
				if err := c.before(in); err != nil {
					t.Fatal(err)
				}
			}
			done := ask(t, dir, forFile(c.path))
			if c.create != nil {
				waits(t, done)
				for i := range 20 { // what else comes does not answer it
					if err := os.WriteFile(in("etc/unrelated-"+string(rune('a'+i))), nil, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				waits(t, done)
				if err := c.create(in); err != nil {
					t.Fatal(err)
				}
			}
			get(t, done)
		})
	}
}

// A file system that is mounted may bring the file.
func TestFileOnMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts a file system: run as root")
	}
	dir, disk := t.TempDir(), t.TempDir()
	point := filepath.Join(dir, "mnt")
	if err := errors.Join(os.Mkdir(point, 0o755), os.WriteFile(filepath.Join(disk, "x"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	done := ask(t, dir, forFile("/mnt/x"))
	waits(t, done)
	if err := unix.Mount(disk, point, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("cannot mount here (run as root of the machine): %v", err)
	}
	defer unix.Unmount(point, unix.MNT_DETACH)
	get(t, done)
}

// Many files that come and go at once are no way to miss the one, and a wait leaves nothing behind.
func TestFileAmongMany(t *testing.T) {
	dir := t.TempDir()
	files := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := 0
	for round := range 100 {
		target := filepath.Join(dir, "d", "x")
		done := ask(t, dir, forFile("/d/x"))
		stop := make(chan struct{})
		busy := make(chan struct{})
		go func() {
			defer close(busy)
			for {
				select {
				case <-stop:
					return
				default:
					os.Mkdir(filepath.Join(dir, "d"), 0o755)
					os.Remove(filepath.Join(dir, "d"))
				}
			}
		}()
		runtime.Gosched()
		close(stop)
		<-busy
		if err := errors.Join(os.MkdirAll(filepath.Dir(target), 0o755), os.WriteFile(target, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		get(t, done)
		if err := os.RemoveAll(filepath.Dir(target)); err != nil {
			t.Fatal(err)
		}
		if round == 10 {
			before = files()
		}
	}
	if after := files(); after > before+100 { // the roots of the rounds are closed at the end
		t.Errorf("%d files are open, %d were", after, before)
	}
}

// A wait ends with its time, and with the host that asked.
func TestWaitEnds(t *testing.T) {
	dir := t.TempDir()
	in := forFile("/never")
	in.TimeoutSeconds = 1
	if err := getError(t, ask(t, dir, in)); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "did not come about within 1s") {
		t.Error(err)
	}
	gone := errors.New("the host has left")
	for name, in := range map[string]*pb.WaitRequest{"file": forFile("/never"), "address": forAddress("203.0.113.77", "")} {
		ctx, cancel := context.WithCancelCause(t.Context())
		done := askUntil(t, ctx, "", in)
		waits(t, done)
		cancel(gone)
		if err := getError(t, done); !errors.Is(err, gone) {
			t.Error(name, err)
		}
	}
}

func TestWaitMakesSense(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("/loop", filepath.Join(dir, "loop")); err != nil {
		t.Fatal(err)
	}
	for words, in := range map[string]*pb.WaitRequest{
		"nothing is named":           {},
		`"relative" is no absolute`:  forFile("relative"),
		`"" is no absolute path`:     forFile(""),
		"is no absolute path":        forFile("/x\x00y"),
		"is no address and no netwo": forAddress("192.0.2.0/33", ""),
		`"fe80::1%eth0" is no addre`: forAddress("fe80::1%eth0", ""),
		"is no hardware address":     forAddress("", "52:54"),
		"no unit is named":           {Condition: &pb.WaitRequest_Unit{}},
	} {
		if err := getError(t, ask(t, dir, in)); !errors.Is(err, fs.ErrInvalid) || !strings.Contains(err.Error(), words) {
			t.Error(words, err)
		}
	}
	if err := getError(t, ask(t, dir, forFile("/loop/x"))); errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	for _, in := range []*pb.WaitRequest{
		{Condition: &pb.WaitRequest_Unit{Unit: &pb.WaitUnit{Name: "x"}}}, {Condition: &pb.WaitRequest_Ready{}},
		forAddress("", ""), forAddress("127.0.0.1", ""), // that the machine has
	} {
		if err := getError(t, ask(t, dir, in)); !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "not booted") {
			t.Error(err)
		}
	}
}

// The feature names what the guest can wait for, and nothing else.
func TestWaitFeature(t *testing.T) {
	if got := New(&guest.Guest{Dir: t.TempDir()}).Room().Features()["wait"]; got != "file" {
		t.Error(got)
	}
	want := "address,ready,unit,file"
	if _, err := os.Stat(booted); err != nil {
		want = "address,file"
	}
	if got := New(&guest.Guest{Live: true}).Room().Features()["wait"]; got != want {
		t.Error(got)
	}
}

// A policy knows what a wait would tell.
func TestWaitAccess(t *testing.T) {
	if a := access(forFile("/etc/x")); !slices.Equal(a.Reads, []string{"/etc/x"}) {
		t.Error(a)
	}
	a := access(&pb.WaitRequest{Condition: &pb.WaitRequest_Unit{Unit: &pb.WaitUnit{Name: "x"}}})
	if len(a.Objects) != 1 || a.Objects[0].String() != "unit:x.service" {
		t.Error(a)
	}
	for _, in := range []*pb.WaitRequest{{}, forAddress("", ""), {Condition: &pb.WaitRequest_File{}}, {Condition: &pb.WaitRequest_Unit{}}} {
		if a := access(in); len(a.Reads)+len(a.Objects) > 0 {
			t.Error(in, a)
		}
	}
}

// Which of the addresses of some links is the wanted one.
func TestWantedAddress(t *testing.T) {
	prefixes := func(list ...string) (out []netip.Prefix) {
		for _, text := range list {
			out = append(out, netip.MustParsePrefix(text))
		}
		return out
	}
	links := []facts.Link{
		{Name: "lo", Up: true, Loopback: true, Prefixes: prefixes("127.0.0.1/8", "198.51.100.1/32")},
		{Name: "down0", MAC: "52:54:00:00:00:01", Prefixes: prefixes("192.0.2.9/24")},
		{Name: "docker0", Up: true, Plumbing: true, Prefixes: prefixes("172.17.0.1/16")},
		{Name: "lan0", Up: true, MAC: "52:54:00:00:00:02", Prefixes: prefixes("fe80::2/64", "169.254.7.7/16", "2001:db8::2/64", "192.0.2.2/24"),
			Tentative: prefixes("2001:db8::2/64")},
		{Name: "lan1", Up: true, MAC: "52:54:00:00:00:03", Prefixes: prefixes("2001:db8:1::3/64")},
	}
	for _, c := range []struct{ network, mac, want string }{
		{"", "", "192.0.2.2/24 lan0"},
		{"", "52:54:00:00:00:03", "2001:db8:1::3/64 lan1"},
		{"", "52-54-00-00-00-02", "192.0.2.2/24 lan0"},
		{"", "52:54:00:00:00:01", ""}, // it is down
		{"", "52:54:00:00:00:09", ""},
		{"192.0.2.0/24", "", "192.0.2.2/24 lan0"},
		{"192.0.2.9", "", ""},
		{"192.0.2.2", "", "192.0.2.2/24 lan0"},
		{"192.0.2.2", "52:54:00:00:00:03", ""},
		{"2001:db8::/64", "", ""}, // it cannot be used yet
		{"fe80::/10", "", "fe80::2/64 lan0"},
		{"169.254.0.0/16", "", "169.254.7.7/16 lan0"},
		{"127.0.0.1", "", "127.0.0.1/8 lo"},
		{"172.17.0.0/16", "", "172.17.0.1/16 docker0"},
		{"::/0", "", "fe80::2/64 lan0"},
		{"0.0.0.0/0", "52:54:00:00:00:02", "169.254.7.7/16 lan0"},
	} {
		w, err := parseWanted(&pb.WaitAddress{Network: c.network, Mac: c.mac})
		if err != nil {
			t.Error(c, err)
		}
		found := w.in(links)
		if got := strings.TrimSpace(found.GetAddress() + " " + found.GetInterface()); got != c.want {
			t.Errorf("%+v: %q", c, got)
		}
	}
}

// An address is seen when it comes, once it can be used; that of another link, or of one that is down, is not it.
func TestAddress(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for a network namespace: run the test binary as root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs ip of iproute2")
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // the thread ends with its namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("no network namespace: %v", err)
			return
		}
		addressIn(t)
	}()
	<-ended
}

// addressIn is TestAddress in a network namespace of its own thread: each wait runs on that thread, and what happens meanwhile
// is made by a process that was started before.
func addressIn(t *testing.T) {
	r := New(&guest.Guest{Live: true})
	wait := func(in *pb.WaitAddress, script string) (*pb.WaitResponse, error) {
		cmd := exec.Command("/bin/sh", "-ec", script)
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		defer cmd.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), hangs)
		defer cancel()
		return r.address(ctx, in)
	}
	for _, c := range []struct {
		in           *pb.WaitAddress
		script, want string
	}{
		{&pb.WaitAddress{}, "ip link set lo up; ip link add lan0 type ifb; ip addr add 192.0.2.8/24 dev lan0; sleep 0.1; ip link set lan0 up", "192.0.2.8/24"},
		{&pb.WaitAddress{Network: "192.0.2.9"}, "sleep 0.1; ip addr add 192.0.2.10/24 dev lan0; sleep 0.1; ip addr add 192.0.2.9/24 dev lan0", "192.0.2.9/24"},
		{&pb.WaitAddress{Mac: "02:00:00:00:00:07"}, "ip link add lan1 address 02:00:00:00:00:07 type ifb; ip link set lan1 up; sleep 0.1; ip addr add 198.51.100.7/24 dev lan1", "198.51.100.7/24"},
		{&pb.WaitAddress{Network: "2001:db8::/64"}, "ip link add v0 type veth peer name v1; ip link set v1 up; ip link set v0 up; ip addr add 2001:db8::9/64 dev v0", "2001:db8::9/64"},
		{&pb.WaitAddress{Network: "192.0.2.0/24"}, "true", "192.0.2.8/24"}, // at once
	} {
		found, err := wait(c.in, c.script)
		if err != nil || found.Address != c.want {
			t.Errorf("%v: %v, %v", c.in, found, err)
			continue
		}
		links, err := facts.Links()
		if err != nil {
			t.Error(err)
		}
		for _, l := range links {
			for _, p := range l.Prefixes {
				if p.String() == c.want && (!l.Up || slices.Contains(l.Tentative, p)) {
					t.Errorf("%v cannot be used: %+v", c.want, l)
				}
			}
		}
	}
}
