package journal

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Numbers of the kernel's include/uapi/linux/auto_fs.h.
const (
	autofsReady = 0x9360
	autofsFail  = 0x9361
)

// automountEnv has a process of this test serve an automount: "POINT:DISK:WHAT". It says when it serves.
const automountEnv = "QUANTIX_AUTOMOUNT"

// serveAutomount mounts DISK on POINT at the first use, as WHAT says: "mount", "fail", or "hang".
func serveAutomount(setting string) error {
	parts := strings.Split(setting, ":")
	point, disk, what := parts[0], parts[1], parts[2]
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	options := fmt.Sprintf("fd=%d,pgrp=%d,minproto=5,maxproto=5,direct", pipe[1], unix.Getpgrp())
	if err := unix.Mount("test", point, "autofs", 0, options); err != nil {
		return err
	}
	root, err := unix.Open(point, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	fmt.Println("serving")
	var waits atomic.Int64 // the token of a request that hangs
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1))
		if token := waits.Load(); token != 0 { // else who asked would wait on, and an unmount after it
			_ = unix.IoctlSetInt(root, autofsFail, int(token))
		}
		os.Exit(0)
	}()
	packet := make([]byte, 304) // autofs_v5_packet
	for {
		n, err := unix.Read(pipe[0], packet)
		if err != nil || n < len(packet)-4 {
			return errors.Join(err, fmt.Errorf("%d bytes", n))
		}
		token, answer := int(binary.NativeEndian.Uint32(packet[8:])), uint(autofsReady)
		switch what {
		case "mount":
			err = unix.Mount(disk, point, "", unix.MS_BIND, "")
		case "fail":
			answer = autofsFail
		default:
			waits.Store(int64(token))
			continue
		}
		if err = errors.Join(err, unix.IoctlSetInt(root, answer, token)); err != nil {
			return err
		}
	}
}

// TestServeAutomount is the process of the others.
func TestServeAutomount(t *testing.T) {
	setting := os.Getenv(automountEnv)
	if setting == "" {
		t.Skip("is run by the tests of automounts")
	}
	t.Fatal(serveAutomount(setting))
}

// automount has what is on the guest's mount point mounted at its first use.
func (m *mountedGuest) automount(t *testing.T, what string) (stop func()) {
	t.Helper()
	c := exec.Command("/proc/self/exe", "-test.run=^TestServeAutomount$")
	c.Env = append(os.Environ(), fmt.Sprintf("%s=%s:%s:%s", automountEnv, m.point, m.disk, what))
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // its own group alone sees the directory below
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	in, inErr := c.StdinPipe()
	mustDo(t, errors.Join(err, inErr, c.Start()))
	stop = func() {
		_ = in.Close()
		_ = c.Wait()
		for unix.Unmount(m.point, unix.MNT_DETACH) == nil {
		}
	}
	t.Cleanup(stop)
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "serving\n" {
		t.Skipf("no autofs here: %s", line)
	}
	return stop
}

// A file system that is mounted at its first use is mounted for the recovery.
func TestRecoveryTriggersAutomount(t *testing.T) {
	m := newMountedGuest(t)
	before := mustDescribeTree(t, m.disk)
	abandonTx(t, m.testDirs, nil, func(g *guest, tx *Tx) {
		for _, c := range callsAt("/srv") {
			g.mustCall(t, tx, c.op, c.in)
		}
	})
	m.unmount(t)
	m.automount(t, "mount")
	g := newGuest(t, m.testDirs, nil)
	// At early boot what mounts it may wait for the recovery.
	list, err := g.journal.Recover(t.Context(), func(string) bool { return false })
	if err != nil || len(list) != 1 || !strings.HasPrefix(list[0].Report.Waiting, "/srv (") {
		t.Fatalf("%+v, %v", list, err)
	}
	list, err = g.journal.Recover(t.Context(), nil)
	if err != nil || len(list) != 1 || list[0].Entry.GetReply().GetStatus() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		t.Fatalf("%+v, %v", list, err)
	}
	checkTree(t, before, m.disk)
}

// Where that fails or does not end the recovery waits, as for any mount, and not for ever in one call.
func TestRecoveryWaitsForAutomount(t *testing.T) {
	for what, expected := range map[string]struct {
		why  string
		wait time.Duration
	}{"fail": {"no such file", time.Minute}, "hang": {"does not end within", 100 * time.Millisecond}} {
		t.Run(what, func(t *testing.T) {
			m := newMountedGuest(t)
			before := mustDescribeTree(t, m.disk)
			abandonTx(t, m.testDirs, nil, func(g *guest, tx *Tx) {
				for _, c := range callsAt("/srv") {
					g.mustCall(t, tx, c.op, c.in)
				}
			})
			after := mustDescribeTree(t, m.disk)
			m.unmount(t)
			stop := m.automount(t, what)
			g := newGuest(t, m.testDirs, func(c *Config) { c.AutomountWait = expected.wait })
			for range maxAttempts + 1 {
				list, err := g.journal.Recover(t.Context(), nil)
				if err != nil || len(list) != 1 || !strings.HasPrefix(list[0].Report.Waiting, "/srv (") ||
					!strings.Contains(list[0].Report.Waiting, expected.why) {
					t.Fatalf("%+v, %v", list, err)
				}
			}
			checkTree(t, after, m.disk)
			stop()
			m.mount(t, m.disk)
			list, err := g.journal.Recover(t.Context(), nil)
			if err != nil || len(list) != 1 || list[0].Entry.GetReply().GetStatus() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
				t.Fatalf("%+v, %v", list, err)
			}
			checkTree(t, before, m.disk)
		})
	}
}

// What was changed before an automount was set up at that place is not restored into what it mounts.
func TestRecoveryBelowNewAutomount(t *testing.T) {
	m := newMountedGuest(t)
	m.unmount(t)
	abandonTx(t, m.testDirs, nil, func(g *guest, tx *Tx) {
		g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/srv/deep/new", Content: []byte("x"), Parents: true})
	})
	stop := m.automount(t, "hang")
	g := newGuest(t, m.testDirs, nil)
	list, err := g.journal.Recover(t.Context(), nil)
	if err != nil || len(list) != 1 || !strings.Contains(list[0].Report.Waiting, "which /srv (autofs") {
		t.Fatalf("%+v, %v", list, err)
	}
	stop()
	if _, err := g.journal.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(m.point, "deep")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// Who gives up what an automount does not mount does not wait for it, step by step.
func TestAbandonDoesNotTriggerAutomount(t *testing.T) {
	m := newMountedGuest(t)
	abandonTx(t, m.testDirs, nil, func(g *guest, tx *Tx) {
		for _, c := range callsAt("/srv") {
			g.mustCall(t, tx, c.op, c.in)
		}
	})
	m.unmount(t)
	defer m.automount(t, "hang")()
	g := newGuest(t, m.testDirs, func(c *Config) { c.AutomountWait = time.Millisecond })
	list, err := g.journal.Recover(t.Context(), nil)
	if err != nil || len(list) != 1 || list[0].Report.Waiting == "" {
		t.Fatalf("%+v, %v", list, err)
	}
	g.journal.config.AutomountWait = time.Hour
	mustDo(t, g.journal.Abandon(t.Context(), list[0].ID, func(string) bool { return true }))
}
