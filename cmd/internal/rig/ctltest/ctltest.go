// Package ctltest replays command line scripts (txtar files) of quantix-kvm-ctl against an agent: a local process, or one
// in a virtual machine. The same files run in both places.
//
// In a script, beside what testscript has:
//
//	ctl ARGS…           runs quantix-kvm-ctl; stdout and stderr can be matched
//	status N ARGS…      the same, and the exit status must be N
//	guest LINE          runs a line of shell in the guest, not through the agent
//	$G                  a directory of the guest that is the script's own
//	$CTL                the path of quantix-kvm-ctl, for what must run in the background: exec $CTL ARGS… &name&
//
// Conditions: [guestroot] the agent in the guest is root; [vm] the guest is a virtual machine.
//
// Not here: how an agent or a machine is started.
package ctltest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
)

// Guest is where the agent runs.
type Guest struct {
	Socket string                                                                              // of the host
	Dir    string                                                                              // of the guest, empty, for the script alone
	Shell  func(ctx context.Context, line string) (stdout, stderr []byte, code int, err error) // runs a line, not through the agent
	Root   bool                                                                                // the agent is root
	VM     bool                                                                                // the guest is a virtual machine
}

var built struct {
	once  sync.Once
	path  string
	given bool // it was built by another, and stays
	err   error
}

// Binary builds the ctl of this tree once and gives its path.
func Binary() (string, error) {
	built.once.Do(func() {
		if dir := os.Getenv(agenttest.ProgramsVariable); dir != "" {
			built.path, built.given = filepath.Join(dir, "quantix-kvm-ctl.exe"), true
			return
		}
		dir, err := os.MkdirTemp("", "ctl-bin-")
		if err != nil {
			built.err = err
			return
		}
		built.path = filepath.Join(dir, "quantix-kvm-ctl")
		if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", built.path, "github.com/quantix-kvm/guest-agent/cmd/quantix-kvm-ctl").CombinedOutput(); err != nil {
			built.err = fmt.Errorf("build the ctl: %w\n%s", err, out)
		}
	})
	return built.path, built.err
}

// Clean takes away what Binary built.
func Clean() {
	if built.path != "" && !built.given {
		os.RemoveAll(filepath.Dir(built.path))
	}
}

// noAnswer is the ctl's exit status where the agent has not answered its first ping in time. Nothing was asked for then.
const noAnswer = 3

// runCtl runs the ctl. Under Wine on a busy machine, where a program may not start, and no answer may come in time, it is run
// again unless that is what is wanted.
func runCtl(ts *testscript.TestScript, binary string, args []string, want int) error {
	attempts := 1
	if runtime.GOOS == "windows" && want != noAnswer {
		attempts = 10
	}
	var err error
	for range attempts {
		err = ts.Exec(binary, args...)
		if exit := new(exec.ExitError); err == nil || errors.As(err, &exit) && exit.ExitCode() != noAnswer {
			break
		}
	}
	return err
}

// Run replays the scripts of a directory. start gives each its guest; env's Defer ends it.
func Run(t *testing.T, dir string, start func(env *testscript.Env) (Guest, error)) {
	files, err := filepath.Glob(filepath.Join(dir, "*.txtar"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts in %s: %v", dir, err)
	}
	RunFiles(t, files, start)
}

// RunFiles is Run for these files.
func RunFiles(t *testing.T, files []string, start func(env *testscript.Env) (Guest, error)) {
	binary, err := Binary()
	if err != nil {
		t.Fatal(err)
	}
	type key struct{}
	guestOf := func(ts *testscript.TestScript) Guest { return ts.Value(key{}).(Guest) }
	var mu sync.Mutex
	guests := map[string]Guest{} // by work directory, for conditions
	testscript.Run(t, testscript.Params{
		Files: files,
		Setup: func(env *testscript.Env) error {
			g, err := start(env)
			if err != nil {
				return err
			}
			env.Values[key{}] = g
			env.Setenv("QUANTIX_SOCKET", g.Socket)
			env.Setenv("G", g.Dir)
			env.Setenv("CTL", binary)
			mu.Lock()
			guests[env.WorkDir] = g
			mu.Unlock()
			return nil
		},
		Condition: func(cond string) (bool, error) {
			mu.Lock()
			defer mu.Unlock()
			for _, g := range guests { // all scripts of one Run have guests of one kind
				switch cond {
				case "guestroot":
					return g.Root, nil
				case "vm":
					return g.VM, nil
				}
				break
			}
			return false, fmt.Errorf("unknown condition %s", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"ctl": func(ts *testscript.TestScript, neg bool, args []string) {
				err := runCtl(ts, binary, args, 0)
				if failed := err != nil; failed != neg {
					ts.Fatalf("ctl %q: %v", args, err)
				}
			},
			"status": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) < 2 {
					ts.Fatalf("usage: status N ARGS…")
				}
				want, err := strconv.Atoi(args[0])
				ts.Check(err)
				got := 0
				err = runCtl(ts, binary, args[1:], want)
				if exit := new(exec.ExitError); errors.As(err, &exit) {
					got = exit.ExitCode()
				} else if err != nil {
					ts.Fatalf("ctl %q: %v", args[1:], err)
				}
				if got != want {
					ts.Fatalf("ctl %q: exit status %d, want %d", args[1:], got, want)
				}
			},
			// The shell waits 2 s for a completion, and a guest that is emulated and busy may take longer.
			"completes": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) < 2 {
					ts.Fatalf("usage: completes WORD ARGS…")
				}
				for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Second) {
					ts.Check(runCtl(ts, binary, append([]string{"__complete"}, args[1:]...), 0))
					if strings.Contains(ts.ReadFile("stdout"), args[0]) {
						return
					}
					if time.Now().After(deadline) {
						ts.Fatalf("%q is not completed", args[0])
					}
				}
			},
			"guest": func(ts *testscript.TestScript, neg bool, args []string) {
				if len(args) != 1 {
					ts.Fatalf("usage: guest 'LINE'")
				}
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				stdout, stderr, code, err := guestOf(ts).Shell(ctx, args[0])
				ts.Check(err)
				out := filepath.Join(ts.Getenv("WORK"), ".guest-stdout")
				ts.Check(os.WriteFile(out, stdout, 0o600))
				ts.Check(ts.Exec("cat", out)) // so that stdout can be matched
				if failed := code != 0; failed != neg {
					ts.Fatalf("guest %q: exit status %d\n%s", args[0], code, stderr)
				}
			},
		},
	})
}
