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

// TestMain makes this program one that puts up a single wall and runs against it.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "wall" {
		fmt.Println(against[os.Args[2]]())
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// against puts up one wall each, and gives what the program meets at it.
var against = map[string]func() error{
	"landlock file": func() error {
		if err := errors.Join(noNewPrivileges(), denyFiles()); err != nil {
			return err
		}
		_, err := os.Open("/etc/passwd")
		return err
	},
	"landlock exec": func() error {
		if err := errors.Join(noNewPrivileges(), denyFiles()); err != nil {
			return err
		}
		return syscall.Exec("/bin/true", []string{"true"}, nil)
	},
	"landlock tcp": func() error {
		if err := errors.Join(noNewPrivileges(), denyFiles()); err != nil {
			return err
		}
		_, err := net.Dial("tcp", "127.0.0.1:1")
		return err
	},
	"limits": func() error {
		if err := setLimits(Limits{AddressSpace: 64 << 20, CPU: 5}); err != nil {
			return err
		}
		_, err := unix.Mmap(-1, 0, 64<<20+slack+1, unix.PROT_READ, unix.MAP_ANON|unix.MAP_PRIVATE)
		return err
	},
	"descriptors": func() error {
		if err := noDescriptors(); err != nil {
			return err
		}
		_, err := os.Open("/dev/null")
		return err
	},
	"seccomp": func() error {
		if err := errors.Join(noNewPrivileges(), filterCalls()); err != nil {
			return err
		}
		_, err := os.Open("/dev/null")
		return err
	},
	"seccomp prctl": func() error {
		if err := errors.Join(noNewPrivileges(), filterCalls()); err != nil {
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

// meet runs this program against a wall.
func meet(t *testing.T, wall string) (said string, state *os.ProcessState) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "wall", wall)
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

// needs skips where this machine lacks a wall.
func needs(t *testing.T, name string) {
	t.Helper()
	for _, wall := range All() {
		if wall.Name == name && wall.Missing != "" {
			t.Skipf("%s: %s (for Landlock: CGO_ENABLED=0, and a kernel from 5.13 on with it)", name, wall.Missing)
		}
	}
}

func TestLandlockAlone(t *testing.T) {
	needs(t, "landlock")
	version, err := landlockVersion()
	if err != nil {
		t.Fatal(err)
	}
	for wall, want := range map[string]string{
		"landlock file": "permission denied", "landlock exec": "permission denied", "landlock tcp": "permission denied",
	} {
		if wall == "landlock tcp" && version < 4 {
			continue
		}
		if said, _ := meet(t, wall); !strings.Contains(said, want) {
			t.Errorf("%s: met %q, want %q", wall, said, want)
		}
	}
}

func TestLimitsAlone(t *testing.T) {
	if said, _ := meet(t, "limits"); !strings.Contains(said, "cannot allocate memory") {
		t.Errorf("met %q", said)
	}
	if said, _ := meet(t, "descriptors"); !strings.Contains(said, "too many open files") {
		t.Errorf("met %q", said)
	}
}

func TestSeccompAlone(t *testing.T) {
	needs(t, "seccomp")
	said, state := meet(t, "seccomp")
	if status := state.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGSYS {
		t.Errorf("ended with %v, said %q, want SIGSYS", state, said)
	}
	if said, _ := meet(t, "seccomp prctl"); said != "invalid argument" {
		t.Errorf("prctl gives %q", said)
	}
}

func TestSealedProgramLives(t *testing.T) {
	if said, state := meet(t, "seccomp alive"); said != "alive" {
		t.Errorf("said %q, ended with %v", said, state)
	}
}
