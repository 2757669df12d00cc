package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// topHeader is how many lines of a terminal are not processes: those of printSummary, the head of the table, and the line that
// the cursor is in.
const topHeader = 6

func (a *app) topCommand() *cobra.Command {
	request := &pb.ListProcessesRequest{}
	var every time.Duration
	var count int
	c := &cobra.Command{
		Use:   "top [NAME]",
		Short: "watch the processes of the guest",
		Long: `top shows how busy the guest is and its busiest processes, or of those whose name has NAME in it, again and again until it is
interrupted. Columns are as those of ps. On a terminal it shows as many processes as fit; elsewhere all, without moving the
cursor.

With --json: {"telemetry": TelemetryReport, "processes": [ProcessInfo, ...]}, one in each line.`,
		Example: `  quantix-kvm-ctl top
  quantix-kvm-ctl top --sort memory -d 5s
  quantix-kvm-ctl top -n 1 --max 5
  quantix-kvm-ctl top --json -n 10 | jq -c '[.processes[0] | .name, .cpu_percent]'`,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.complete(false, processNames),
		RunE: func(c *cobra.Command, args []string) error {
			if every <= 0 || count < 0 {
				return usage("--delay is not positive, or --count is negative")
			}
			request.Filter = strings.Join(args, "")
			return a.with(c.Context(), noTimeout, func(s *session) error { return a.top(s, request, every, count) })
		},
	}
	listFlags(c, request, "cpu")
	c.Flags().Uint32Var(&request.MaxEntries, "max", 0, "show at most `n` processes; 0: what fits, or all")
	c.Flags().DurationVarP(&every, "delay", "d", 2*time.Second, "the `time` from one view to the next")
	c.Flags().IntVarP(&count, "count", "n", 0, "end after `n` views; 0: never")
	return c
}

// view is what top shows at one time.
type view struct {
	telemetry *pb.TelemetryReport
	processes []*pb.ProcessInfo
}

func (a *app) top(s *session, request *pb.ListProcessesRequest, every time.Duration, count int) error {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for shown := 0; ; {
		v, err := a.lookAt(s, request)
		if err != nil {
			return err
		}
		if err := a.show(v, shown > 0); err != nil {
			return err
		}
		if shown++; shown == count {
			return nil
		}
		select {
		case <-ticker.C:
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		}
	}
}

// lookAt asks the guest for a view.
func (a *app) lookAt(s *session, request *pb.ListProcessesRequest) (v view, err error) {
	asked := &pb.ListProcessesRequest{
		Filter: request.Filter, Sort: request.Sort, Reverse: request.Reverse, MaxEntries: request.MaxEntries,
		OmitArguments: request.OmitArguments,
	}
	if rows, _ := a.screen(); rows > 0 && !a.json && asked.MaxEntries == 0 {
		asked.MaxEntries = uint32(max(rows-topHeader, 1))
	}
	if v.processes, err = s.Processes(s.ctx, asked); err != nil {
		return v, err
	}
	v.telemetry, err = a.freshReport(s)
	return v, err
}

// show prints a view: on a terminal in place of the one before.
func (a *app) show(v view, again bool) error {
	if a.json {
		return a.printView(v)
	}
	var b bytes.Buffer
	rows, width := a.screen()
	switch {
	case rows > 0:
		b.WriteString("\x1b[H\x1b[2J") // to the first line, and all of it blank
	case again:
		b.WriteString("\n")
	}
	printSummary(&b, v.telemetry, width)
	narrow := slices.DeleteFunc(psColumns(), func(c processColumn) bool { return c.name == "PPID" || c.name == "STARTED" })
	if err := printProcesses(&b, v.processes, narrow, width); err != nil {
		return err
	}
	_, err := a.stdout.Write(b.Bytes())
	return err
}

// printView prints a view as a line of JSON, on a terminal as well.
func (a *app) printView(v view) error {
	telemetry, err := toJSON(v.telemetry)
	if err != nil {
		return err
	}
	processes, err := listJSON(v.processes)
	if err != nil {
		return err
	}
	line, err := toJSON(struct {
		Telemetry json.RawMessage   `json:"telemetry"`
		Processes []json.RawMessage `json:"processes"`
	}{telemetry, processes})
	if err != nil {
		return err
	}
	_, err = a.stdout.Write(append(line, '\n'))
	return err
}

// printSummary prints how busy and how full the guest is, in four lines, the last of them blank.
func printSummary(w io.Writer, r *pb.TelemetryReport, width int) {
	waiting := ""
	if r.Pressure != nil {
		waiting = "  pressure " + pressure(r.Pressure)
	}
	for _, line := range []string{
		fmt.Sprintf("%s  up %s  %d processes  load %.2f %.2f %.2f", r.Hostname, ago(r.UptimeSeconds), r.ProcessCount,
			r.LoadAvg_1, r.LoadAvg_5, r.LoadAvg_15),
		fmt.Sprintf("cpu %.1f%%  memory %s of %s used, %s available", r.CpuUsagePercent, size(r.MemoryUsedBytes),
			size(r.MemoryTotalBytes), size(r.MemoryAvailableBytes)),
		fmt.Sprintf("swap %s of %s used%s", size(r.SwapUsedBytes), size(r.SwapTotalBytes), waiting),
		"",
	} {
		io.WriteString(w, cutLine(printable(line)+"\n", width))
	}
}
