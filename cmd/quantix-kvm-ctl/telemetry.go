package main

import (
	"context"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func (a *app) telemetryCommand() *cobra.Command {
	var watch bool
	c := &cobra.Command{
		Use:   "telemetry",
		Short: "show how busy and how full the guest is",
		Long: `telemetry asks the agent for a fresh report and shows it. With --watch it shows each report that the agent sends by itself,
a line each, until interrupted; how often is the agent's configuration (telemetry_interval_secs, 5 seconds). A change of an
address, a link or a disk is reported at once; a process that the guest's kernel killed for want of memory is named on stderr.

PRESSURE is the share of the last 10 seconds in which some tasks waited for processors, memory or disks. KIND of an interface is
what the kernel says: physical, bridge, bond, vlan, tun, wireguard and so on.

With --json: a TelemetryReport; with --watch as well, one in each line.`,
		Example: `  quantix-kvm-ctl telemetry
  quantix-kvm-ctl telemetry --watch
  quantix-kvm-ctl telemetry --json | jq .memory_available_bytes`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if watch {
				return a.with(c.Context(), noTimeout, a.watchTelemetry)
			}
			return a.with(c.Context(), requestTimeout, func(s *session) error {
				report, err := a.freshReport(s)
				if err != nil {
					return err
				}
				if a.json {
					return a.printJSON(report)
				}
				return a.printReport(report)
			})
		},
	}
	c.Flags().BoolVar(&watch, "watch", false, "show every report that comes")
	return c
}

// freshReport asks for a report and returns it: the last one before the pong, or the next one where none came before it.
func (a *app) freshReport(s *session) (*pb.TelemetryReport, error) {
	s.events.take()
	if err := s.AskTelemetry(s.ctx); err != nil {
		return nil, err
	}
	for {
		var last *pb.TelemetryReport
		for _, event := range s.events.take() {
			if report, ok := event.(*pb.TelemetryReport); ok {
				last = report
			}
		}
		if last != nil {
			return last, nil
		}
		select {
		case <-s.events.more:
		case <-s.ctx.Done():
			return nil, context.Cause(s.ctx)
		}
	}
}

func (a *app) watchTelemetry(s *session) error {
	if err := s.AskTelemetry(s.ctx); err != nil {
		return err
	}
	var first time.Time
	for lines := 0; ; {
		for _, event := range s.events.take() {
			if told, ok := event.(*pb.ErrorEvent); ok && told.Code == oomKill {
				fmt.Fprintln(a.stderr, printable(told.Message))
			}
			report, ok := event.(*pb.TelemetryReport)
			if !ok || lines == 1 && time.Since(first) < greetingWithin {
				continue
			}
			if lines == 0 {
				first = time.Now()
			}
			if err := a.printLine(report, lines); err != nil {
				return err
			}
			lines++
		}
		select {
		case <-s.events.more:
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		}
	}
}

// greetingWithin is how long after the first report another one says the same: a host that has just connected gets one, beside
// the one that it asks for.
const greetingWithin = time.Second

// oomKill is the code of an event of a process that the guest's kernel killed.
const oomKill = "oom_kill"

// headerInterval is how many lines a watch prints under one header.
const headerInterval = 20

func (a *app) printLine(r *pb.TelemetryReport, lines int) error {
	if a.json {
		return a.printJSON(r)
	}
	if lines%headerInterval == 0 && !a.quiet {
		fmt.Fprintf(a.stdout, "%-8s  %6s  %10s  %10s  %10s  %6s  %s\n", "TIME", "CPU", "MEM USED", "MEM AVAIL", "SWAP USED", "LOAD", "PROCS")
	}
	_, err := fmt.Fprintf(a.stdout, "%-8s  %5.1f%%  %10s  %10s  %10s  %6.2f  %d\n", time.Now().Format("15:04:05"), r.CpuUsagePercent,
		size(r.MemoryUsedBytes), size(r.MemoryAvailableBytes), size(r.SwapUsedBytes), r.LoadAvg_1, r.ProcessCount)
	return err
}

func (a *app) printReport(r *pb.TelemetryReport) error {
	rows := [][]string{
		{"host name", r.Hostname},
		{"up", ago(r.UptimeSeconds)},
		{"cpu", fmt.Sprintf("%.1f%%", r.CpuUsagePercent)},
		{"load", fmt.Sprintf("%.2f %.2f %.2f", r.LoadAvg_1, r.LoadAvg_5, r.LoadAvg_15)},
		{"processes", fmt.Sprint(r.ProcessCount)},
		{"memory", fmt.Sprintf("%s of %s used, %s available", size(r.MemoryUsedBytes), size(r.MemoryTotalBytes), size(r.MemoryAvailableBytes))},
		{"swap", fmt.Sprintf("%s of %s used", size(r.SwapUsedBytes), size(r.SwapTotalBytes))},
	}
	if p := r.Pressure; p != nil {
		rows = append(rows, []string{"pressure", pressure(p)})
	}
	if c := r.Container; c != nil {
		rows = append(rows, []string{"container", container(c)})
	}
	if err := table(a.stdout, rows); err != nil {
		return err
	}
	devices := [][]string{{"DISK", "SIZE", "ATTRIBUTES"}}
	for _, d := range r.BlockDevices {
		devices = append(devices, []string{d.Name, size(d.SizeBytes), deviceAttributes(d)})
	}
	disks := [][]string{{"MOUNT", "TYPE", "DEVICE", "SIZE", "USED", "FREE", "USE", "INODES"}}
	for _, d := range r.Disks {
		disks = append(disks, []string{
			d.MountPoint, d.Filesystem, d.Device, size(d.TotalBytes), size(d.UsedBytes), size(d.AvailableBytes),
			use(d), inodes(d),
		})
	}
	links := [][]string{{"INTERFACE", "KIND", "STATE", "MAC", "ADDRESSES", "RECEIVED", "SENT"}}
	for _, i := range r.Interfaces {
		links = append(links, []string{
			i.Name, linkKind(i), linkState(i.State), i.MacAddress, strings.Join(addresses(i), ", "), size(i.RxBytes), size(i.TxBytes),
		})
	}
	for _, rows := range [][][]string{devices, disks, links} {
		if len(rows) == 1 {
			continue
		}
		fmt.Fprintln(a.stdout)
		if err := table(a.stdout, rows); err != nil {
			return err
		}
	}
	return nil
}

// pressure says how long some tasks waited in the last ten seconds.
func pressure(p *pb.Pressure) string {
	return fmt.Sprintf("cpu %.1f%%, memory %.1f%%, io %.1f%%", p.GetCpu().GetSomeAvg10(), p.GetMemory().GetSomeAvg10(),
		p.GetIo().GetSomeAvg10())
}

// container says what the guest is, and its limits.
func container(c *pb.ContainerInfo) string {
	text := c.Kind
	if c.MemoryLimitBytes > 0 {
		text += fmt.Sprintf(", memory %s of %s used", size(c.MemoryUsedBytes), size(c.MemoryLimitBytes))
	}
	if c.CpuLimit > 0 {
		text += fmt.Sprintf(", %.4g processors", c.CpuLimit)
	}
	return text
}

func deviceAttributes(d *pb.BlockDevice) string {
	var words []string
	if d.ReadOnly {
		words = append(words, "read-only")
	}
	if d.Removable {
		words = append(words, "removable")
	}
	return orDash(strings.Join(words, ", "))
}

// use says how much is used of what users may use, rounded up, as df does: 100% is full, also where space is reserved for root.
func use(d *pb.DiskUsage) string {
	if d.UsedBytes+d.AvailableBytes == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f%%", math.Ceil(100*float64(d.UsedBytes)/float64(d.UsedBytes+d.AvailableBytes)))
}

// inodes says how many of the files that a file system can hold there are; a dash where it has no fixed number.
func inodes(d *pb.DiskUsage) string {
	if d.InodesTotal == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f%%", 100*float64(d.InodesUsed)/float64(d.InodesTotal))
}

// linkKind is what an interface is, and what it is a port of.
func linkKind(i *pb.InterfaceInfo) string {
	if i.Master != "" {
		return orDash(i.Kind) + " in " + i.Master
	}
	return orDash(i.Kind)
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

func linkState(s pb.InterfaceState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "INTERFACE_STATE_"))
}

// addresses returns the addresses, with prefix lengths where the agent sends them.
func addresses(i *pb.InterfaceInfo) []string {
	all := append(append([]string{}, i.Ipv4Addresses...), i.Ipv6Addresses...)
	for n := range all {
		if len(i.Prefixes) == len(all) {
			all[n] = fmt.Sprintf("%s/%d", all[n], i.Prefixes[n])
		}
	}
	return all
}
