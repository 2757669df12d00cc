//go:build vm

package vmtest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/quantix-kvm/guest-agent/cmd/internal/agenttest"
	"github.com/quantix-kvm/guest-agent/cmd/internal/ctltest"
	"github.com/quantix-kvm/guest-agent/cmd/internal/vmtest"
	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func TestMain(m *testing.M) {
	defer ctltest.Clean()
	agenttest.Main(m)
}

const agentPath = "/usr/bin/quantix-kvm-agent"

// startAgent puts the agent of this tree into a machine and starts it there as a service.
func startAgent(t testing.TB, vm *vmtest.VM, args ...string) {
	t.Helper()
	binary, err := agenttest.Binary()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := vm.Put(ctx, binary, agentPath, 0o755); err != nil {
		t.Fatal(err)
	}
	vm.Must(t, "systemd-run --quiet --unit=quantix-kvm-agent -p KillMode=process -p Delegate=yes -p Restart=always "+agentPath+" "+strings.Join(args, " "))
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

// The command line scripts that run over a unix socket elsewhere, here over virtio-serial in a real guest.
func TestCLI(t *testing.T) {
	ctltest.Run(t, "../../quantix-kvm-ctl/testdata/script", func(env *testscript.Env) (ctltest.Guest, error) {
		tb := env.T().(testing.TB)
		vm := vmtest.Start(tb, vmtest.Options{})
		startAgent(tb, vm)
		dial(tb, vm, vmtest.CtlPort, client.Options{}).Close()
		vm.Must(tb, "mkdir /var/tmp/script")
		return ctltest.Guest{
			Socket: vm.Socket(vmtest.CtlPort), Dir: "/var/tmp/script", Root: true, VM: true,
			Shell: func(ctx context.Context, line string) ([]byte, []byte, int, error) {
				r, err := vm.Shell(ctx, line)
				return r.Stdout, r.Stderr, r.ExitCode, err
			},
		}, nil
	})
}

// What a script and a command did is there, seen from outside the agent.
func TestEffectsSeenFromOutside(t *testing.T) {
	vm := vmtest.Start(t, vmtest.Options{})
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
	vm := vmtest.Start(t, vmtest.Options{})
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
	vm := vmtest.Start(t, vmtest.Options{})
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
