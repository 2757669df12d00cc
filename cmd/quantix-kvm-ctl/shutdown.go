package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	// waitTimeout is how long --wait waits from the time that the guest goes down, unless --timeout says otherwise: services
	// of the guest may take minutes to stop and to start.
	waitTimeout = 10 * time.Minute
	// waitEvery is the pause between two polls of the guest.
	waitEvery = 250 * time.Millisecond
	// silences are the connections in a row without an answer after which the guest counts as down; each takes three seconds.
	silences = 3
)

// shutdownFlags are those of shutdown and reboot.
type shutdownFlags struct {
	delay        time.Duration
	message      string
	cancel, wait bool
	halt         bool // of shutdown alone
}

func (f *shutdownFlags) add(c *cobra.Command, wait string) {
	c.Flags().DurationVar(&f.delay, "delay", 0, "do it after this `time`, in whole seconds")
	c.Flags().StringVar(&f.message, "message", "", "`text` for the users who are logged in")
	c.Flags().BoolVar(&f.cancel, "cancel", false, "drop what is pending instead")
	c.Flags().BoolVar(&f.wait, "wait", false, wait)
}

// request returns the request that the flags ask for.
func (f *shutdownFlags) request(what pb.ShutdownType) (*pb.ShutdownRequest, error) {
	switch {
	case f.cancel && (f.delay != 0 || f.wait || f.halt):
		return nil, usage("--cancel goes with --message alone")
	case f.delay < 0 || f.delay%time.Second != 0 || f.delay/time.Second > 1<<31:
		return nil, usage("--delay is a number of whole seconds")
	}
	return &pb.ShutdownRequest{
		Type: what, DelaySeconds: uint32(f.delay / time.Second), Message: f.message, Cancel: f.cancel,
	}, nil
}

const shutdownHelp = `
The agent answers before it does anything. Then it notifies the users who are logged in, waits for an open transaction to end,
thaws what is frozen, and asks the init of the guest. What is pending survives a restart of the agent; a further request
replaces it, and status shows it.

With --json: ShutdownResponse; with --wait {"shutdown": ShutdownResponse, "seconds"}, the time from when it was due to when it
was done.`

func (a *app) shutdownCommand() *cobra.Command {
	f := &shutdownFlags{}
	c := &cobra.Command{
		Use:   "shutdown",
		Short: "switch the guest off",
		Long:  "shutdown switches the guest off, or halts it, at once or after a time." + "\n" + shutdownHelp,
		Example: `  quantix-kvm-ctl shutdown
  quantix-kvm-ctl shutdown --delay 5m --message 'the host is going down for maintenance'
  quantix-kvm-ctl shutdown --cancel`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			what := pb.ShutdownType_SHUTDOWN_TYPE_POWEROFF
			if f.halt {
				what = pb.ShutdownType_SHUTDOWN_TYPE_HALT
			}
			return a.shutdown(c.Context(), f, what)
		},
	}
	f.add(c, "return when the guest is off, or answers no more")
	c.Flags().BoolVar(&f.halt, "halt", false, "stop the guest and leave it switched on")
	return c
}

func (a *app) rebootCommand() *cobra.Command {
	f := &shutdownFlags{}
	c := &cobra.Command{
		Use:   "reboot",
		Short: "boot the guest again",
		Long: "reboot boots the guest again, at once or after a time. With --wait it returns when the agent of the next boot serves,\n" +
			"and prints how long that took." + "\n" + shutdownHelp,
		Example: `  quantix-kvm-ctl reboot --wait
  quantix-kvm-ctl reboot --delay 30s --message 'new kernel'`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.shutdown(c.Context(), f, pb.ShutdownType_SHUTDOWN_TYPE_REBOOT)
		},
	}
	f.add(c, "return when the guest serves again")
	return c
}

func (a *app) shutdown(ctx context.Context, f *shutdownFlags, what pb.ShutdownType) error {
	request, err := f.request(what)
	if err != nil {
		return err
	}
	var reply *pb.ShutdownResponse
	var path, boot string
	err = a.with(ctx, requestTimeout, func(s *session) error {
		path = s.path
		if f.wait {
			status, err := client.Call[*pb.GetStatusResponse](s.ctx, s.Client, &pb.GetStatusRequest{})
			if err == nil && status.BootId == "" {
				err = fault.Unsupported("the agent in the guest does not send a boot ID")
			}
			if err != nil {
				return err
			}
			boot = status.BootId
		}
		reply, err = s.Shutdown(s.ctx, request)
		return err
	})
	if err != nil {
		return err
	}
	if !f.wait {
		if a.json {
			return a.printJSON(reply)
		}
		a.noteShutdown(request, reply)
		return nil
	}
	a.noteShutdown(request, reply)
	due := time.Now().Add(f.delay)
	limit := waitTimeout
	if a.timeout > 0 {
		limit = a.timeout
	}
	late := fault.Wrapf(context.DeadlineExceeded, "it was not done within %v", f.delay+limit)
	limited, stop := context.WithTimeoutCause(ctx, f.delay+limit, late)
	defer stop()
	if what == pb.ShutdownType_SHUTDOWN_TYPE_REBOOT {
		err = a.awaitBoot(limited, path, boot)
	} else {
		err = a.awaitDown(limited, path, boot)
	}
	if err != nil {
		return err
	}
	return a.printWaited(what, reply, time.Since(due))
}

func (a *app) noteShutdown(request *pb.ShutdownRequest, reply *pb.ShutdownResponse) {
	if old := reply.Replaced; old != nil {
		word := "replaced"
		if request.Cancel {
			word = "cancelled"
		}
		a.note("%s: %s, which was due %s", word, old.Type, at(old.Due))
	}
	if p := reply.Pending; p.GetRemainingMs() > 0 {
		a.note("%s at %s by the guest's clock", p.Type, at(p.Due))
	}
	if p := reply.Pending; p.GetWaitingFor() != "" {
		a.note("it waits for %s", p.WaitingFor)
	}
}

// printWaited prints how long it took.
func (a *app) printWaited(what pb.ShutdownType, reply *pb.ShutdownResponse, took time.Duration) error {
	if a.json {
		text, err := toJSON(proto.Message(reply))
		if err != nil {
			return err
		}
		return a.printJSON(map[string]any{"shutdown": text, "seconds": float64(took.Milliseconds()) / 1000})
	}
	words := "the guest is down after"
	if what == pb.ShutdownType_SHUTDOWN_TYPE_REBOOT {
		words = "the guest serves again after"
	}
	_, err := fmt.Fprintf(a.stdout, "%s %.1f s\n", words, took.Seconds())
	return err
}

// look connects and returns the boot ID that an agent sends.
func (a *app) look(ctx context.Context, path string) (boot string, err error) {
	status, err := a.askStatus(ctx, path)
	return status.GetBootId(), err
}

// awaitBoot waits until an agent of another boot serves.
func (a *app) awaitBoot(ctx context.Context, path, before string) error {
	for {
		boot, err := a.look(ctx, path)
		if err == nil && boot != "" && boot != before {
			return nil
		}
		if err := waitBetweenPolls(ctx); err != nil {
			return err
		}
	}
}

// awaitDown waits until the socket of the guest is gone, or nothing answers there any more.
func (a *app) awaitDown(ctx context.Context, path, before string) error {
	for silent := 0; silent < silences; {
		boot, err := a.look(ctx, path)
		switch {
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED):
			return nil
		case err != nil && ctx.Err() == nil:
			silent++
		case err == nil && boot != before:
			return errors.New("the guest was booted again instead")
		default:
			silent = 0
		}
		if err := waitBetweenPolls(ctx); err != nil {
			return err
		}
	}
	return nil
}

// waitBetweenPolls waits for waitEvery, or returns the cause of the end of ctx.
func waitBetweenPolls(ctx context.Context) error {
	timer := time.NewTimer(waitEvery)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
