package sandbox_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/confine"
)

var getProcessHandleCount = windows.NewLazySystemDLL("kernel32.dll").NewProc("GetProcessHandleCount")

// otherMain: this program is nothing else here.
func otherMain(string) {}

// countsCPU: Wine says of another process that it has used a few milliseconds, whatever it does.
func countsCPU() bool { return !confine.Wine() }

// hangsUp: a runner can close its connection.
func hangsUp() bool { return !confine.Wine() }

// runnerConn is a runner's connection to its agent.
func runnerConn() *os.File { return os.Stdin }

// hostileActsHere are those of hostileActs that are this system's own. Each exits with 7 if what it tries succeeds.
var hostileActsHere = map[string]func(conn *os.File){
	"execute": whenSealed(func() error { return exec.Command("cmd.exe", "/C", "exit 0").Run() }),
	"write": whenSealed(func() error {
		return os.WriteFile(filepath.Join(os.Getenv("SystemRoot"), "quantix-kvm-test"), nil, 0o600)
	}),
	"agent": whenSealed(func() error {
		h, err := windows.OpenProcess(windows.PROCESS_TERMINATE, false, uint32(os.Getppid()))
		if err == nil {
			windows.CloseHandle(h)
		}
		return err
	}),
	"memory": whenSealed(func() error {
		_, err := windows.VirtualAlloc(0, 1<<30, windows.MEM_COMMIT|windows.MEM_RESERVE, windows.PAGE_READWRITE)
		return err
	}),
	"sealed": whenSealed(func() error { return nil }),
}

func whenSealed(deed func() error) func(*os.File) {
	return func(*os.File) {
		if err := confine.Seal(confine.Limits{}); err != nil {
			os.Stderr.WriteString("seal: " + err.Error())
			os.Exit(8)
		}
		if err := deed(); err != nil {
			os.Stderr.WriteString("refused: " + err.Error())
			os.Exit(6)
		}
		os.Exit(7)
	}
}

// What a runner that was taken over tries is refused by the system. Under Wine, which says that it enforces none of it, the
// processes are started and sealed all the same.
func TestSealedProcessCanDoNothing(t *testing.T) {
	for _, how := range []string{"execute", "write", "agent", "memory"} {
		t.Run(how, func(t *testing.T) {
			out := hostilePool(t, how, sandbox.Limits{}).Run(t.Context(), hostileJob())
			message := out.Error.GetMessage()
			if confine.Wine() && strings.Contains(message, "exit status 7") {
				t.Skip("Wine does not enforce the walls around a runner")
			}
			if out.Error.GetKind() != "internal" || !strings.Contains(message, "refused: ") {
				t.Errorf("error is %v", out.Error)
			}
		})
	}
	mustFail(t, hostilePool(t, "sealed", sandbox.Limits{}), hostileJob(), "internal", "exit status 7")
}

// Layers names all walls, and where they are not enforced it says so.
func TestLayersAreTold(t *testing.T) {
	missing := map[string]bool{}
	for _, l := range sandbox.Layers() {
		missing[l.Name] = l.Missing != ""
	}
	for _, name := range []string{"restricted token", "low integrity", "job: one process", "job: memory", "process mitigations"} {
		if said, known := missing[name]; !known || said != confine.Wine() {
			t.Errorf("layer %q: known %v, missing %v", name, known, said)
		}
	}
	if !missing["network"] {
		t.Error("the network is said to be closed")
	}
}

func TestStandbyThatDiedIsReplaced(t *testing.T) {
	mustFail(t, hostilePool(t, "short-lived", sandbox.Limits{}), hostileJob(), "internal", "exit status 0")
}

// A run leaves neither a process nor a handle.
func TestNothingIsLeftBehind(t *testing.T) {
	pool := newPool(t, sandbox.Config{})
	handles := func() (n uint32) {
		ok, _, err := getProcessHandleCount.Call(uintptr(windows.CurrentProcess()), uintptr(unsafe.Pointer(&n)))
		if ok == 0 {
			t.Skip(err)
		}
		return n
	}
	for range 5 {
		mustRun(t, pool, script("return 1"))
	}
	before := handles()
	for range 20 {
		mustRun(t, pool, script("return 1"))
	}
	if after := handles(); after > before+20 {
		t.Errorf("%d handles after 20 runs, %d before", after, before)
	}
}
