package main

import (
	"errors"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// killed is what kill prints with --json.
type killed struct {
	Signalled []uint32 `json:"signalled"`
}

func (a *app) killCommand() *cobra.Command {
	var signal string
	var start uint64
	c := &cobra.Command{
		Use:   "kill [--signal SIGNAL] PID...",
		Short: "send a signal to processes of the guest",
		Long: `kill sends a signal to processes of the guest: TERM, or the one that --signal names. It is sent as it is, once: what does not
end at TERM gets no KILL. The agent refuses it to pid 1, to kernel threads and to itself.

A pid may be another process's by now. With --start-ticks, which ps --json shows, that process gets no signal.

With --json: {"signalled": [PID, ...]}.

EXIT STATUS
  0  each process got the signal
  1  one was not there, or the signal is unknown
  4  one was refused`,
		Example: `  quantix-kvm-ctl kill 4711
  quantix-kvm-ctl kill --signal USR1 4711
  quantix-kvm-ctl kill --signal KILL --start-ticks 559333 4711
  quantix-kvm-ctl kill --signal 0 4711 && echo it is there`,
		Args: cobra.MinimumNArgs(1), ValidArgsFunction: a.complete(false, processIDs),
		RunE: func(c *cobra.Command, args []string) error {
			pids, err := parsePIDs(args)
			if err != nil {
				return err
			}
			if start != 0 && len(pids) > 1 {
				return usage("--start-ticks is that of one process, and there are %d", len(pids))
			}
			return a.with(c.Context(), requestTimeout, func(s *session) error {
				return a.kill(s, pids, signal, start)
			})
		},
	}
	c.Flags().StringVar(&signal, "signal", "TERM",
		"send the signal of this `name` or number; 0: only look whether one could be sent")
	c.Flags().Uint64Var(&start, "start-ticks", 0, "only if the process started at this `tick` after the boot of the guest")
	return c
}

func parsePIDs(args []string) (pids []uint32, err error) {
	for _, arg := range args {
		pid, err := strconv.ParseUint(arg, 10, 32)
		if err != nil {
			return nil, usage("%q is no process id", arg)
		}
		pids = append(pids, uint32(pid))
	}
	return pids, nil
}

func (a *app) kill(s *session, pids []uint32, signal string, start uint64) error {
	done := killed{Signalled: []uint32{}}
	var failed []error
	for _, pid := range pids {
		err := s.Kill(s.ctx, &pb.KillProcessRequest{Pid: pid, SignalName: signal, StartTicks: start})
		if s.ctx.Err() != nil || client.Gone(err) {
			return err
		}
		failed = append(failed, err)
		if err == nil {
			done.Signalled = append(done.Signalled, pid)
		}
	}
	if a.json {
		if err := a.printJSON(done); err != nil {
			return err
		}
	}
	return errors.Join(failed...)
}
