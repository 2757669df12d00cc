package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/client"
)

// pongTimeout is how long a pong is waited for.
const pongTimeout = 5 * time.Second

func (a *app) pingCommand() *cobra.Command {
	var count int
	var interval time.Duration
	c := &cobra.Command{
		Use:   "ping",
		Short: "measure the way to the agent and back",
		Long: `ping asks the agent for a pong, --count times, and prints how long each took. The agent answers within a second whatever
else it does; a pong that does not come within five counts as lost.

With --json each pong is a line {"sequence","milliseconds","version","uptime_seconds"}, and the last line is the summary
{"sent","received","min_ms","avg_ms","max_ms","mdev_ms"}.

The exit code is 0 if every ping was answered, else 3.`,
		Example: `  quantix-kvm-ctl ping
  quantix-kvm-ctl ping -c 1 -q && echo there
  quantix-kvm-ctl ping -c 0 -i 200ms     # until Ctrl-C`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if count < 0 || interval < 0 {
				return usage("--count or --interval is negative")
			}
			s, err := a.connect(c.Context(), a.timeout, interruptGrace)
			if err != nil {
				return err
			}
			defer s.close()
			return s.causeOf(a.ping(s, count, interval))
		},
	}
	c.Flags().IntVarP(&count, "count", "c", 1, "send `n` pings; 0: until interrupted")
	c.Flags().DurationVarP(&interval, "interval", "i", time.Second, "`time` from one ping to the next")
	return c
}

// pingStats are the round-trip times so far.
type pingStats struct {
	sent, received      int
	min, max, sum, sum2 float64 // milliseconds
}

func (t *pingStats) add(ms float64) {
	if t.received++; t.received == 1 {
		t.min = ms
	}
	t.min, t.max = min(t.min, ms), max(t.max, ms)
	t.sum += ms
	t.sum2 += ms * ms
}

func (t *pingStats) mean() float64 { return t.sum / float64(max(t.received, 1)) }

// deviation is the standard deviation, as ping(8) has it.
func (t *pingStats) deviation() float64 {
	return math.Sqrt(max(0, t.sum2/float64(max(t.received, 1))-t.mean()*t.mean()))
}

func (a *app) ping(s *session, count int, interval time.Duration) error {
	var t pingStats
	var failed error
	ticker := time.NewTicker(max(interval, time.Nanosecond))
	defer ticker.Stop()
	for seq := 1; failed == nil && (count == 0 || seq <= count); seq++ {
		if seq > 1 {
			select {
			case <-ticker.C:
			case <-s.ctx.Done():
			}
		}
		failed = a.pingOnce(s, seq, &t)
	}
	if err := a.pingSummary(&t); err != nil {
		return err
	}
	if failed == nil && t.received < t.sent {
		return &failure{exitNoAnswer, fmt.Errorf("%d of %d pings were not answered", t.sent-t.received, t.sent)}
	}
	return failed
}

// pingOnce returns an error where no further ping makes sense.
func (a *app) pingOnce(s *session, seq int, t *pingStats) error {
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	t.sent++
	limited, stop := context.WithTimeout(s.ctx, pongTimeout)
	defer stop()
	took, pong, err := s.Ping(limited)
	ms := float64(took.Microseconds()) / 1000
	switch {
	case s.ctx.Err() != nil:
		t.sent-- // it was interrupted
		return context.Cause(s.ctx)
	case client.Gone(err):
		return err
	case errors.Is(err, context.DeadlineExceeded):
		a.note("ping %d was not answered", seq)
		return nil
	case err != nil:
		return err
	}
	t.add(ms)
	switch {
	case a.json:
		return a.printJSON(struct {
			Seq     int     `json:"sequence"`
			Time    float64 `json:"milliseconds"`
			Version string  `json:"version"`
			Uptime  uint64  `json:"uptime_seconds"`
		}{seq, ms, pong.Version, pong.UptimeSeconds})
	case !a.quiet:
		fmt.Fprintf(a.stdout, "pong %d: %.3f ms, agent %s, up %s\n", seq, ms, printable(pong.Version), ago(pong.UptimeSeconds))
	}
	return nil
}

func (a *app) pingSummary(t *pingStats) error {
	if a.json {
		return a.printJSON(struct {
			Sent      int     `json:"sent"`
			Received  int     `json:"received"`
			Min       float64 `json:"min_ms"`
			Avg       float64 `json:"avg_ms"`
			Max       float64 `json:"max_ms"`
			Deviation float64 `json:"mdev_ms"`
		}{t.sent, t.received, t.min, t.mean(), t.max, t.deviation()})
	}
	if t.sent < 2 {
		return nil
	}
	_, err := fmt.Fprintf(a.stdout, "%d pings: min %.3f, mean %.3f, max %.3f, deviation %.3f ms, %d lost\n",
		t.sent, t.min, t.mean(), t.max, t.deviation(), t.sent-t.received)
	return err
}
