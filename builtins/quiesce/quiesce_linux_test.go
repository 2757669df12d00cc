package quiesce

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/freeze"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// These tests freeze file systems of their own, on loop devices, and need root for that. No test freezes without naming them:
// that would be those of the machine it runs on. The whole guest is frozen in the tests of cmd/internal/rig/vmtest.

// They run in namespaces of their own: an agent elsewhere on this machine, such as one of another test, that sees a frozen file
// system while it runs a command takes that for the command's work, and thaws it in time.

func TestMain(m *testing.M) {
	if code, ran := inOwnNamespaces(); ran {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// inOwnNamespaces runs this program once more, where its mounts are not seen by others. ran is false where it is that program
// already, or that cannot be done.
func inOwnNamespaces() (code int, ran bool) {
	const mark = "QUANTIX_TEST_OWN_NAMESPACES"
	unshare := []string{"--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private"}
	self, err := os.Executable()
	if err != nil || os.Geteuid() != 0 || os.Getenv(mark) != "" || exec.Command("unshare", append(unshare, "true")...).Run() != nil {
		return 0, false
	}
	cmd := exec.Command("unshare", slices.Concat(unshare, []string{self}, os.Args[1:])...)
	cmd.Env = append(os.Environ(), mark+"=1")
	if s := (unix.Statfs_t{}); unix.Statfs("/dev/shm", &s) == nil && s.Type == unix.TMPFS_MAGIC {
		cmd.Env = append(cmd.Env, "TMPDIR=/dev/shm") // a thaw ends with a sync of the image, which other tests would delay
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return max(cmd.ProcessState.ExitCode(), 1), true
	}
	return 0, true
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func newRoom(t *testing.T, config Config) *Room {
	t.Helper()
	needRoot(t)
	if config.Frozen == nil {
		config.Frozen = freeze.New(freeze.Config{})
	}
	config.Machine = true
	runner := proc.New(proc.Config{Name: fmt.Sprintf("quiesce%d%x", os.Getpid(), time.Now().UnixNano()), Cgroup: "none", JobCgroup: "none"})
	r := New(&guest.Guest{Live: true, Runner: runner}, config)
	t.Cleanup(func() {
		if err := errors.Join(r.release(), runner.Release()); err != nil {
			t.Error(err)
		}
	})
	return r
}

// run runs a command, or skips the test where the machine does not have what it needs.
func run(t *testing.T, argv ...string) {
	t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Skipf("needs loop devices and %s: %v: %s", argv[0], err, out)
	}
}

// mountIn makes a file system in a file below a directory, and mounts it at another place.
func mountIn(t *testing.T, dir, point, kind string, size int, options ...string) {
	t.Helper()
	needRoot(t)
	image := filepath.Join(dir, "image."+filepath.Base(point))
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, int64(size)<<20), os.MkdirAll(point, 0o755)); err != nil {
		t.Fatal(err)
	}
	run(t, append([]string{"mkfs." + kind}, append(options, image)...)...)
	run(t, "mount", "-o", "loop", image, point)
	t.Cleanup(func() { unmount(t, point) })
}

func unmount(t *testing.T, point string) {
	t.Helper()
	if target, err := freeze.Open(point); err == nil {
		if was, _ := target.Thaw(); was {
			t.Errorf("%s was still frozen", point)
		}
		target.Close()
	}
	var out []byte
	var err error
	for range 50 { // a process that is just being started has what this one has open
		if out, err = exec.Command("umount", point).CombinedOutput(); err == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("%v: %s", err, out)
	_ = unix.Unmount(point, unix.MNT_DETACH)
}

// disk mounts an ext4 of its own.
func disk(t *testing.T, name string) string {
	t.Helper()
	dir := t.TempDir()
	point := filepath.Join(dir, name)
	mountIn(t, dir, point, "ext4", 32, "-q")
	return point
}

// canWrite reports whether a file can be made. The attempt is a process, which hangs in the kernel until the thaw where it cannot.
func canWrite(t *testing.T, point string) bool {
	t.Helper()
	cmd := exec.Command("touch", filepath.Join(point, "written"))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for hangs := 0; hangs < 30; time.Sleep(10 * time.Millisecond) {
		select {
		case err := <-done:
			return err == nil
		default:
		}
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
		if bytes.Contains(stat, []byte(") D ")) {
			hangs++
		} else {
			hangs = 0
		}
	}
	t.Cleanup(func() { <-done })
	return false
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it never came: ", what)
		}
	}
}

func mustFreeze(t *testing.T, r *Room, in *pb.QuiesceFilesystemsRequest) *pb.QuiesceFilesystemsResponse {
	t.Helper()
	out, err := r.quiesce(t.Context(), &builtins.Call{}, in)
	if err != nil || !out.Success {
		t.Fatalf("%v: %v, %v", in, out, err)
	}
	return out
}

func mustThaw(t *testing.T, r *Room, in *pb.ThawFilesystemsRequest) *pb.ThawFilesystemsResponse {
	t.Helper()
	out, err := r.thaw(t.Context(), &builtins.Call{}, in)
	if err != nil || !out.Success {
		t.Fatalf("%v: %v, %v", in, out, err)
	}
	return out
}

func TestFreezeAndThaw(t *testing.T) {
	r := newRoom(t, Config{})
	a, b := disk(t, "a"), disk(t, "with space")
	out := mustFreeze(t, r, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a + "/", b}})
	if len(out.Frozen) != 2 || out.Frozen[0].MountPoint != a || out.Frozen[1].MountPoint != b || out.QuiesceToken == "" {
		t.Error(out)
	}
	if left := time.Until(out.AutoThawAt.AsTime()); left > defaultTimeout || left < defaultTimeout-20*time.Second {
		t.Errorf("it thaws by itself in %v", left)
	}
	if canWrite(t, a) || canWrite(t, b) {
		t.Error("it is not frozen")
	}
	if s := r.Status(); len(s) != 1 || len(s[0].MountPoints) != 2 {
		t.Error(s)
	}
	again, err := r.quiesce(t.Context(), &builtins.Call{}, &pb.QuiesceFilesystemsRequest{MountPoints: []string{b}})
	if !errors.Is(err, fault.ErrBusy) {
		t.Error(again, err)
	}
	time.Sleep(300 * time.Millisecond)
	done := mustThaw(t, r, &pb.ThawFilesystemsRequest{QuiesceToken: out.QuiesceToken})
	if len(done.ThawedMountPoints) != 2 || done.FrozenDurationMs < 300 || done.ThawedEarly {
		t.Error(done)
	}
	if !canWrite(t, a) || !canWrite(t, b) || len(r.Status()) != 0 {
		t.Error("it is still frozen")
	}
	if done, err := r.thaw(t.Context(), &builtins.Call{}, &pb.ThawFilesystemsRequest{}); !errors.Is(err, fs.ErrNotExist) {
		t.Error("nothing is frozen, and the reply is", done, err)
	}
}

// What lies on another is frozen first, whatever the order of the request and of the mounts, also under load.
func TestOrderOfStackedDisks(t *testing.T) {
	r := newRoom(t, Config{})
	outer := disk(t, "outer")
	inner := filepath.Join(t.TempDir(), "inner")
	mountIn(t, outer, inner, "ext4", 16, "-q")
	stop := make(chan struct{})
	var load sync.WaitGroup
	load.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
				_ = os.WriteFile(filepath.Join(inner, fmt.Sprint(n%50)), make([]byte, 10000), 0o600)
			}
		}
	})
	defer load.Wait()
	defer close(stop)
	for _, points := range [][]string{{outer, inner}, {inner, outer}} {
		out := mustFreeze(t, r, &pb.QuiesceFilesystemsRequest{MountPoints: points})
		if out.Frozen[0].MountPoint != inner || out.Frozen[1].MountPoint != outer {
			t.Error(out)
		}
		mustThaw(t, r, &pb.ThawFilesystemsRequest{QuiesceToken: out.QuiesceToken})
	}
}

// A device that device mapper makes of a loop device lies on the file of that, too.
func TestOrderThroughDeviceMapper(t *testing.T) {
	r := newRoom(t, Config{})
	outer := disk(t, "outer")
	image := filepath.Join(outer, "image")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 16<<20)); err != nil {
		t.Fatal(err)
	}
	loop, err := exec.Command("losetup", "-f", "--show", image).Output()
	if err != nil {
		t.Skip("needs loop devices")
	}
	device := strings.TrimSpace(string(loop))
	t.Cleanup(func() { run(t, "losetup", "-d", device) })
	name := fmt.Sprintf("quiesce-test-%d", os.Getpid())
	run(t, "dmsetup", "create", name, "--table", fmt.Sprintf("0 %d linear %s 0", 16<<11, device))
	t.Cleanup(func() { run(t, "dmsetup", "remove", "--retry", name) })
	run(t, "mkfs.ext4", "-q", "/dev/mapper/"+name)
	inner := t.TempDir()
	run(t, "mount", "/dev/mapper/"+name, inner)
	t.Cleanup(func() { unmount(t, inner) })
	out := mustFreeze(t, r, &pb.QuiesceFilesystemsRequest{MountPoints: []string{outer, inner}})
	if out.Frozen[0].MountPoint != inner {
		t.Error(out)
	}
	mustThaw(t, r, &pb.ThawFilesystemsRequest{})
}

// A file system with a swap device in a file of it is not frozen: the kernel may need to write to that.
func TestSwapOnALoopDevice(t *testing.T) {
	r := newRoom(t, Config{})
	a := disk(t, "a")
	image := filepath.Join(a, "swap")
	if err := os.WriteFile(image, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	loop, err := exec.Command("losetup", "-f", "--show", image).Output()
	if err != nil {
		t.Skip("needs loop devices")
	}
	device := strings.TrimSpace(string(loop))
	t.Cleanup(func() { run(t, "losetup", "-d", device) })
	run(t, "mkswap", device)
	run(t, "swapon", device)
	defer run(t, "swapoff", device)
	if out, err := r.quiesce(t.Context(), &builtins.Call{}, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a}}); !errors.Is(err, fault.ErrRefused) || !strings.Contains(err.Error(), device) {
		t.Error(out, err)
	}
	if !canWrite(t, a) {
		t.Error("it is frozen")
	}
}

// One file system that is mounted at several places is frozen once.
func TestBindMount(t *testing.T) {
	r := newRoom(t, Config{})
	a := disk(t, "a")
	other := t.TempDir()
	run(t, "mount", "--bind", a, other)
	defer run(t, "umount", other)
	run(t, "mount", "-o", "remount,bind,ro", other)
	out := mustFreeze(t, r, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a, other}})
	if len(out.Frozen) != 1 || !slices.Equal(out.Frozen[0].OtherMountPoints, []string{other}) {
		t.Error(out)
	}
	done := mustThaw(t, r, &pb.ThawFilesystemsRequest{MountPoints: []string{other}})
	if !slices.Equal(done.ThawedMountPoints, []string{a}) || !canWrite(t, a) {
		t.Error(done)
	}
}

// Types other than ext4 are frozen, or told by name and why.
func TestTypes(t *testing.T) {
	r := newRoom(t, Config{})
	for kind, options := range map[string][]string{"ext2": {"-q"}, "ext3": {"-q"}, "xfs": {"-q"}, "btrfs": {"-q"}} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			point := filepath.Join(dir, "m")
			mountIn(t, dir, point, kind, 320, options...)
			out := mustFreeze(t, r, &pb.QuiesceFilesystemsRequest{MountPoints: []string{point}})
			if out.Frozen[0].Filesystem != kind || canWrite(t, point) {
				t.Error(out)
			}
			mustThaw(t, r, &pb.ThawFilesystemsRequest{QuiesceToken: out.QuiesceToken})
		})
	}
	memory := t.TempDir()
	run(t, "mount", "-t", "tmpfs", "none", memory)
	defer run(t, "umount", memory)
	a := disk(t, "a")
	out, err := r.quiesce(t.Context(), &builtins.Call{}, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a, memory}})
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "tmpfs cannot be frozen") || !canWrite(t, a) {
		t.Error(out, err)
	}
	reply := failedReply(err).(*pb.QuiesceFilesystemsResponse)
	if reply.Success || reply.QuiesceToken != "" || reply.Error == "" || len(reply.Frozen) != 1 || reply.Frozen[0].Error == "" {
		t.Error(reply)
	}
	for point, why := range map[string]error{t.TempDir(): fs.ErrNotExist, "relative": fs.ErrNotExist} {
		if out, err := r.quiesce(t.Context(), &builtins.Call{}, &pb.QuiesceFilesystemsRequest{MountPoints: []string{point}}); !errors.Is(err, why) {
			t.Error(point, out, err)
		}
	}
}

// A subvolume of btrfs has no device number of its own, and is the file system that it is of.
func TestBtrfsSubvolumes(t *testing.T) {
	r := newRoom(t, Config{})
	dir := t.TempDir()
	point := filepath.Join(dir, "m")
	mountIn(t, dir, point, "btrfs", 320, "-q")
	run(t, "btrfs", "subvolume", "create", filepath.Join(point, "sub"))
	other := t.TempDir()
	run(t, "mount", "-o", "subvol=sub", mountSource(t, point), other)
	defer unmount(t, other)
	out := mustFreeze(t, r, &pb.QuiesceFilesystemsRequest{MountPoints: []string{point, other}})
	if len(out.Frozen) != 1 || canWrite(t, other) {
		t.Error(out)
	}
	state := r.config.Frozen
	if err := state.Check(builtins.Access{Writes: []string{filepath.Join(other, "new")}}); !errors.Is(err, fault.ErrBusy) {
		t.Error(err)
	}
	mustThaw(t, r, &pb.ThawFilesystemsRequest{QuiesceToken: out.QuiesceToken})
}

func mountSource(t *testing.T, point string) string {
	t.Helper()
	mounts, _, err := freeze.Mounts()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(mounts, func(m freeze.Mount) bool { return m.Point == point })
	if i < 0 {
		t.Fatal("nothing is mounted at ", point)
	}
	return mounts[i].Source
}

// One freeze after the other, under load. QUANTIX_ROUNDS says how many.
func TestManyFreezes(t *testing.T) {
	rounds := 20
	if n, err := strconv.Atoi(os.Getenv("QUANTIX_ROUNDS")); err == nil {
		rounds = n
	}
	r := newRoom(t, Config{})
	a := disk(t, "a")
	stop := make(chan struct{})
	var load sync.WaitGroup
	for worker := range 4 {
		load.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
					_ = os.WriteFile(filepath.Join(a, fmt.Sprint(worker, "-", n%20)), make([]byte, 20000), 0o600)
				}
			}
		})
	}
	defer load.Wait()
	defer close(stop)
	var freezes, thaws []time.Duration
	for range rounds {
		begun := time.Now()
		token := mustFreeze(t, r, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a}}).QuiesceToken
		frozen := time.Now()
		mustThaw(t, r, &pb.ThawFilesystemsRequest{QuiesceToken: token})
		freezes, thaws = append(freezes, frozen.Sub(begun)), append(thaws, time.Since(frozen))
	}
	slices.Sort(freezes)
	slices.Sort(thaws)
	t.Logf("%d rounds: a freeze takes %v, at most %v; a thaw %v, at most %v",
		rounds, freezes[rounds/2], freezes[rounds-1], thaws[rounds/2], thaws[rounds-1])
	if got := r.Status(); len(got) != 0 || len(r.Notices()) != 0 {
		t.Error(got, r.Notices())
	}
}

// Where it is not the machine's own agent nothing is frozen, and nothing announced.
func TestWhereNothingIsFrozen(t *testing.T) {
	state := freeze.New(freeze.Config{})
	for name, r := range map[string]*Room{
		"a tree":         New(&guest.Guest{}, Config{Machine: true, Frozen: state}),
		"a second agent": New(&guest.Guest{Live: true}, Config{Frozen: state}),
	} {
		if _, err := r.quiesce(t.Context(), &builtins.Call{}, &pb.QuiesceFilesystemsRequest{}); !errors.Is(err, errors.ErrUnsupported) || !strings.HasPrefix(err.Error(), "not supported: ") {
			t.Error(name, err)
		}
		if _, err := r.thaw(t.Context(), &builtins.Call{}, &pb.ThawFilesystemsRequest{}); !errors.Is(err, errors.ErrUnsupported) {
			t.Error(name, err)
		}
		if _, err := r.trim(t.Context(), &builtins.Call{}, &pb.TrimRequest{}); !errors.Is(err, errors.ErrUnsupported) {
			t.Error(name, err)
		}
		for _, op := range r.Room().Ops {
			if op.Capability != "" {
				t.Error(name, "announces", op.Name)
			}
		}
	}
	r := newRoom(t, Config{})
	if _, err := r.quiesce(t.Context(), &builtins.Call{}, &pb.QuiesceFilesystemsRequest{TimeoutSeconds: 601}); !errors.Is(err, fs.ErrInvalid) {
		t.Error(err)
	}
}

// The agent's memory is to be locked where its own program is on what is frozen, or may be, and only there.
func TestFileSystemOfTheProgram(t *testing.T) {
	told := make(chan bool, 10)
	r := newRoom(t, Config{Frozen: freeze.New(freeze.Config{ProgramFrozen: func(frozen bool) { told <- frozen }})})
	a := disk(t, "a")
	mustFreeze(t, r, &pb.QuiesceFilesystemsRequest{MountPoints: []string{a}})
	mustThaw(t, r, &pb.ThawFilesystemsRequest{})
	if len(told) > 0 {
		t.Error("it is told of another file system")
	}
	inner := filepath.Join(t.TempDir(), "inner")
	mountIn(t, a, inner, "ext4", 16, "-q")
	mounts, _, err := freeze.Mounts()
	if err != nil {
		t.Fatal(err)
	}
	found, err := r.look(t.Context(), []string{a, inner}, true)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(found.systems)
	for program, want := range map[string][2]bool{ // of inner, and of what it lies on
		inner: {true, true}, a: {false, true}, "/proc": {false, false}, "/nonexistent": {true, true},
	} {
		stack{mounts, "/sys"}.markProgram(found.systems, program)
		if got := [2]bool{found.systems[0].Program, found.systems[1].Program}; got != want {
			t.Errorf("a program on %s: %v, want %v", program, got, want)
		}
	}
	state := r.config.Frozen
	if _, err := state.Hold(freeze.Hold{Token: "x", Systems: []freeze.System{{Device: "0:0", Program: true}}}); err != nil {
		t.Fatal(err)
	}
	state.Release("x")
	if len(told) != 2 || !<-told || <-told {
		t.Error("a freeze of the program's own file system is not told")
	}
}
