//go:build vm

package vmtest_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// network is a container in which systemd-networkd has an interface, with a gateway at the other end of its cable, and the
// agent runs.
type network struct {
	*container
	agent     *client.Client
	bus       *dbus.Conn
	signals   chan *dbus.Signal
	link      dbus.ObjectPath
	addresses chan string     // that the kernel has just got
	rows      []time.Duration // what the operation itself took, without the request around it
}

// bootAgent boots a container in which the agent of this tree runs; prepare is a line of shell, run in its root before.
func bootAgent(b testing.TB, prepare string) (*container, *client.Client) {
	b.Helper()
	program := filepath.Join(b.TempDir(), "quantix-kvm-agent")
	cmd := exec.Command("go", "build", "-trimpath", "-o", program, "../../../quantix-kvm-agent")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	c := bootContainer(b, containerOptions{prepare: `mkdir -p etc/quantix-kvm
		echo 'device_path: unix:/run/test.sock' > etc/quantix-kvm/agent.yaml
		` + prepare})
	content, err := os.ReadFile(program)
	must(b, err)
	must(b, os.WriteFile(filepath.Join(c.root, "usr/bin/quantix-kvm-agent"), content, 0o755))
	c.run("systemd-run -q --unit=agent -p Restart=always -p RestartSec=0.1 -p StartLimitIntervalSec=0 /usr/bin/quantix-kvm-agent")
	agent := c.agent()
	b.Cleanup(func() { agent.Close() })
	c.status()
	return c, agent
}

func bootNetwork(b testing.TB) *network {
	b.Helper()
	c, agent := bootAgent(b, `rm -f etc/netplan/*
		ln -sf /lib/systemd/system/systemd-networkd.service etc/systemd/system/multi-user.target.wants/`)
	n := &network{container: c, agent: agent}
	gateway := exec.Command("sleep", "3600")
	gateway.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	must(b, gateway.Start())
	b.Cleanup(func() { _ = gateway.Process.Kill(); _ = gateway.Wait() })
	out, err := exec.Command("sh", "-ec", fmt.Sprintf(`
		nsenter -t %d -n ip link add lan0 type veth peer name there netns %d
		nsenter -t %[2]d -n ip addr add 192.0.2.1/24 dev there
		nsenter -t %[2]d -n ip link set there up`, n.init, gateway.Process.Pid)).CombinedOutput()
	if err != nil {
		b.Fatalf("%v %s", err, out)
	}
	n.write("192.0.2.10")
	n.run("/usr/libexec/netplan/generate && networkctl reload")
	n.run("timeout 60 sh -c 'until networkctl -n0 status lan0 | grep -q \"(configured)\"; do sleep 0.1; done'")
	n.bus, err = dbus.Connect("unix:path=" + filepath.Join(n.root, "run/dbus/system_bus_socket"))
	must(b, err)
	b.Cleanup(func() { n.bus.Close() })
	n.signals = make(chan *dbus.Signal, 1024)
	n.bus.Signal(n.signals)
	must(b, n.bus.AddMatchSignal(dbus.WithMatchSender("org.freedesktop.network1")))
	var links []struct {
		Index int32
		Name  string
		Path  dbus.ObjectPath
	}
	networkd := n.bus.Object("org.freedesktop.network1", "/org/freedesktop/network1")
	must(b, networkd.Call("org.freedesktop.network1.Manager.ListLinks", 0).Store(&links))
	for _, l := range links {
		if l.Name == "lan0" {
			n.link = l.Path
		}
	}
	monitor := exec.Command("nsenter", "-t", fmt.Sprint(n.init), "-n", "ip", "-o", "-4", "monitor", "address")
	monitor.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	pipe, err := monitor.StdoutPipe()
	must(b, err)
	must(b, monitor.Start())
	b.Cleanup(func() { _ = monitor.Process.Kill(); _ = monitor.Wait() })
	n.addresses = make(chan string, 1024)
	go func() {
		for lines := bufio.NewScanner(pipe); lines.Scan(); {
			n.addresses <- lines.Text()
		}
	}()
	return n
}

func netText(address string) string {
	return "network: {version: 2, ethernets: {lan0: {addresses: [" + address + "/24], routes: [{to: default, via: 192.0.2.1}]}}}\n"
}

func (n *network) write(address string) {
	n.Helper()
	must(n, os.WriteFile(filepath.Join(n.root, "etc/netplan/99-limiquantix.yaml"), []byte(netText(address)), 0o600))
}

func (n *network) drain() {
	for len(n.signals) > 0 {
		<-n.signals
	}
	for len(n.addresses) > 0 {
		<-n.addresses
	}
}

// configure has the agent write a file of netplan, or apply it.
func (n *network) configure(address string, apply bool) time.Duration {
	n.Helper()
	start := time.Now()
	r, err := client.Call[*pb.ConfigureNetworkResponse](limited(n, time.Minute), n.agent, &pb.ConfigureNetworkRequest{
		NetplanConfig: netText(address), ApplyNow: apply,
	})
	if err != nil || !r.Success || !r.Changed {
		n.Fatal(r, err)
	}
	took := time.Since(start)
	if len(r.Steps) > 0 {
		n.rows = append(n.rows, time.Duration(r.Steps[len(r.Steps)-1].At*float64(time.Second)))
	}
	return took
}

// generate runs the generator alone.
func (n *network) generate() time.Duration {
	start := time.Now()
	cmd := exec.Command("/usr/libexec/netplan/generate")
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: n.root}
	cmd.Dir = "/"
	if out, err := cmd.CombinedOutput(); err != nil {
		n.Fatalf("%v %s", err, out)
	}
	return time.Since(start)
}

// reload has systemd-networkd read its files, and measures until the address is there, and until it says that the interface is
// configured.
func (n *network) reload(address string) (there, configured time.Duration) {
	n.Helper()
	ctx := limited(n, time.Minute)
	start := time.Now()
	call := n.bus.Object("org.freedesktop.network1", "/org/freedesktop/network1").Go("org.freedesktop.network1.Manager.Reload", 0, nil)
	began := false
	for there == 0 || configured == 0 {
		select {
		case line := <-n.addresses:
			if strings.Contains(line, address+"/") && !strings.Contains(line, "Deleted") {
				there = time.Since(start)
			}
		case s := <-n.signals:
			if s.Path != n.link || len(s.Body) < 2 {
				continue
			}
			changed, _ := s.Body[1].(map[string]dbus.Variant)
			state, _ := changed["AdministrativeState"].Value().(string)
			began = began || state == "configuring"
			if began && state == "configured" {
				configured = time.Since(start)
			}
		case <-ctx.Done():
			n.Fatal("no address: ", context.Cause(ctx), there, configured, began)
		}
	}
	<-call.Done
	return there, configured
}

func median(list []time.Duration) time.Duration {
	list = slices.Sorted(slices.Values(list))
	return list[len(list)/2]
}

// BenchmarkNetplanApply measures what a file of netplan takes to be set, beside its generator alone, and to be applied, beside
// systemd-networkd alone: from the request to read its files until the kernel has the address, and until it says that the
// interface is configured. It is on this machine's own kernel, without emulation, and the sides take turns.
func BenchmarkNetplanApply(b *testing.B) {
	n := bootNetwork(b)
	var sets, applies, generates, theres, configureds []time.Duration
	number := 10
	next := func() string {
		number = 10 + (number-9)%200
		return fmt.Sprintf("192.0.2.%d", number)
	}
	turn := func() {
		address := next()
		sets = append(sets, n.configure(address, false))
		applies = append(applies, n.configure(address, true))
		time.Sleep(100 * time.Millisecond)
		n.drain()
		address = next()
		n.write(address)
		generates = append(generates, n.generate())
		there, configured := n.reload(address)
		theres, configureds = append(theres, there), append(configureds, configured)
		time.Sleep(100 * time.Millisecond)
	}
	for b.Loop() {
		for range 10 { // few turns say nothing
			turn()
		}
	}
	ms := func(list []time.Duration, name string) float64 {
		value := float64(median(list).Microseconds()) / 1000
		b.ReportMetric(value, name)
		return value
	}
	set, apply := ms(sets, "set-ms"), ms(applies, "apply-ms")
	row := ms(n.rows, "row-ms")
	b.ReportMetric(row/ms(theres, "address-ms"), "row/address")
	generate, there, configured := ms(generates, "generator-ms"), ms(theres, "address-ms"), ms(configureds, "configured-ms")
	b.ReportMetric(set/generate, "set/generator")
	b.ReportMetric(apply/there, "apply/address")
	b.ReportMetric(apply/configured, "apply/configured")
	b.ReportMetric(0, "ns/op")
}
