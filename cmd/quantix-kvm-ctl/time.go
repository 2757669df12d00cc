package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func (a *app) timeCommand() *cobra.Command {
	var sync, force bool
	var set string
	c := &cobra.Command{
		Use:   "time",
		Short: "show and set the clock of the guest",
		Long: `time shows what time it is in the guest, and how far its clock is ahead of this host's.

With --set now the clock gets this host's time, and with --set TIME that one, which is as in RFC 3339. With --sync the guest
sets it by itself: from the clock that KVM shows it, else by its own time daemon, chrony or systemd-timesyncd. A daemon that is
turned off stays off. An offset below half a second is corrected by and by, unless --force asks for a step. The hardware clock
is set as well. It fails where the clock is no nearer to the right time afterwards.

With --json: {"guest", "offset_seconds", "uncertainty_seconds", "before", "sync_time"}, of which the last two are the offset
before and the SyncTimeResponse, or null.`,
		Example: `  quantix-kvm-ctl time
  quantix-kvm-ctl time --set now
  quantix-kvm-ctl time --sync --force
  quantix-kvm-ctl time --set 2026-11-29T08:00:00Z`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if set != "" && sync || force && set == "" && !sync {
				return usage("give --sync or --set, and --force with one of them")
			}
			var at time.Time
			if set != "" && set != "now" {
				var err error
				if at, err = time.Parse(time.RFC3339Nano, set); err != nil {
					return usage("--set is now, or a time as in RFC 3339, such as 2026-11-29T08:00:00Z")
				}
			}
			return a.with(c.Context(), requestTimeout, func(s *session) error {
				if set == "" && !sync {
					return a.showTime(s, nil, nil)
				}
				return a.setTime(s, set, at, force)
			})
		},
	}
	c.Flags().BoolVar(&sync, "sync", false, "have the guest set its clock from its own source")
	c.Flags().StringVar(&set, "set", "", "set the clock to `now`, as this host has it, or to a time")
	c.Flags().BoolVar(&force, "force", false, "correct a small offset at once, too")
	return c
}

// setTime sets the clock to a time, to that of this host, or, without set, as the guest does it by itself.
func (a *app) setTime(s *session, set string, at time.Time, force bool) error {
	before, err := s.ClockOffset(s.ctx)
	if err != nil {
		return err
	}
	request := &pb.SyncTimeRequest{Force: force}
	switch set {
	case "":
	case "now":
		request.SetTime = timestamppb.New(time.Now().Add(before.Uncertainty)) // half of the way there and back
	default:
		request.SetTime = timestamppb.New(at)
	}
	reply, err := s.SyncTime(s.ctx, request)
	if err != nil {
		return err
	}
	return a.showTime(s, &before, reply)
}

// showTime shows the clock as it is now, and what was done.
func (a *app) showTime(s *session, before *client.ClockOffset, done *pb.SyncTimeResponse) error {
	now, err := s.ClockOffset(s.ctx)
	if err != nil {
		return err
	}
	if a.json {
		shown := map[string]any{
			"guest": now.Guest.UTC().Format(time.RFC3339Nano), "before": nil, "sync_time": nil,
			"offset_seconds": now.Offset.Seconds(), "uncertainty_seconds": now.Uncertainty.Seconds(),
		}
		if done != nil {
			text, err := toJSON(done)
			if err != nil {
				return err
			}
			shown["before"], shown["sync_time"] = before.Offset.Seconds(), text
		}
		return a.printJSON(shown)
	}
	rows := [][]string{{"guest", now.Guest.UTC().Format("2006-01-02 15:04:05.000Z")}}
	if done != nil {
		rows = append(rows, []string{"offset before", aheadOf(*before)})
	}
	rows = append(rows, []string{"offset to this host", aheadOf(now)})
	if done != nil {
		rows = append(rows, timeRows(done)...)
	}
	return table(a.stdout, rows)
}

// aheadOf formats an offset.
func aheadOf(o client.ClockOffset) string {
	return fmt.Sprintf("%+.6f s (within %.6f s)", o.Offset.Seconds(), o.Uncertainty.Seconds())
}

func timeRows(done *pb.SyncTimeResponse) [][]string {
	method := strings.ToLower(strings.TrimPrefix(done.Method.String(), "CLOCK_METHOD_"))
	rows := [][]string{
		{"source", done.TimeSource},
		{"it said", fmt.Sprintf("%+.6f s", done.OffsetSeconds)},
		{"correction", method},
		{"left of it", fmt.Sprintf("%+.6f s", done.RemainingSeconds)},
	}
	switch {
	case done.RtcError != "":
		rows = append(rows, []string{"hardware clock", "not set: " + done.RtcError})
	case done.RtcWritten:
		rows = append(rows, []string{"hardware clock", "set"})
	}
	return rows
}
