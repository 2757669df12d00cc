//go:build blocktest

package blocktest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fileSystem is a file system under test.
type fileSystem struct {
	name    string
	kind    string
	size    int64
	mkfs    []string
	options string // of each mount
}

// fileSystems are small, since each of their states is built in memory. mkfs and mount discard nothing, which is faster.
var fileSystems = []fileSystem{
	{"ext4", "ext4", 64 << 20, []string{"mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"}, "nodiscard"},
	{"ext4 writeback", "ext4", 64 << 20, []string{"mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"}, "nodiscard,data=writeback,noauto_da_alloc"},
	{"xfs", "xfs", 320 << 20, []string{"mkfs.xfs", "-q", "-f", "-K"}, "nodiscard,nouuid"},
	{"btrfs", "btrfs", 160 << 20, []string{"mkfs.btrfs", "-q", "-f", "-K"}, "nodiscard"},
}

// debianPackages are the Debian packages of the programs that are needed.
var debianPackages = map[string]string{
	"qemu-storage-daemon": "qemu-system-common", "fusermount3": "fuse3", "mkfs.ext4": "e2fsprogs", "mkfs.xfs": "xfsprogs", "mkfs.btrfs": "btrfs-progs",
}

// installTools installs the missing packages, and returns why the tests must be skipped; "" if they need not.
var installTools = sync.OnceValue(func() (why string) {
	if os.Geteuid() != 0 {
		return "mounts file systems: run as root"
	}
	for _, device := range []string{"/dev/fuse", "/dev/loop-control"} {
		if _, err := os.Stat(device); err != nil {
			return fmt.Sprintf("%v: run where FUSE and loop devices are allowed (modprobe fuse loop)", err)
		}
	}
	var missing []string
	for program, pkg := range debianPackages {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, pkg)
		}
	}
	if len(missing) == 0 {
		return ""
	}
	install := "apt-get install -y --no-install-recommends " + strings.Join(missing, " ")
	out, err := exec.Command("sh", "-c", "apt-get update -q; DEBIAN_FRONTEND=noninteractive "+install).CombinedOutput()
	if err != nil {
		return fmt.Sprintf("%s: %v; do it by hand\n%s", install, err, out)
	}
	return ""
})

func requireTools(t *testing.T) {
	t.Helper()
	if why := installTools(); why != "" {
		t.Skip(why)
	}
}

// requireKernelSupport skips the test if the kernel does not support the file system.
func (s fileSystem) requireKernelSupport(t *testing.T) {
	t.Helper()
	_ = exec.Command("modprobe", "-q", s.kind).Run() // it may be built in
	known, err := os.ReadFile("/proc/filesystems")
	if err != nil || !bytes.Contains(known, []byte("\t"+s.kind+"\n")) {
		t.Skipf("this kernel has no %s: run with one that has", s.kind)
	}
}

// memoryDir returns a directory in memory, since the states are many.
func memoryDir(t *testing.T) string {
	t.Helper()
	base := "/dev/shm"
	if _, err := os.Stat(base); err != nil {
		base = ""
	}
	dir, err := os.MkdirTemp(base, "quantix-blocktest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// mount mounts an image by a loop device, which is detached by the unmount.
func (s fileSystem) mount(image, at string) (unmount func() error, err error) {
	device, err := attachLoop(image)
	if err != nil {
		return nil, err
	}
	defer device.Close()
	if err := unix.Mount(device.Name(), at, s.kind, unix.MS_NOATIME, s.options); err != nil {
		return nil, fmt.Errorf("mount %s: %w", s.name, err)
	}
	return sync.OnceValue(func() error { return unmountWhenFree(at) }), nil
}

// attachLoop attaches an image to a free device, which detaches itself at its last close.
func attachLoop(image string) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	file, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	for range 100 { // others look for free ones, too
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("a free loop device: %w", err)
		}
		device, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		config := &unix.LoopConfig{Fd: uint32(file.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
		err = unix.IoctlLoopConfigure(int(device.Fd()), config)
		if err == nil {
			return device, nil
		}
		_ = device.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("loop device %d: %w", n, err)
		}
	}
	return nil, errors.New("all loop devices are busy")
}

// unmountWhenFree unmounts, and waits while other processes use the mount, such as monitors.
func unmountWhenFree(at string) error {
	deadline := time.Now().Add(2 * time.Minute)
	for {
		err := unix.Unmount(at, 0)
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		if time.Now().After(deadline) {
			return errors.Join(err, unix.Unmount(at, unix.MNT_DETACH))
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// loggedDevice is an image whose writes are logged.
type loggedDevice struct {
	device string // a file that is the device
	log    string
	daemon *exec.Cmd
	output *bytes.Buffer
}

// startLogging exports an image as a device whose writes are logged. The caller unmounts the device before stop.
func startLogging(t *testing.T, dir, image string) *loggedDevice {
	t.Helper()
	l := &loggedDevice{device: filepath.Join(dir, "device"), log: filepath.Join(dir, "log"), output: &bytes.Buffer{}}
	for _, path := range []string{l.device, l.log} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l.daemon = exec.Command("qemu-storage-daemon",
		"--blockdev", "driver=file,node-name=image,filename="+image,
		"--blockdev", "driver=file,node-name=log,filename="+l.log,
		"--blockdev", "driver=blklogwrites,node-name=both,file=image,log=log,log-super-update-interval=1",
		"--export", "type=fuse,id=export,node-name=both,writable=on,mountpoint="+l.device)
	l.daemon.Stdout, l.daemon.Stderr = l.output, l.output
	l.daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if err := l.daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.stop(t) })
	deadline := time.Now().Add(2 * time.Minute)
	for {
		var st unix.Statfs_t
		if err := unix.Statfs(l.device, &st); err == nil && st.Type == unix.FUSE_SUPER_MAGIC {
			return l
		}
		if err := l.daemon.Process.Signal(syscall.Signal(0)); err != nil || time.Now().After(deadline) {
			t.Fatalf("qemu-storage-daemon exports nothing (it must be built with FUSE): %v", err)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// stop ends the daemon; a second time it does nothing. What was recorded is in the log already: a daemon that does not end, as
// QEMU's now and then, is killed.
func (l *loggedDevice) stop(t *testing.T) {
	t.Helper()
	if l.daemon == nil {
		return
	}
	ended := make(chan error, 1)
	go func() { ended <- l.daemon.Wait() }()
	_ = l.daemon.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("qemu-storage-daemon: %v\n%s", err, l.output)
		}
	case <-time.After(30 * time.Second):
		t.Logf("qemu-storage-daemon does not end, and is killed: %v\n%s", errors.Join(l.daemon.Process.Kill(), <-ended), l.output)
	}
	l.daemon = nil
	_ = unix.Unmount(l.device, unix.MNT_DETACH) // left if the daemon was killed
}

// countEntries returns how many entries the log at path holds now.
func countEntries(path string) (int, error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	head := make([]byte, superSize)
	if _, err := file.ReadAt(head, 0); err != nil {
		return 0, err
	}
	s, err := parseSuper(head)
	return int(s.entries), err
}
