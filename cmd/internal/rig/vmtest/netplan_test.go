//go:build vm

package vmtest_test

import (
	"context"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/ctltest"
	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// guestNet is what the guest's file says, with the parts that a test changes.
func guestNet(ens3, more string) string {
	return "network:\n  version: 2\n  ethernets:\n    ens3:\n" + ens3 + more
}

const (
	ens3Good  = "      addresses: [10.0.2.15/24]\n      routes: [{to: default, via: 10.0.2.2}]\n"
	ens3Wrong = "      addresses: [10.0.2.15/24]\n      routes: [{to: default, via: 10.0.2.77}]\n"
	// ens4Named gives ens4 another name, so that what comes back is more than addresses.
	ens4Named = "network: {version: 2, ethernets: {ens4: {match: {macaddress: '52:54:00:12:34:04'}, set-name: lan4, mtu: 1400, addresses: [10.0.3.15/24]}}}\n"
)

// lookNet shows the network from outside the agent: addresses, routes, links, and what netplan and systemd-networkd have.
const lookNet = "ip -o -4 addr show scope global | awk '{print $2, $4}' | sort; ip -4 route | sed 's/ *$//' | sort; grep . /sys/class/net/*/mtu; " +
	"for f in /etc/netplan/*; do echo $f; cat $f; done; for f in /run/systemd/network/*; do echo $f; cat $f; done"

type netGuest struct {
	*vmtest.VM
	t   *testing.T
	ctx context.Context
	c   *client.Client
}

func (g *netGuest) run(source string) *pb.RunScriptResponse {
	g.t.Helper()
	reply, err := client.Call[*pb.RunScriptResponse](g.ctx, g.c, &pb.RunScriptRequest{Source: []byte(source)})
	if err != nil {
		g.t.Fatal(err)
	}
	return reply
}

func (g *netGuest) look() string {
	g.t.Helper()
	return g.Must(g.t, lookNet)
}

// set is a script that has a file of netplan hold a text and applies it.
func set(name, text, options string) string {
	return "netplan.set('" + name + "', [[\n" + text + "]], {override = true})\nreturn netplan.apply(" + options + ")"
}

// byCLI configures the network by the command line, which then takes it back.
func (g *netGuest) byCLI() {
	g.t.Helper()
	ctl, err := ctltest.Binary()
	if err != nil {
		g.t.Fatal(err)
	}
	run := func(stdin string, args ...string) (stdout, stderr string) {
		g.t.Helper()
		cmd := exec.CommandContext(g.ctx, ctl, append([]string{"-s", g.Socket(vmtest.CtlPort)}, args...)...)
		var out, log strings.Builder
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &log
		if err := cmd.Run(); err != nil {
			log.WriteString(err.Error())
		}
		return strings.TrimSpace(out.String()), log.String()
	}
	if _, log := run("network: {version: 2, ethernets: {ens4: {mtu: 1450, dhcp4: 7}}}\n", "network", "apply", "-"); !strings.Contains(log, "exit status 1") {
		g.t.Error("a wrong file:", log)
	}
	id, log := run("network: {version: 2, ethernets: {ens4: {mtu: 1450}}}\n", "network", "apply", "-", "--confirm", "300s", "--gateway")
	if id == "" || !strings.Contains(log, "unless it is confirmed") || g.Must(g.t, "cat /sys/class/net/ens4/mtu") != "1450" {
		g.t.Error(id, log)
	}
	if _, log := run("", "confirm", id, "--rollback"); !strings.Contains(log, "everything is as it was") {
		g.t.Error(log)
	}
}

// costOfValidate logs what netplan.validate takes beside the generator alone.
func (g *netGuest) costOfValidate() {
	g.t.Helper()
	r := g.run("local text = [[" + ens4Named + "]] for i = 1, 20 do netplan.validate((text:gsub('1400', 1400 + i))) end")
	if r.Error != nil {
		g.t.Error(r)
	}
	bare := g.Must(g.t, "cp -r /etc/netplan /tmp/x; mkdir -p /tmp/root/etc && mv /tmp/x /tmp/root/etc/netplan; date +%s%N; "+
		"for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do /usr/libexec/netplan/generate --root-dir /tmp/root; done; date +%s%N")
	g.t.Log("20 checks take", r.Stats.DurationMs, "ms; the bare generator from and to", bare)
}

// costOfApply logs what netplan.apply takes beside the generator and the renderer alone, which are done when the address is
// there.
func (g *netGuest) costOfApply() {
	g.t.Helper()
	text := func(address string) string {
		return "network: {version: 2, ethernets: {ens4: {addresses: [" + address + "/24]}}}\n"
	}
	var ours, bare time.Duration
	for _, address := range []string{"10.0.3.31", "10.0.3.33", "10.0.3.35", "10.0.3.15"} {
		start := time.Now()
		if r := g.run(set("60-second", text(address), "")); r.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
			g.t.Error(r)
		}
		ours += time.Since(start)
		if address == "10.0.3.15" {
			break
		}
		next := strings.Replace(address, "10.0.3.3", "10.0.3.4", 1)
		start = time.Now()
		done, err := client.Call[*pb.ExecuteResponse](g.ctx, g.c, &pb.ExecuteRequest{
			Command: "/bin/sh", WaitForExit: true, TimeoutSeconds: 60, Args: []string{"-c", "printf '" + strings.TrimSpace(text(next)) + "\\n' > /etc/netplan/60-second.yaml; " +
				"/usr/libexec/netplan/generate && networkctl reload && until ip -o -4 addr show dev ens4 | grep -q " + next + "; do sleep 0.02; done"},
		})
		if err != nil || done.ExitCode != 0 {
			g.t.Error(done, err)
		}
		bare += time.Since(start)
	}
	g.t.Logf("netplan.set and apply take %v, the generator and the renderer alone %v", ours/4, bare/3)
}

// A network that works is kept, one that does not is taken back: whoever looks, whatever is wrong with it, and also where the
// agent is killed or the power fails meanwhile.
func TestNetplanWithNetworkd(t *testing.T) {
	t.Parallel()
	vm := machine(t, vmtest.Options{})
	startAgent(t, vm)
	g := &netGuest{VM: vm, t: t, ctx: limited(t, 15*time.Minute), c: dial(t, vm, vmtest.AgentPort, client.Options{})}
	eventually(t, vm, "the network is there", "networkctl -n0 status ens3 | grep -q configured")

	r := g.run("local s = netplan.status() assert(not s.pending, s.error) for _, l in ipairs(s.links) do if l.name == 'ens3' then return l.manager .. ' ' .. l.state end end")
	if got := r.Result.GetStringValue(); got != "networkd configured" {
		t.Errorf("ens3 is of %q, %v", got, r.Error)
	}

	stamps := "stat -c '%n %i %Y' /run/systemd/network/* | sort; journalctl -q -u systemd-networkd -o cat | wc -l"
	before := vm.Must(t, stamps)
	if r := g.run("return netplan.apply().changed"); r.Result.GetBoolValue() || len(r.Changes) > 0 || r.Error != nil {
		t.Error("nothing changed, and apply says", r)
	}
	if now := vm.Must(t, stamps); now != before {
		t.Errorf("nothing changed, and the renderer was called:\n%s\n%s", before, now)
	}

	r = g.run(set("60-second", "network: {version: 2, ethernets: {ens4: {addresses: [10.0.3.15/24]}}}\n", "{verify = {gateway = true}}"))
	if r.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		t.Fatal(r)
	}
	t.Log(r.Result, r.Stats.DurationMs)
	if got := vm.Must(t, "ip -o -4 addr show dev ens4 | grep -c 10.0.3.15/24; stat -c %a /etc/netplan/60-second.yaml"); got != "1\n600" {
		t.Errorf("%q", got)
	}
	if r := g.run(set("60-second", "network: {version: 2, ethernets: {ens4: {addresses: [10.0.3.15/24]}}}\n", "")); r.Error != nil || len(r.Changes) > 0 {
		t.Error("a second time it changes", r)
	}
	for _, id := range []string{"7", "77"} { // systemd-networkd leaves a VLAN as it is whose file changes
		vlan := "network: {version: 2, vlans: {v7: {id: " + id + ", link: ens4, addresses: [192.0.2.7/24]}}}\n"
		if r := g.run(set("70-vlan", vlan, "")); r.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
			t.Error(r)
		}
		vm.Must(t, "ip -d link show v7 | grep -q 'id "+id+" ' && ip addr show v7 | grep -q 192.0.2.7")
	}
	back := "network: {version: 2, vlans: {v7: {id: 78, link: ens4, addresses: [192.0.2.7/24]}}}\n"
	if r := g.run(set("70-vlan", back, "") + " and error('after that')"); r.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		t.Error(r)
	}
	vm.Must(t, "ip -d link show v7 | grep -q 'id 77 ' && ip addr show v7 | grep -q 192.0.2.7")
	if r := g.run("netplan.remove('70-vlan') return netplan.apply()"); r.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		t.Error(r)
	}
	vm.Must(t, "! ip link show v7")
	good := g.look()
	if rounds(0) > 0 {
		g.costOfValidate()
		g.costOfApply()
	}
	other := "network: {version: 2, ethernets: {ens4: {addresses: [10.0.3.17/24]}}}\n"
	r = g.run("netplan.set('60-second', [[" + other + "]]) tx.notify('netplan') tx.notify('netplan', 'apply')")
	if got := vm.Must(t, "ip -o -4 addr show dev ens4"); r.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || !strings.Contains(got, "10.0.3.17/24") {
		t.Error("applied behind the script:", r, got)
	}
	unused := "network: {version: 2, ethernets: {ens4: {addresses: [10.0.3.2/24]}}}\n" // it is in use
	second := "network: {version: 2, ethernets: {ens4: {addresses: [10.0.3.15/24]}}}\n"
	r = g.run("netplan.set('60-second', [[" + unused + "]]) if not pcall(netplan.apply) then " + set("60-second", second, "") + " end")
	if r.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || g.look() != good {
		t.Error("another configuration after one that failed:", r, g.look())
	}

	for _, c := range []struct{ name, script, want string }{
		{"a wrong gateway", set("50-guest", guestNet(ens3Wrong, ""), "{timeout = 4}"), "10.0.2.77"},
		{"no gateway", set("50-guest", guestNet("      addresses: [10.0.2.15/24]\n", ""), "{timeout = 4}"), "there is no default gateway"},
		{"another VLAN", set("50-guest", guestNet("      {}\n", "  vlans:\n    v5:\n      id: 5\n      link: ens3\n"+ens3Good), "{timeout = 8}"), "10.0.2.2"},
		{"DHCP without a server", set("61-vlan", "network: {version: 2, vlans: {v6: {id: 6, link: ens4, dhcp4: true}}}\n", "{timeout = 8}"), "by DHCP"},
		{"a probe", set("60-second", "network: {version: 2, ethernets: {ens4: {addresses: [10.0.3.16/24]}}}\n", "{timeout = 4, verify = {tcp = '10.0.3.99:1'}}"), "10.0.3.99:1"},
		{"an address in use", set("60-second", "network: {version: 2, ethernets: {ens4: {addresses: [10.0.3.2/24]}}}\n", ""), "is in use"},
		{"another MAC", set("60-second", "network: {version: 2, ethernets: {x: {match: {macaddress: '52:54:00:00:00:01'}, dhcp4: true}}}\n", ""), "52:54:00:00:00:01"},
		{"another name and MTU", set("60-second", ens4Named, "{timeout = 20}") + " and error('after that')", "after that"},
		{"an error that is caught", "netplan.set('60-second', [[" + unused + "]]) return pcall(netplan.apply)", "is in use"},
		{"an error behind the script", "netplan.set('60-second', [[" + unused + "]]) tx.notify('netplan')", "is in use"},
		{"a script that fails", set("60-second", "network: {version: 2, ethernets: {ens4: {addresses: [10.0.3.16/24]}}}\n", "") + " and error('after that')", "after that"},
	} {
		r := g.run(c.script)
		if s := r.Status; s != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || !strings.Contains(r.Error.GetMessage(), c.want) {
			t.Errorf("%s: %v", c.name, r)
		}
		t.Log(c.name, r.Stats.GetDurationMs(), "ms:", r.Error.GetMessage())
		if now := g.look(); now != good {
			t.Errorf("%s: taken back to\n%s\nfrom\n%s", c.name, now, good)
		}
	}
	vm.Must(t, "ping -c1 -W5 10.0.2.2 && systemctl kill -s STOP systemd-networkd")
	r = g.run(set("60-second", "network: {version: 2, ethernets: {ens4: {addresses: [10.0.3.16/24]}}}\n", ""))
	if r.Error == nil || !strings.Contains(r.Error.Message, "does not answer") {
		t.Error("a renderer that does not answer:", r)
	}
	t.Log(r.Status, r.Stats.DurationMs, r.Error.GetMessage())
	vm.Must(t, "systemctl kill -s CONT systemd-networkd")
	if now := g.look(); now != good {
		t.Errorf("a renderer that did not answer: taken back to\n%s\nfrom\n%s", now, good)
	}

	g.byCLI()
	if now := g.look(); now != good {
		t.Errorf("by the command line: taken back to\n%s\nfrom\n%s", now, good)
	}

	configure := func(in *pb.ConfigureNetworkRequest) (*pb.ConfigureNetworkResponse, string) {
		t.Helper()
		reply, err := client.Call[*pb.ConfigureNetworkResponse](g.ctx, g.c, in)
		if err != nil {
			return &pb.ConfigureNetworkResponse{}, err.Error()
		}
		return reply, reply.Error
	}
	host := "network: {version: 2, ethernets: {ens4: {mtu: 1450}}}\n"
	better := "      routes: [{to: default, via: 10.0.2.77, metric: 0}, {to: default, via: 10.0.2.2, metric: 7}]\n"
	reply, wrong := configure(&pb.ConfigureNetworkRequest{NetplanConfig: guestNet(better, ""), ApplyNow: true})
	if reply.Success || !strings.Contains(wrong, "ethernets.ens3.routes stands in line 6 of /etc/netplan/50-guest.yaml") {
		t.Error("what is in conflict is taken from a host:", reply, wrong)
	}
	vm.Must(t, "sed -i s/10.0.2.2}/10.0.2.2,\\ metric:\\ 5}/ /etc/netplan/50-guest.yaml")
	if r := g.run("return netplan.apply()"); r.Error != nil {
		t.Error(r)
	}
	good = g.look()
	reply, wrong = configure(&pb.ConfigureNetworkRequest{NetplanConfig: guestNet(better, ""), ApplyNow: true, Override: true})
	if reply.Success || !strings.Contains(wrong, "10.0.2.77 does not answer") {
		t.Error("a wrong gateway is taken from a host:", reply, wrong)
	}
	t.Log(wrong)
	if now := g.look(); now != good {
		t.Errorf("a host's request was taken back to\n%s\nfrom\n%s", now, good)
	}
	if reply, wrong := configure(&pb.ConfigureNetworkRequest{NetplanConfig: host, ApplyNow: true}); !reply.Success || !reply.Changed {
		t.Error(reply, wrong)
	}
	if got := vm.Must(t, "cat /sys/class/net/ens4/mtu; stat -c %a /etc/netplan/99-limiquantix.yaml"); got != "1450\n600" {
		t.Errorf("%q", got)
	}
	good = g.look()

	hanging := "netplan.set('60-second', [[" + ens4Named + "]], {override = true})\n" + set("50-guest", guestNet(ens3Wrong, ""), "{timeout = 200}")
	begin := func() {
		go func() {
			_, _ = client.Call[*pb.RunScriptResponse](context.WithoutCancel(g.ctx), g.c, &pb.RunScriptRequest{Source: []byte(hanging)})
		}()
		eventually(t, vm, "the wrong gateway is there", "ip route | grep -q 10.0.2.77")
	}
	begin()
	if err := g.c.Alive(g.ctx); err != nil {
		t.Error("while a network is tried no ping is answered:", err)
	}
	vm.Must(t, "systemctl kill --kill-whom=main -s KILL quantix-kvm-agent")
	g.c.Close()
	g.c = dial(t, vm, vmtest.AgentPort, client.Options{})
	eventually(t, vm, "the killed agent's network is taken back", "! quantix-kvm-agent status | grep -q 'recovering\\|waiting'")
	if now := g.look(); now != good {
		t.Errorf("after a kill it is\n%s\nfrom\n%s", now, good)
	}

	begin()
	if err := vm.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := vm.PowerOn(g.ctx); err != nil {
		t.Fatal(err)
	}
	g.c.Close()
	g.c = dial(t, vm, vmtest.AgentPort, client.Options{})
	eventually(t, vm, "the network is there again", "! quantix-kvm-agent status | grep -q 'recovering\\|waiting' && ip route | grep -q 'default via 10.0.2.2' && ip addr | grep -q 10.0.3.15")
	if now := g.look(); now != good {
		t.Errorf("after a power cut it is\n%s\nfrom\n%s", now, good)
	}
	if r := g.run("return netplan.status().pending"); r.Result.GetBoolValue() || r.Error != nil {
		t.Error(r)
	}
}

// noAutoDefault keeps NetworkManager from asking for addresses on each interface that it sees.
const noAutoDefault = "printf '[main]\\nno-auto-default=*\\n' > /etc/NetworkManager/conf.d/10-test.conf"

// The same with NetworkManager as the renderer of one interface.
func TestNetplanWithNetworkManager(t *testing.T) {
	if rounds(0) == 0 {
		t.Skip("set QUANTIX_ROUNDS: it takes minutes")
	}
	vm := machine(t, vmtest.Options{})
	startAgent(t, vm)
	g := &netGuest{VM: vm, t: t, ctx: limited(t, 15*time.Minute), c: dial(t, vm, vmtest.AgentPort, client.Options{})}
	managed := func(text string) string {
		return "network: {version: 2, ethernets: {ens4: {renderer: NetworkManager, " + text + "}}}\n"
	}
	const good = "addresses: [10.0.3.15/24], routes: [{to: default, via: 10.0.3.2}]"
	if r := g.run(set("60-second", managed(good), "")); r.Error.GetCode() != "unsupported" || !strings.Contains(r.Error.GetMessage(), "NetworkManager") {
		t.Error("a renderer that does not run:", r)
	}
	vm.Must(t, noAutoDefault+" && systemctl start NetworkManager")
	r := g.run(set("60-second", managed(good), "{timeout = 40}"))
	if r.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		t.Fatal(r)
	}
	t.Log(r.Stats.DurationMs, r.Result)
	show := "ip -o -4 addr show scope global | awk '{print $2, $4}' | sort; ip -4 route | sed 's/ *$//' | sort; ls /sys/class/net; cat /etc/netplan/*; " +
		"for f in /run/NetworkManager/system-connections/netplan-*; do echo $f; cat $f; done"
	before := vm.Must(t, show)
	if !strings.Contains(before, "ens4 10.0.3.15/24") || !strings.Contains(before, "default via 10.0.3.2 dev ens4") {
		t.Error(before)
	}
	r = g.run("for _, l in ipairs(netplan.status().links) do if l.name == 'ens4' then return l.manager .. ' ' .. l.state end end")
	if got := r.Result.GetStringValue(); got != "NetworkManager activated" {
		t.Errorf("ens4 is of %q, %v", got, r.Error)
	}
	if r := g.run("return netplan.apply().changed"); r.Result.GetBoolValue() || r.Error != nil {
		t.Error("a second time it changes", r)
	}
	for _, c := range []struct{ name, script, want string }{
		{"a probe", set("60-second", managed("addresses: [10.0.3.16/24]"), "{timeout = 20, verify = {tcp = '10.0.3.99:1'}}"), "10.0.3.99:1"},
		{"DHCP without a server", set("61-vlan", "network: {version: 2, vlans: {v6: {renderer: NetworkManager, id: 6, link: ens4, dhcp4: true}}}\n", "{timeout = 10}"), "v6"},
		{"another renderer", set("60-second", "network: {version: 2, ethernets: {ens4: {"+good+"}}}\n", ""), "NetworkManager manages it"},
	} {
		r := g.run(c.script)
		if r.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || !strings.Contains(r.Error.GetMessage(), c.want) {
			t.Errorf("%s: %v", c.name, r)
		}
		t.Log(c.name, r.Stats.GetDurationMs(), "ms:", r.Error.GetMessage())
		if now := vm.Must(t, show); now != before {
			t.Errorf("%s: taken back to\n%s\nfrom\n%s", c.name, now, before)
		}
	}
	go func() {
		_, _ = client.Call[*pb.RunScriptResponse](context.WithoutCancel(g.ctx), g.c, &pb.RunScriptRequest{
			Source: []byte(set("60-second", managed("addresses: [10.0.3.16/24]"), "{timeout = 200, verify = {tcp = '10.0.3.99:1'}}"))})
	}()
	eventually(t, vm, "the other address is there", "ip addr | grep -q 10.0.3.16")
	vm.Must(t, "systemctl kill --kill-whom=main -s KILL quantix-kvm-agent")
	g.c.Close()
	g.c = dial(t, vm, vmtest.AgentPort, client.Options{})
	eventually(t, vm, "the killed agent's network is taken back", "! quantix-kvm-agent status | grep -q 'recovering\\|waiting'")
	if now := vm.Must(t, show); now != before {
		t.Errorf("after a kill it is\n%s\nfrom\n%s", now, before)
	}
	if got := vm.Must(t, "busctl get-property org.freedesktop.NetworkManager /org/freedesktop/NetworkManager org.freedesktop.NetworkManager Checkpoints"); got != "ao 0" {
		t.Errorf("checkpoints are left: %s", got)
	}
}

// bareGuest is a guest without netplan; the directory of that is there, and empty. Its network is systemd-networkd's.
func bareGuest(t *testing.T) *netGuest {
	t.Helper()
	if rounds(0) == 0 {
		t.Skip("set QUANTIX_ROUNDS: it takes minutes")
	}
	vm := machine(t, vmtest.Options{})
	startAgent(t, vm)
	vm.Must(t, `mkdir -p /etc/systemd/network && cp /run/systemd/network/10-netplan-ens3.network /etc/systemd/network/20-own.network
		rm /etc/netplan/* /run/systemd/network/* /run/udev/rules.d/*netplan* && mv /usr/libexec/netplan/generate /usr/libexec/netplan/generate.off
		systemctl -q enable systemd-networkd && networkctl reload && udevadm control --reload && udevadm trigger --settle -s net`)
	eventually(t, vm, "the network is there", "ip route | grep -q 'default via 10.0.2.2' && ! networkctl -n0 status ens3 | grep -q pending")
	return &netGuest{VM: vm, t: t, ctx: limited(t, 15*time.Minute), c: dial(t, vm, vmtest.AgentPort, client.Options{})}
}

// second is a configuration of the second interface.
func second(address string) string {
	return "network: {version: 2, ethernets: {ens4: {addresses: [" + address + "/24]}}}\n"
}

// showBare shows the network, and where daemons keep it. NetworkManager counts metrics up with each activation.
const showBare = "ip -o -4 addr show scope global | awk '{print $2, $4}' | sort; ip -4 route | sed 's/ metric 10[0-9]//; s/ *$//' | sort; ls /sys/class/net | grep -v bonding_masters; ls /etc/netplan; " +
	"for f in /etc/systemd/network/* /etc/NetworkManager/system-connections/* /etc/network/interfaces /etc/network/interfaces.d/*; do test -e $f && echo $f && stat -c %a $f && cat $f; done; true"

// suite is what a guest without netplan does with a host's requests, and with scripts. It returns what is there afterwards.
func (g *netGuest) suite() string {
	t := g.t
	t.Helper()
	reply, err := client.Call[*pb.ConfigureNetworkResponse](g.ctx, g.c, &pb.ConfigureNetworkRequest{NetplanConfig: second("10.0.3.15"), ApplyNow: true})
	if err != nil || !reply.Success || !reply.Changed {
		t.Fatal(reply, err)
	}
	t.Log(reply.Steps)
	good := g.Must(t, showBare)
	if !strings.Contains(good, "ens4 10.0.3.15/24") || !strings.Contains(good, "99-limiquantix.yaml") || !strings.Contains(good, "quantix-ens4") {
		t.Error(good)
	}
	reply, err = client.Call[*pb.ConfigureNetworkResponse](g.ctx, g.c, &pb.ConfigureNetworkRequest{NetplanConfig: second("10.0.3.15"), ApplyNow: true})
	if err != nil || reply.Changed {
		t.Errorf("a second time: %v, %v", reply, err)
	}
	for _, c := range []struct{ name, script, want string }{
		{"a wrong gateway", set("50-guest", guestNet(ens3Wrong, ""), "{timeout = 12}"), "10.0.2.77"},
		{"a probe", set("99-limiquantix", second("10.0.3.16"), "{timeout = 12, verify = {tcp = '10.0.3.99:1'}}"), "10.0.3.99:1"},
		{"what it cannot say", set("99-limiquantix", "network: {version: 2, ethernets: {ens4: {dhcp4: true, wakeonlan: true}}}\n", ""), "ethernets.ens4.wakeonlan"},
	} {
		r := g.run(c.script)
		if r.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || !strings.Contains(r.Error.GetMessage(), c.want) {
			t.Errorf("%s: %v", c.name, r)
		}
		t.Log(c.name, r.Stats.GetDurationMs(), "ms:", r.Error.GetMessage())
		if now := g.Must(t, showBare); now != good {
			t.Errorf("%s: taken back to\n%s\nfrom\n%s", c.name, now, good)
		}
	}
	return good
}

// A guest of systemd-networkd alone: the files that are made for it are there after a power cut as they were.
func TestNetworkdWithoutNetplan(t *testing.T) {
	g := bareGuest(t)
	good := g.suite()
	g.powerFails(good)
}

// powerFails cuts the power while a wrong network is tried, and sees that it is as it was.
func (g *netGuest) powerFails(good string) {
	t := g.t
	t.Helper()
	go func() {
		_, _ = client.Call[*pb.RunScriptResponse](context.WithoutCancel(g.ctx), g.c, &pb.RunScriptRequest{
			Source: []byte(set("50-guest", guestNet(ens3Wrong, ""), "{timeout = 200}"))})
	}()
	eventually(t, g.VM, "the wrong gateway is there", "ip route | grep -q 10.0.2.77")
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := g.PowerOn(g.ctx); err != nil {
		t.Fatal(err)
	}
	g.c.Close()
	g.c = dial(t, g.VM, vmtest.AgentPort, client.Options{})
	eventually(t, g.VM, "the network is there again", "! quantix-kvm-agent status | grep -q 'recovering\\|waiting' && ip route | grep -q 'default via 10.0.2.2' && ip addr | grep -q 10.0.3.15")
	if now := g.Must(t, showBare); now != good {
		t.Errorf("after a power cut it is\n%s\nfrom\n%s", now, good)
	}
}

// A guest of NetworkManager alone.
func TestNetworkManagerWithoutNetplan(t *testing.T) {
	g := bareGuest(t)
	g.Must(t, `rm /etc/systemd/network/*; systemctl -q disable --now systemd-networkd.socket systemd-networkd
		ip addr flush dev ens3
		install -m 600 /dev/stdin /etc/NetworkManager/system-connections/own.nmconnection <<'EOF'
[connection]
id=own
type=ethernet
interface-name=ens3

[ipv4]
method=manual
address1=10.0.2.15/24,10.0.2.2
EOF
		`+noAutoDefault+`; systemctl start NetworkManager`)
	eventually(t, g.VM, "NetworkManager has the network", "ip route | grep -q 'default via 10.0.2.2'")
	g.suite()
}

// A guest of ifupdown alone, where the administrator's file has an interface that a host configures then.
func TestIfupdownWithoutNetplan(t *testing.T) {
	g := bareGuest(t)
	g.Must(t, `rm /etc/systemd/network/*; systemctl -q disable --now systemd-networkd.socket systemd-networkd; ip addr flush dev ens3
		cat > /etc/network/interfaces <<'EOF'
auto lo ens3
iface lo inet loopback
iface ens3 inet static
    address 10.0.2.15/24
    gateway 10.0.2.2
EOF
		systemctl -q enable networking; ip link set ens3 down; ifup ens3`)
	eventually(t, g.VM, "ifupdown has the network", "ip route | grep -q 'default via 10.0.2.2'")
	admin := g.Must(t, "cat /etc/network/interfaces")
	good := g.suite()
	vlan := "network: {version: 2, vlans: {v7: {id: 7, link: ens4, addresses: [192.0.2.7/24]}}}\n"
	if r := g.run(set("70-vlan", vlan, "")); r.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		t.Error(r)
	}
	g.Must(t, "ip -d link show v7 | grep -q 'id 7 ' && ip addr show v7 | grep -q 192.0.2.7")
	if r := g.run(set("70-vlan", strings.Replace(vlan, "id: 7", "id: 8", 1), "") + " and error('after that')"); r.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		t.Error(r)
	}
	g.Must(t, "ip -d link show v7 | grep -q 'id 7 ' && ip addr show v7 | grep -q 192.0.2.7")
	lease := "network: {version: 2, ethernets: {ens4: {dhcp4: true}}}\n"
	if r := g.run(set("99-limiquantix", lease, "{timeout = 60}")); r.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		t.Error("by DHCP:", r)
	}
	g.Must(t, "ip -o -4 addr show dev ens4 | grep -q dynamic && pgrep dhclient")
	if r := g.run("netplan.remove('70-vlan') netplan.remove('99-limiquantix') return netplan.apply()"); r.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		t.Error(r)
	}
	if got := g.Must(t, "ip -o link show v7 2>/dev/null || true; ip -o -4 addr show dev ens4; pgrep dhclient || true; cat /etc/network/interfaces; ls /etc/network/interfaces.d"); got != admin {
		t.Errorf("when nothing is asked for any more:\n%s", got)
	}
	g.bridged()
	if r := g.run(set("99-limiquantix", second("10.0.3.15"), "")); r.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || g.Must(t, showBare) != good {
		t.Error(r, g.Must(t, showBare))
	}
	g.powerFails(good)
}

// bridged makes a bridge of a bond of the second interface, changes it and takes it away.
func (g *netGuest) bridged() {
	t := g.t
	const bridge = "network: {version: 2, ethernets: {ens4: {}}, bonds: {bond0: {interfaces: [ens4], parameters: {mode: active-backup, " +
		"mii-monitor-interval: 100, primary: ens4}}}, bridges: {br0: {interfaces: [bond0], addresses: [192.0.2.8/24], " +
		"parameters: {stp: false, priority: 100}}}}\n"
	const there = "ip -d link show br0 | grep -q 'priority 100 ' && ip link show bond0 | grep -q 'master br0 ' && " +
		"ip -d link show bond0 | grep -q 'bond mode active-backup .*primary ens4 ' && ip link show ens4 | grep -q 'master bond0 ' && " +
		"ip addr show br0 | grep -q 192.0.2.8 && ! ip addr show ens4 | grep inet"
	if r := g.run(set("70-bridge", bridge, "")); r.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		t.Error(r)
	}
	g.Must(t, there)
	if r := g.run("netplan.set('70-bridge', [[" + bridge + "]]) return netplan.apply()"); r.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || len(r.Changes) > 0 {
		t.Error("a second time:", r)
	}
	if r := g.run(set("70-bridge", strings.Replace(bridge, "100}}}}", "200}}}}", 1), "") + " and error('after that')"); r.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		t.Error(r)
	}
	g.Must(t, there)
	if r := g.run("netplan.remove('70-bridge') return netplan.apply()"); r.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED {
		t.Error(r)
	}
	g.Must(t, "! ip link show br0 && ! ip link show bond0 && ! ls /etc/network/interfaces.d/quantix-*")
}

// The power fails at some moment of a change: the guest has its old network afterwards, or the new one, and never none.
func TestPowerLossDuringNetplanApply(t *testing.T) {
	if rounds(0) == 0 {
		t.Skip("set QUANTIX_ROUNDS: each round boots the guest")
	}
	vm := machine(t, vmtest.Options{})
	startAgent(t, vm)
	ctx := limited(t, 90*time.Minute)
	addresses, changed := []string{"10.0.2.15", "10.0.2.16"}, 0
	now := 0
	for round := range rounds(0) {
		c := dial(t, vm, vmtest.AgentPort, client.Options{})
		eventually(t, vm, "the agent is ready", "! quantix-kvm-agent status | grep -q 'recovering\\|waiting'")
		text := strings.Replace(guestNet(ens3Good, ""), addresses[0], addresses[1-now], 1)
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = client.Call[*pb.RunScriptResponse](ctx, c, &pb.RunScriptRequest{Source: []byte(set("50-guest", text, ""))})
		}()
		select { // the whole takes two to five seconds, emulated
		case <-done:
		case <-time.After(time.Duration(rand.Int64N(int64(6 * time.Second)))):
		}
		if err := vm.Kill(); err != nil {
			t.Fatal(err)
		}
		<-done
		c.Close()
		if err := vm.PowerOn(ctx); err != nil {
			t.Fatal(err)
		}
		eventually(t, vm, "there is a network", "ping -c1 -W2 10.0.2.2")
		eventually(t, vm, "the agent is ready", "! quantix-kvm-agent status | grep -q 'recovering\\|waiting'")
		got := vm.Must(t, "ip -o -4 addr show dev ens3 | awk '{print $4}'; grep -o 'addresses: .[0-9.]*' /etc/netplan/50-guest.yaml | grep -o '[0-9.]*$'; ip -4 route | grep -c ^default")
		switch got {
		case addresses[now] + "/24\n" + addresses[now] + "\n1":
		case addresses[1-now] + "/24\n" + addresses[1-now] + "\n1":
			now, changed = 1-now, changed+1
		default:
			t.Fatalf("round %d: the network is %q", round, got)
		}
	}
	t.Logf("%d of %d changes were committed", changed, rounds(0))
}
