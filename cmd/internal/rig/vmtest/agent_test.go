//go:build vm

package vmtest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/ctltest"
	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func TestMain(m *testing.M) {
	code := m.Run()
	agenttest.Clean()
	ctltest.Clean()
	packages.clean()
	os.Exit(code)
}

const agentPath = "/usr/bin/quantix-kvm-agent"

// machine is a resumed one that runs this tree's agent from its package.
func machine(t testing.TB, o vmtest.Options) *vmtest.VM {
	t.Helper()
	path, err := packages.get(present)
	if err != nil {
		t.Fatal(err)
	}
	o.Package = path
	return vmtest.Start(t, o)
}

// startAgent has the package of this tree's agent installed in a machine, and the agent running with its own unit.
func startAgent(t testing.TB, vm *vmtest.VM, args ...string) {
	t.Helper()
	if len(args) > 0 {
		vm.Must(t, "mkdir -p /run/systemd/system/quantix-kvm-agent.service.d && printf '[Service]\nExecStart=\nExecStart="+agentPath+" "+strings.Join(args, " ")+"\n' > /run/systemd/system/quantix-kvm-agent.service.d/test.conf")
	}
	if vm.Must(t, "test -e "+agentPath+" && echo there || true") == "" {
		install(t, vm, present)
	} else if len(args) > 0 {
		vm.Must(t, "systemctl daemon-reload && systemctl restart quantix-kvm-agent")
	}
}

// dial connects to the agent in a machine and waits for its first word. The agent may still be starting.
func dial(t testing.TB, vm *vmtest.VM, port string, o client.Options) *client.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		c, err := client.Dial(ctx, vm.Socket(port), o)
		if err != nil {
			t.Fatal(err)
		}
		if err = c.Alive(ctx); err == nil {
			t.Cleanup(func() { c.Close() })
			return c
		}
		c.Close()
		if !errors.Is(err, client.ErrNoAnswer) || ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

func limited(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// The command line scripts that run over a unix socket elsewhere, here over virtio-serial in a real guest. A script that changes
// the machine has one of its own; the others share one and run one after the other.
func TestCLI(t *testing.T) {
	shared := machine(t, vmtest.Options{})
	var use sync.Mutex
	ctltest.Run(t, "../../../quantix-kvm-ctl/testdata/script", func(env *testscript.Env) (ctltest.Guest, error) {
		tb, vm := env.T().(testing.TB), shared
		name := strings.TrimPrefix(filepath.Base(env.WorkDir), "script-")
		if slices.Contains([]string{"bundled", "edit", "machine", "network"}, name) {
			vm = machine(tb, vmtest.Options{})
		} else {
			use.Lock()
			env.Defer(use.Unlock)
		}
		dial(tb, vm, vmtest.CtlPort, client.Options{}).Close()
		dir := "/var/tmp/" + name
		vm.Must(tb, "mkdir "+dir)
		return ctltest.Guest{
			Socket: vm.Socket(vmtest.CtlPort), Dir: dir, Root: true, VM: true,
			Shell: func(ctx context.Context, line string) ([]byte, []byte, int, error) {
				r, err := vm.Shell(ctx, line)
				return r.Stdout, r.Stderr, r.ExitCode, err
			},
		}, nil
	})
}

// What a script and a command did is there, seen from outside the agent.
func TestEffectsSeenFromOutside(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	startAgent(t, vm)
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	ctx := limited(t, time.Minute)
	reply, err := client.Call[*pb.RunScriptResponse](ctx, c, &pb.RunScriptRequest{Source: []byte(`
		file.write("/etc/from-script", "written\n", {mode = "0604", owner = "daemon"})
		exec.run({"touch", "/var/tmp/from-exec"}, {touches = {"/var/tmp/from-exec"}})
		return host.info().hostname`)})
	if err != nil || reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || reply.Result.GetStringValue() != "guest" {
		t.Fatal(reply, err)
	}
	if got := vm.Must(t, "cat /etc/from-script; stat -c '%a %U' /etc/from-script; test -e /var/tmp/from-exec && echo there"); got != "written\n604 daemon\nthere" {
		t.Errorf("%q", got)
	}
	exec, err := client.Call[*pb.ExecuteResponse](ctx, c, &pb.ExecuteRequest{Command: "echo $$ > /run/from-execute; uname -r", WaitForExit: true})
	if err != nil || exec.ExitCode != 0 || strings.TrimSpace(vm.Must(t, "uname -r")) != strings.TrimSpace(exec.Stdout) {
		t.Error(exec, err)
	}
	vm.Must(t, "test -s /run/from-execute")
}

// Both framings, on the port that has the Node Daemon's name, and two ports at a time.
func TestFramingsAndPorts(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	startAgent(t, vm)
	plain := dial(t, vm, vmtest.AgentPort, client.Options{})
	qtx := dial(t, vm, vmtest.CtlPort, client.Options{Framing: wire.QTX1})
	for i := range uint64(20) {
		for _, c := range []*client.Client{plain, qtx} {
			pong, err := client.Call[*pb.PongResponse](limited(t, 20*time.Second), c, &pb.PingRequest{Sequence: i + 2})
			if err != nil || pong.Sequence != i+2 {
				t.Fatal(pong, err)
			}
		}
	}
}

// Hosts come and go, also in the middle of a transfer: each is greeted and served, and the agent does not spin between
// them.
func TestHostsComeAndGo(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	startAgent(t, vm)
	for i := range 10 {
		c := dial(t, vm, vmtest.AgentPort, client.Options{})
		ctx, cancel := context.WithCancel(context.Background())
		if i%2 == 0 {
			go c.Push(ctx, "/var/tmp/half", bytes.NewReader(make([]byte, 32<<20)), client.PushOptions{})
			time.Sleep(20 * time.Millisecond) // into the transfer, wherever that is
		}
		c.Close()
		cancel()
	}
	if got := vm.Must(t, "ls -A /var/tmp | grep -v systemd-private || true"); strings.Contains(got, "half") {
		t.Errorf("a transfer that broke off left %q", got)
	}
	ticks := func() string {
		return vm.Must(t, "awk '{print $14+$15}' /proc/$(pidof quantix-kvm-agent | tr ' ' '\\n' | tail -1)/stat")
	}
	before := ticks()
	time.Sleep(3 * time.Second) // the time over which nothing must happen
	after := ticks()
	var a, b int
	fmt.Sscan(before, &a)
	fmt.Sscan(after, &b)
	if b-a > 30 {
		t.Errorf("without a host the agent used %d ticks of 10 ms in 3 s", b-a)
	}
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	var got bytes.Buffer
	content := bytes.Repeat([]byte("a line of the file\n"), 100_000)
	ctx := limited(t, time.Minute)
	if _, err := c.Push(ctx, "/var/tmp/whole", bytes.NewReader(content), client.PushOptions{SHA256: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Pull(ctx, "/var/tmp/whole", &got, client.PullOptions{}); err != nil || !bytes.Equal(got.Bytes(), content) {
		t.Error(err, got.Len())
	}
}

const changes = `
for i = 1, 20 do file.write("/etc/test/new-" .. i, ("x"):rep(i * 1000), {mode = "0600"}) end
file.write("/etc/test/app.conf", "new\n")
file.remove("/etc/test/tree", {recursive = true})
exec.run({"sh", "-c", "echo more >> /etc/test/log"}, {touches = {"/etc/test/log"}})
file.symlink("/nowhere", "/etc/test/link")
return "done"
`

const prepareTree = "mkdir -p /etc/test/tree/a/b && echo old > /etc/test/app.conf && echo one > /etc/test/log && echo deep > /etc/test/tree/a/b/c && sync"

// treePicture is all that a rollback must bring back.
const treePicture = "cd /etc/test && find . -printf '%p %y %m %u %g %l %T@ %s\\n' | sort && find . -type f -print0 | sort -z | xargs -0r sha256sum"

// judge compares a tree after an interruption with what it was before. It reports whether the script was taken back.
func judge(t *testing.T, vm *vmtest.VM, before string, reply *pb.RunScriptResponse) (takenBack bool) {
	t.Helper()
	after := vm.Must(t, treePicture)
	committed := reply.GetStatus() == pb.ScriptStatus_SCRIPT_STATUS_COMMITTED
	switch {
	case after == before && !committed:
		return true
	case after == before:
		t.Fatal("the host heard COMMITTED, and the changes are gone")
	case !strings.Contains(after, "./link l"):
		t.Fatalf("neither before nor after:\n%s\nbefore:\n%s", after, before)
	}
	return false
}

// served waits until the agent serves again and has recovered: on a slow machine it serves while it still recovers.
func served(t *testing.T, vm *vmtest.VM) *client.Client {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; {
		c := dial(t, vm, vmtest.AgentPort, client.Options{})
		status, err := client.Call[*pb.GetStatusResponse](limited(t, 20*time.Second), c, &pb.GetStatusRequest{})
		if err == nil && status.State != pb.AgentState_AGENT_STATE_RECOVERING {
			return c
		}
		c.Close()
		if time.Now().After(deadline) {
			t.Fatal(status, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// The agent is killed while a script runs, systemd starts it again: all or nothing.
func TestAgentKilledDuringScript(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	startAgent(t, vm)
	vm.Must(t, prepareTree)
	rounds, takenBack := rounds(6), 0
	for round := range rounds {
		before := vm.Must(t, treePicture)
		c := served(t, vm)
		answered := make(chan *pb.RunScriptResponse, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			reply, _ := client.Call[*pb.RunScriptResponse](ctx, c, &pb.RunScriptRequest{Source: []byte(changes)})
			answered <- reply
		}()
		time.Sleep(time.Duration(round*80) * time.Millisecond) // deeper into the run each time
		vm.Must(t, "pkill -KILL -o -x quantix-kvm-age")
		c.Close()
		reply := <-answered
		served(t, vm).Close()
		if judge(t, vm, before, reply) {
			takenBack++
			continue
		}
		vm.Must(t, "rm -rf /etc/test && "+prepareTree)
	}
	t.Logf("%d of %d runs were taken back", takenBack, rounds)
}

// The guest loses its power while a script runs, and boots again from the same disk: all or nothing.
func TestPowerLossDuringScript(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	vm.Must(t, prepareTree)
	rounds, takenBack := rounds(1), 0
	for range rounds {
		before := vm.Must(t, treePicture)
		vm.Must(t, "sync")
		c := served(t, vm)
		answered := make(chan *pb.RunScriptResponse, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			reply, _ := client.Call[*pb.RunScriptResponse](ctx, c, &pb.RunScriptRequest{Source: []byte(changes)})
			answered <- reply
		}()
		time.Sleep(time.Duration(50+rand.IntN(700)) * time.Millisecond) // into the run
		if err := vm.Kill(); err != nil {
			t.Fatal(err)
		}
		reply := <-answered
		c.Close()
		if err := vm.PowerOn(limited(t, 3*time.Minute)); err != nil {
			t.Fatal(err)
		}
		served(t, vm).Close()
		if judge(t, vm, before, reply) {
			takenBack++
			continue
		}
		vm.Must(t, "rm -rf /etc/test && "+prepareTree)
	}
	t.Logf("%d of %d runs were taken back", takenBack, rounds)
}

// rounds is how often a test that interrupts goes round: a handful, or what QUANTIX_ROUNDS says.
func rounds(few int) int {
	if n, err := strconv.Atoi(os.Getenv("QUANTIX_ROUNDS")); err == nil {
		return n
	}
	return few
}
