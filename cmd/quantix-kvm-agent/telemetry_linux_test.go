package main

import (
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Every host hears of an address at once, and not at the end of the period, which is a day here.
func TestTelemetryAtOnce(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root for a network namespace: run the test binary as root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs ip of iproute2")
	}
	done := make(chan struct{})
	go func() { // on a thread that ends with the namespace, which what it starts is in, too
		defer close(done)
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("no network namespace: %v", err)
			return
		}
		telemetryAtOnce(t)
	}()
	<-done
}

func telemetryAtOnce(t *testing.T) {
	ip := func(args string) {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			t.Errorf("ip %s: %v %s", args, err, out)
		}
	}
	ip("link set lo up")
	ip("link add lan0 type ifb")
	ip("link set lan0 up")
	a := agenttest.Start(t, agenttest.Options{Config: "telemetry_interval_secs: 86400\n"})
	var hosts []chan *pb.TelemetryReport
	for range 2 {
		reports := make(chan *pb.TelemetryReport, 1000)
		hosts = append(hosts, reports)
		c := a.Client(t, client.Options{Event: func(_ string, event proto.Message) {
			if report, ok := event.(*pb.TelemetryReport); ok {
				reports <- report
			}
		}})
		if err := c.AskTelemetry(ctxFor(t, time.Minute)); err != nil {
			t.Error(err)
			return
		}
	}
	find := func(report *pb.TelemetryReport, name string) *pb.InterfaceInfo {
		at := slices.IndexFunc(report.GetInterfaces(), func(i *pb.InterfaceInfo) bool { return i.Name == name })
		if at < 0 {
			return nil
		}
		return report.Interfaces[at]
	}
	for _, step := range []struct {
		args string
		seen func(r *pb.TelemetryReport) bool
	}{
		{"addr add 192.0.2.7/24 dev lan0", func(r *pb.TelemetryReport) bool {
			return slices.Equal(find(r, "lan0").GetIpv4Addresses(), []string{"192.0.2.7"})
		}},
		{"tuntap add mode tap name eth9", func(r *pb.TelemetryReport) bool { return find(r, "eth9").GetKind() == "tun" }},
		{"link add lo77 type ifb", func(r *pb.TelemetryReport) bool { return find(r, "lo77").GetKind() == "ifb" }},
		{"link del lo77", func(r *pb.TelemetryReport) bool { return find(r, "lo77") == nil }},
		{"addr del 192.0.2.7/24 dev lan0", func(r *pb.TelemetryReport) bool { return len(find(r, "lan0").GetIpv4Addresses()) == 0 }},
	} {
		ip(step.args)
		begin := time.Now()
		for n, reports := range hosts {
			for seen := false; !seen; {
				select {
				case report := <-reports:
					seen = step.seen(report)
				case <-time.After(time.Minute):
					t.Errorf("host %d was not told of: ip %s", n, step.args)
					return
				}
			}
			t.Logf("host %d was told of %q after %s", n, step.args, time.Since(begin))
		}
	}
}
