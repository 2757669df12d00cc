package telemetry

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func TestReport(t *testing.T) {
	report := New("/").Report(context.Background())
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	if report.GetHostname() != name || report.GetUptimeSeconds() == 0 || report.GetProcessCount() == 0 {
		t.Error(report)
	}
	if report.GetMemoryTotalBytes() == 0 || report.GetMemoryUsedBytes()+report.GetMemoryAvailableBytes() != report.GetMemoryTotalBytes() ||
		report.GetSwapUsedBytes() > report.GetSwapTotalBytes() {
		t.Error(report)
	}
	if !slices.ContainsFunc(report.GetDisks(), func(d *pb.DiskUsage) bool { return d.GetMountPoint() == "/" }) {
		t.Error("no root file system in", report.GetDisks())
	}
	for _, d := range report.GetDisks() {
		if d.GetUsagePercent() < 0 || d.GetUsagePercent() > 100 || d.GetUsedBytes() > d.GetTotalBytes() {
			t.Error(d)
		}
	}
	for _, i := range report.GetInterfaces() {
		if i.GetName() == "lo" || i.GetMtu() == 0 || i.GetState() == pb.InterfaceState_INTERFACE_STATE_UNKNOWN ||
			len(i.GetPrefixes()) != len(i.GetIpv4Addresses())+len(i.GetIpv6Addresses()) {
			t.Error(i)
		}
	}
}

func TestUsageSinceLastReport(t *testing.T) {
	if online, _ := os.ReadFile("/sys/devices/system/cpu/online"); strings.TrimSpace(string(online)) != "0-"+string(rune('0'+runtime.NumCPU()-1)) {
		t.Skipf("needs all processors: this process may use %d of %s", runtime.NumCPU(), online)
	}
	s := New("/")
	s.Report(context.Background())
	deadline := time.Now().Add(time.Second)
	var all sync.WaitGroup
	for range runtime.NumCPU() {
		all.Add(1)
		go func() {
			defer all.Done()
			for time.Now().Before(deadline) {
			}
		}()
	}
	all.Wait()
	if busy := s.Report(context.Background()).GetCpuUsagePercent(); busy < 80 || busy > 100 {
		t.Errorf("%f percent with every processor busy", busy)
	}
}

func TestUsageBelowMinimumSpan(t *testing.T) {
	s := New("/")
	s.busy, s.at = 42, time.Now().Add(time.Hour) // less than minimumSpan ago
	if busy := s.Report(context.Background()).GetCpuUsagePercent(); busy != 42 {
		t.Error(busy)
	}
}

func TestUsageWithDecreasingCounters(t *testing.T) {
	s := New("/")
	s.last, s.at = times{busy: 1e12, idle: 1e12}, time.Now().Add(-time.Minute)
	if busy := s.Report(context.Background()).GetCpuUsagePercent(); busy != 0 {
		t.Error(busy)
	}
	s.at = time.Now().Add(-time.Minute)
	if busy := s.Report(context.Background()).GetCpuUsagePercent(); busy < 0 || busy > 100 {
		t.Error(busy)
	}
}

func TestInterfaces(t *testing.T) {
	got := interfaces([]facts.Link{
		{Name: "lo", Loopback: true},
		{Name: "docker0", Plumbing: true},
		{Name: "lolan0", Up: true, MTU: 1400, RxBytes: 1, TxBytes: 2, RxPackets: 3, TxPackets: 4, Prefixes: []netip.Prefix{
			netip.MustParsePrefix("2001:db8::7/64"), netip.MustParsePrefix("192.0.2.7/24"), netip.MustParsePrefix("192.0.2.8/32")}},
		{Name: "down0", MTU: 1500},
	})
	if len(got) != 2 {
		t.Fatal(got)
	}
	l := got[0]
	if !slices.Equal(l.GetIpv4Addresses(), []string{"192.0.2.7", "192.0.2.8"}) || !slices.Equal(l.GetIpv6Addresses(), []string{"2001:db8::7"}) ||
		!slices.Equal(l.GetPrefixes(), []uint32{24, 32, 64}) || l.GetState() != pb.InterfaceState_INTERFACE_STATE_UP || l.GetMtu() != 1400 ||
		l.GetRxBytes() != 1 || l.GetTxBytes() != 2 || l.GetRxPackets() != 3 || l.GetTxPackets() != 4 {
		t.Error(l)
	}
	if got[1].GetState() != pb.InterfaceState_INTERFACE_STATE_DOWN {
		t.Error(got[1])
	}
}

func BenchmarkReport(b *testing.B) {
	s := New("/")
	for b.Loop() {
		s.Report(context.Background())
	}
}

// A tree that is not booted has the name that its files say, and no interface of the machine that works on it.
func TestReportOfATree(t *testing.T) {
	root := t.TempDir()
	if err := errors.Join(os.Mkdir(root+"/etc", 0o755), os.WriteFile(root+"/etc/hostname", []byte("box\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	s := New(root)
	defer s.Close()
	if report := s.Report(t.Context()); report.Hostname != "box" || len(report.Interfaces) > 0 {
		t.Error(report)
	}
}
