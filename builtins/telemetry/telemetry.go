// Package telemetry takes the reports on the running guest, and says when one is due before its time.
//
//	/proc/stat, before and now ─┐
//	memory, load, links, disks ─┴─► Sampler.Report ──► TelemetryReport
//	rtnetlink, mountinfo, uevents ─► Sampler.Watch ─┬► something that hosts see has changed
//	the kernel's log, its counter ──────────────────┴► ErrorEvent oom_kill
//
// A report never waits for a file system, a name server or another process. While nobody watches nothing runs.
//
// Not here: the period of reports, and inventory.
package telemetry

import (
	"context"
	"sync"
	"time"

	"github.com/shirou/gopsutil/v3/cpu"

	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// minimumSpan is the shortest time over which processor usage is measured: the kernel counts in ticks of up to 10 ms, which
// over a shorter time would distort the result.
const minimumSpan = 200 * time.Millisecond

// Sampler takes reports. Processor usage is that since the report before. It is safe for concurrent use.
type Sampler struct {
	root      string // of the guest: "/", or a tree that is not booted
	disks     facts.Disks
	container string // what runs the container that the guest is; empty: it is a machine
	cgroup    string // of the container
	watch     watcher

	mu   sync.Mutex
	last times     // the sample before
	at   time.Time // when it was taken
	busy float64   // percent, as last measured
}

// times are the seconds of all processors together since boot.
type times struct{ busy, idle float64 }

// New returns a Sampler that has taken its first sample: the first report covers the time since New. root is "/", or that of a
// tree that is not booted: of such a one the reports have the name, and no interfaces; all else is that of the running machine.
func New(root string) *Sampler {
	s := &Sampler{root: root, at: time.Now(), container: facts.ContainerKind()}
	s.last, _ = readTimes(context.Background())
	if s.container != "" {
		s.cgroup = facts.GuestCgroup()
	}
	s.watch.init(root, s.container != "", s.cgroup)
	return s
}

// Close frees what New opened. No report and no watch comes after it.
func (s *Sampler) Close() error { return s.watch.close() }

// Watch reports, until ctx ends, when what a report says of addresses, links, disks or the host name has changed since the
// call: changed then has a value, at most once a second, and within a second of the change. events are processes that the
// kernel killed since New because memory was short, those among them that came while nobody watched. Both channels are only for
// the caller, who reads them soon, else events are dropped; they are not closed. On Windows there are no values.
func (s *Sampler) Watch(ctx context.Context) (changed <-chan struct{}, events <-chan *pb.ErrorEvent) {
	return s.watch.subscribe(ctx)
}

// Report describes the guest now. A value that cannot be read is 0, and a list is then empty; load averages are 0 on
// Windows, which has none. Links that only serve containers are left out, and so is loopback. Of a file system that hangs
// the last values are reported for a minute, then none.
func (s *Sampler) Report(ctx context.Context) *pb.TelemetryReport {
	s.watch.countKills()
	report := &pb.TelemetryReport{CpuUsagePercent: s.usage(ctx), Hostname: facts.Hostname(s.root)}
	if m, err := facts.ReadMemory(ctx); err == nil {
		// The host shows Total less Used as available, so the two must add up.
		report.MemoryTotalBytes, report.MemoryAvailableBytes, report.MemoryUsedBytes = m.Total, m.Available, m.Total-m.Available
		report.SwapTotalBytes, report.SwapUsedBytes = m.SwapTotal, m.SwapTotal-min(m.SwapFree, m.SwapTotal)
	}
	report.LoadAvg_1, report.LoadAvg_5, report.LoadAvg_15 = facts.Load(ctx)
	if n, err := facts.Processes(ctx); err == nil {
		report.ProcessCount = uint32(n)
	}
	if up, err := facts.Uptime(ctx); err == nil {
		report.UptimeSeconds = uint64(up / time.Second)
	}
	if links, err := linksOf(s.root); err == nil {
		report.Interfaces = interfaces(links)
	}
	if disks, err := s.disks.Read(ctx); err == nil {
		for _, d := range disks {
			report.Disks = append(report.Disks, &pb.DiskUsage{MountPoint: d.Mount, Filesystem: d.Type, Device: d.Device,
				TotalBytes: d.Total, UsedBytes: d.Used, AvailableBytes: d.Available,
				UsagePercent: 100 * float64(d.Used) / float64(d.Total), InodesTotal: d.Inodes, InodesUsed: d.InodesUsed})
		}
	}
	for _, d := range facts.BlockDevices() {
		report.BlockDevices = append(report.BlockDevices,
			&pb.BlockDevice{Name: d.Name, SizeBytes: d.Size, ReadOnly: d.ReadOnly, Removable: d.Removable})
	}
	report.Pressure = pressure(facts.ReadPressure(s.cgroup))
	if s.container != "" {
		l := facts.ReadLimits(s.cgroup)
		report.Container = &pb.ContainerInfo{
			Kind: s.container, MemoryLimitBytes: l.Memory, MemoryUsedBytes: l.MemoryUsed, CpuLimit: l.CPUs,
		}
	}
	return report
}

// linksOf are the interfaces of the running machine; a tree that is not booted has none.
func linksOf(root string) ([]facts.Link, error) {
	if root != "/" {
		return nil, nil
	}
	return facts.Links()
}

func pressure(p *facts.Pressure) *pb.Pressure {
	if p == nil {
		return nil
	}
	stall := func(s facts.Stall) *pb.PressureStall {
		return &pb.PressureStall{
			SomeAvg10: s.Some.Avg10, SomeAvg60: s.Some.Avg60, SomeAvg300: s.Some.Avg300, SomeTotalUs: s.Some.TotalMicroseconds,
			FullAvg10: s.Full.Avg10, FullAvg60: s.Full.Avg60, FullAvg300: s.Full.Avg300, FullTotalUs: s.Full.TotalMicroseconds,
		}
	}
	return &pb.Pressure{Cpu: stall(p.CPU), Memory: stall(p.Memory), Io: stall(p.IO)}
}

// usage returns how busy the processors were since the sample before, in percent of all of them.
func (s *Sampler) usage(ctx context.Context) float64 {
	now, err := readTimes(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil || time.Since(s.at) < minimumSpan {
		return s.busy
	}
	// Counters may decrease a little, when a processor goes offline or idle time is corrected.
	busy, idle := max(now.busy-s.last.busy, 0), max(now.idle-s.last.idle, 0)
	s.last, s.at = now, time.Now()
	if busy+idle > 0 {
		s.busy = 100 * busy / (busy + idle)
	}
	return s.busy
}

// readTimes reads the counters. Guest time is part of user time already. Stolen time counts as busy: the guest wanted to
// run.
func readTimes(ctx context.Context) (times, error) {
	all, err := cpu.TimesWithContext(ctx, false)
	if err != nil || len(all) == 0 {
		return times{}, err
	}
	t := all[0]
	return times{busy: t.User + t.Nice + t.System + t.Irq + t.Softirq + t.Steal, idle: t.Idle + t.Iowait}, nil
}

// interfaces converts links. Addresses have no prefix length, since the host shows them as they are.
func interfaces(links []facts.Link) []*pb.InterfaceInfo {
	var list []*pb.InterfaceInfo
	names := map[int]string{}
	for _, l := range links {
		names[l.Index] = l.Name
	}
	for _, l := range links {
		if l.Loopback || l.Plumbing {
			continue
		}
		info := &pb.InterfaceInfo{Name: l.Name, MacAddress: l.MAC, State: pb.InterfaceState_INTERFACE_STATE_DOWN, Mtu: l.MTU,
			RxBytes: l.RxBytes, TxBytes: l.TxBytes, RxPackets: l.RxPackets, TxPackets: l.TxPackets, Kind: l.Kind}
		if l.Master != 0 {
			info.Master = names[l.Master]
		}
		if l.Up {
			info.State = pb.InterfaceState_INTERFACE_STATE_UP
		}
		var lengths4, lengths6 []uint32
		for _, prefix := range l.Prefixes {
			if addr := prefix.Addr(); addr.Is4() {
				info.Ipv4Addresses, lengths4 = append(info.Ipv4Addresses, addr.String()), append(lengths4, uint32(prefix.Bits()))
			} else {
				info.Ipv6Addresses, lengths6 = append(info.Ipv6Addresses, addr.String()), append(lengths6, uint32(prefix.Bits()))
			}
		}
		info.Prefixes = append(lengths4, lengths6...)
		list = append(list, info)
	}
	return list
}
