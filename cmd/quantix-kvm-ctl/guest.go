package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func (a *app) pingCommand() *cobra.Command {
	var count int
	var interval time.Duration
	c := &cobra.Command{
		Use: "ping", Short: "ask for a sign of life", Args: args(cobra.NoArgs),
		Long: "Sends pings and tells how long each answer took, with a summary behind the last.",
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), func(ctx context.Context, c *client.Client) error { return a.ping(ctx, c, count, interval) })
		},
	}
	c.Flags().IntVarP(&count, "count", "c", 1, "how many; 0: until interrupted")
	c.Flags().DurationVarP(&interval, "interval", "i", time.Second, "pause between them")
	return c
}

func (a *app) ping(ctx context.Context, c *client.Client, count int, interval time.Duration) error {
	var times []float64
	for i := 1; ; i++ {
		start := time.Now()
		pong, err := ask[*pb.PongResponse](ctx, c, &pb.PingRequest{Sequence: uint64(i) + 1})
		if err != nil {
			return err
		}
		took := float64(time.Since(start).Microseconds()) / 1000
		times = append(times, took)
		if a.json {
			a.printJSON(map[string]any{"sequence": i, "milliseconds": took, "version": pong.Version, "uptime_seconds": pong.UptimeSeconds})
		} else {
			fmt.Fprintf(a.out, "pong %d: %.3f ms, agent %s, up %v\n", i, took, pong.Version, time.Duration(pong.UptimeSeconds)*time.Second)
		}
		if i == count {
			break
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(interval):
		}
	}
	if len(times) > 1 && !a.json {
		slices.Sort(times)
		sum := 0.0
		for _, t := range times {
			sum += t
		}
		fmt.Fprintf(a.out, "%d pings: min %.3f, median %.3f, mean %.3f, max %.3f ms\n",
			len(times), times[0], times[len(times)/2], sum/float64(len(times)), times[len(times)-1])
	}
	return nil
}

func (a *app) infoCommand() *cobra.Command {
	return &cobra.Command{
		Use: "info", Short: "show what the guest and its agent are", Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), a.info)
		},
	}
}

func (a *app) info(ctx context.Context, c *client.Client) error {
	ready, err := c.Ready(ctx)
	if err != nil {
		return err
	}
	can, err := ask[*pb.GetCapabilitiesResponse](ctx, c, &pb.GetCapabilitiesRequest{})
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]any{
			"hostname": ready.Hostname, "os": ready.OsName, "os_version": ready.OsVersion, "kernel": ready.KernelVersion,
			"architecture": ready.Architecture, "ip_addresses": list(ready.IpAddresses), "agent_version": can.Version,
			"capabilities": list(can.Capabilities), "features": can.Features, "build_commit": can.BuildCommit, "build_time": can.BuildTime,
		})
	}
	return a.show(ready, func(w io.Writer) {
		fmt.Fprintf(w, "host name\t%s\nsystem\t%s %s, kernel %s, %s\naddresses\t%s\nagent\t%s (commit %s, built %s)\ncan\t%s\n",
			ready.Hostname, ready.OsName, ready.OsVersion, ready.KernelVersion, ready.Architecture,
			strings.Join(ready.IpAddresses, ", "), can.Version, can.BuildCommit, can.BuildTime, strings.Join(can.Capabilities, ", "))
		for _, key := range slices.Sorted(mapKeys(can.Features)) {
			fmt.Fprintf(w, "%s\t%s\n", key, can.Features[key])
		}
	})
}

func mapKeys[V any](m map[string]V) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// list is never null in JSON.
func list(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

func (a *app) telemetryCommand() *cobra.Command {
	var watch bool
	c := &cobra.Command{
		Use: "telemetry", Short: "show load, memory, disks and interfaces", Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			reports := make(chan *pb.TelemetryReport, 64)
			a.event = func(_ string, event proto.Message) {
				if report, ok := event.(*pb.TelemetryReport); ok {
					select {
					case reports <- report:
					default:
					}
				}
			}
			return a.with(c.Context(), func(ctx context.Context, c *client.Client) error { return a.telemetry(ctx, c, reports, watch) })
		},
	}
	c.Flags().BoolVarP(&watch, "watch", "w", false, "go on with every report that the agent sends")
	return c
}

// telemetry asks with a ping of sequence 1, which the agent answers after a fresh report. The one before it is the
// greeting's.
func (a *app) telemetry(ctx context.Context, c *client.Client, reports <-chan *pb.TelemetryReport, watch bool) error {
	if _, err := ask[*pb.PongResponse](ctx, c, &pb.PingRequest{Sequence: 1}); err != nil {
		return err
	}
	var last *pb.TelemetryReport
	for len(reports) > 0 {
		last = <-reports
	}
	for {
		if last != nil {
			if err := a.show(last, func(w io.Writer) { telemetryTable(w, last) }); err != nil || !watch {
				return err
			}
		}
		select {
		case last = <-reports:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func telemetryTable(w io.Writer, r *pb.TelemetryReport) {
	fmt.Fprintf(w, "host\t%s, up %v, %d processes\n", r.Hostname, time.Duration(r.UptimeSeconds)*time.Second, r.ProcessCount)
	fmt.Fprintf(w, "cpu\t%.1f %%, load %.2f %.2f %.2f\n", r.CpuUsagePercent, r.LoadAvg_1, r.LoadAvg_5, r.LoadAvg_15)
	fmt.Fprintf(w, "memory\t%s of %s used, %s available\n", size(r.MemoryUsedBytes), size(r.MemoryTotalBytes), size(r.MemoryAvailableBytes))
	if r.SwapTotalBytes > 0 {
		fmt.Fprintf(w, "swap\t%s of %s used\n", size(r.SwapUsedBytes), size(r.SwapTotalBytes))
	}
	for _, d := range r.Disks {
		fmt.Fprintf(w, "disk %s\t%s, %s of %s used (%.0f %%)\n", d.MountPoint, d.Filesystem, size(d.UsedBytes), size(d.TotalBytes), math.Round(d.UsagePercent))
	}
	for _, i := range r.Interfaces {
		fmt.Fprintf(w, "interface %s\t%s, %s, received %s, sent %s\n", i.Name, strings.ToLower(strings.TrimPrefix(i.State.String(), "INTERFACE_STATE_")),
			strings.Join(append(append([]string{}, i.Ipv4Addresses...), i.Ipv6Addresses...), " "), size(i.RxBytes), size(i.TxBytes))
	}
}

func (a *app) cancelCommand() *cobra.Command {
	var key string
	c := &cobra.Command{
		Use: "cancel [MESSAGE-ID]", Short: "stop a request or a script that runs", Args: args(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, list []string) error {
			request := &pb.CancelRequest{Key: key}
			if len(list) == 1 {
				request.MessageId = list[0]
			}
			if (request.MessageId == "") == (key == "") {
				return usageError{fmt.Errorf("give a message id or --key")}
			}
			return a.with(c.Context(), func(ctx context.Context, c *client.Client) error {
				reply, err := ask[*pb.CancelResponse](ctx, c, request)
				if err != nil {
					return err
				}
				if a.json {
					return a.showJSON(reply)
				}
				if !reply.Cancelled {
					return fmt.Errorf("nothing of that name is running")
				}
				a.note("cancelled")
				return nil
			})
		},
	}
	c.Flags().StringVar(&key, "key", "", "the `key` of a script's run")
	return c
}
