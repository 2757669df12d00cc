package confine

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain makes this program one that applies a single layer to itself and then does what the layer forbids.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "attempt" {
		fmt.Println(attempts[os.Args[2]]())
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// attempts apply one layer each, do what it forbids, and return the error of that.
var attempts = map[string]func() error{
	"landlock file": func() error {
		if err := errors.Join(noNewPrivileges(), applyLandlock()); err != nil {
			return err
		}
		_, err := os.Open("/etc/passwd")
		return err
	},
	"landlock exec": func() error {
		if err := errors.Join(noNewPrivileges(), applyLandlock()); err != nil {
			return err
		}
		return syscall.Exec("/bin/true", []string{"true"}, nil)
	},
	"landlock tcp": func() error {
		if err := errors.Join(noNewPrivileges(), applyLandlock()); err != nil {
			return err
		}
		_, err := net.Dial("tcp", "127.0.0.1:1")
		return err
	},
	"limits": func() error {
		if err := setResourceLimits(Limits{AddressSpace: 64 << 20, CPU: 5}); err != nil {
			return err
		}
		_, err := unix.Mmap(-1, 0, 64<<20+extraAddressSpace+1, unix.PROT_READ, unix.MAP_ANON|unix.MAP_PRIVATE)
		return err
	},
	"descriptors": func() error {
		if err := setDescriptorLimit(); err != nil {
			return err
		}
		_, err := os.Open("/dev/null")
		return err
	},
	"seccomp": func() error {
		if err := errors.Join(noNewPrivileges(), installSeccomp()); err != nil {
			return err
		}
		_, err := os.Open("/dev/null")
		return err
	},
	"seccomp prctl": func() error {
		if err := errors.Join(noNewPrivileges(), installSeccomp()); err != nil {
			return err
		}
		return unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)
	},
	// Threads come, memory goes, timers fire: a program behind the filter must go on.
	"seccomp alive": func() error {
		if err := Seal(Limits{AddressSpace: 256 << 20, CPU: 5}); err != nil {
			return err
		}
		done := make(chan []byte)
		for range 50 {
			go func() { done <- bytes.Repeat([]byte("x"), 1<<20) }()
		}
		for range 50 {
			<-done
		}
		return errors.New("alive")
	},
}

// attempt runs this program with an attempt, and returns its output.
func attempt(t *testing.T, name string) (output string, state *os.ProcessState) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "attempt", name)
	cmd.Env = []string{"GOMAXPROCS=2", "GODEBUG=updatemaxprocs=0,containermaxprocs=0"}
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out)) + errs.String(), cmd.ProcessState
}

// skipWithout skips a test on a machine that lacks a layer.
func skipWithout(t *testing.T, name string) {
	t.Helper()
	for _, layer := range Layers() {
		if layer.Name == name && layer.Missing != "" {
			t.Skipf("%s: %s (for Landlock: CGO_ENABLED=0, and a kernel from 5.13 on with it)", name, layer.Missing)
		}
	}
}

func TestLandlockAlone(t *testing.T) {
	skipWithout(t, "landlock")
	version, err := landlockVersion()
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"landlock file": "permission denied", "landlock exec": "permission denied", "landlock tcp": "permission denied",
	} {
		if name == "landlock tcp" && version < 4 {
			continue
		}
		if output, _ := attempt(t, name); !strings.Contains(output, want) {
			t.Errorf("%s: got %q, want %q", name, output, want)
		}
	}
}

func TestLimitsAlone(t *testing.T) {
	if output, _ := attempt(t, "limits"); !strings.Contains(output, "cannot allocate memory") {
		t.Errorf("got %q", output)
	}
	if output, _ := attempt(t, "descriptors"); !strings.Contains(output, "too many open files") {
		t.Errorf("got %q", output)
	}
}

func TestSeccompAlone(t *testing.T) {
	skipWithout(t, "seccomp")
	output, state := attempt(t, "seccomp")
	if status := state.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGSYS {
		t.Errorf("ended with %v, output %q, want SIGSYS", state, output)
	}
	if output, _ := attempt(t, "seccomp prctl"); output != "invalid argument" {
		t.Errorf("prctl returns %q", output)
	}
}

func TestSealedProgramLives(t *testing.T) {
	if output, state := attempt(t, "seccomp alive"); output != "alive" {
		t.Errorf("output %q, ended with %v", output, state)
	}
}
