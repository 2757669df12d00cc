//go:build vm

package vmtest_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// provisionFiles is how many files a provisioning writes.
const provisionFiles = 20

// provisionScript is a provisioning with the agent's own rooms: files with owners and modes, a user, the host's name, a netplan
// file that is checked, two units enabled, and files read back.
const provisionScript = `
local dir, n = "/srv/bench", params.run
file.mkdir(dir, {parents = true})
for i = 1, 20 do
  file.write(("%s/f%02d"):format(dir, i), ("run %d file %d\n"):format(n, i):rep(50), {mode = "0640", owner = "daemon", group = "daemon"})
end
account.create("bench", {comment = "run " .. n, shell = "/bin/sh"})
host.hostname("bench-" .. n)
netplan.set("90-bench", {network = {version = 2, ethernets = {bench0 = {optional = true, addresses = {("10.9.%d.2/24"):format(n % 250)}}}}})
service.enable("bench-a")
service.enable("bench-b")
local read = {}
for i = 1, 5 do read[i] = file.read(("%s/f%02d"):format(dir, i)) end
return read
`

// provisionShell is the same as one shell script, by the tools that such scripts use.
func provisionShell(run int) string {
	var b strings.Builder
	b.WriteString("set -e\nmkdir -p /srv/bench\n")
	for i := 1; i <= provisionFiles; i++ {
		text := strings.Repeat(fmt.Sprintf("run %d file %d\n", run, i), 50)
		fmt.Fprintf(&b, "cat > /srv/bench/f%02d <<'EOF'\n%sEOF\nchown daemon:daemon /srv/bench/f%02d\nchmod 0640 /srv/bench/f%02d\n", i, text, i, i)
	}
	fmt.Fprintf(&b, "useradd -m -c 'run %d' -s /bin/sh bench\nhostnamectl set-hostname bench-%d\n", run, run)
	fmt.Fprintf(&b, "umask 077\ncat > /etc/netplan/90-bench.yaml <<'EOF'\nnetwork:\n  version: 2\n  ethernets:\n    bench0:\n      optional: true\n      addresses: [10.9.%d.2/24]\nEOF\n", run%250)
	b.WriteString("netplan generate\nsystemctl enable bench-a.service bench-b.service\n")
	for i := 1; i <= 5; i++ {
		fmt.Fprintf(&b, "cat /srv/bench/f%02d\n", i)
	}
	return b.String()
}

// BenchmarkProvision holds a provisioning by one script of the agent's rooms, which is undone as a whole if anything fails and
// is on the disk when it is told, against the same by one shell script over the same channel, which is neither. "x" is ours as
// a multiple.
func BenchmarkProvision(b *testing.B) {
	vm := machine(b, vmtest.Options{})
	startAgent(b, vm)
	c := dial(b, vm, vmtest.AgentPort, client.Options{})
	ctx := context.Background()
	for _, unit := range []string{"bench-a", "bench-b"} {
		vm.Must(b, `printf '[Service]\nExecStart=/bin/true\n[Install]\nWantedBy=multi-user.target\n' > /etc/systemd/system/`+unit+`.service`)
	}
	vm.Must(b, "systemctl daemon-reload")
	clean := func() {
		vm.Must(b, "userdel -r bench 2>/dev/null; systemctl disable -q bench-a bench-b; rm -rf /srv/bench /etc/netplan/90-bench.yaml /run/systemd/network/*bench0*; hostname guest; echo guest > /etc/hostname; systemctl daemon-reload; sync")
	}
	var ours, shell time.Duration
	for run := 0; b.Loop(); run++ {
		request := &pb.RunScriptRequest{Source: []byte(strings.Replace(provisionScript, "params.run", fmt.Sprint(run), 1))}
		start := time.Now()
		reply, err := client.Call[*pb.RunScriptResponse](ctx, c, request)
		must(b, err)
		ours += time.Since(start)
		if reply.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || len(reply.Result.GetListValue().GetValues()) != 5 {
			b.Fatal(reply)
		}
		clean()
		start = time.Now()
		done, err := client.Call[*pb.ExecuteResponse](ctx, c, &pb.ExecuteRequest{
			Command: "/bin/sh", Args: []string{"-c", provisionShell(run)}, WaitForExit: true, TimeoutSeconds: 300,
		})
		must(b, err)
		shell += time.Since(start)
		if done.ExitCode != 0 || strings.Count(string(done.Stdout), "\n") != 250 {
			b.Fatal(done)
		}
		clean()
	}
	n := time.Duration(b.N)
	compare(b, ours/n, shell/n)
}
