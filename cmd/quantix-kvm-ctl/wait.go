package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func (a *app) waitCommand() *cobra.Command {
	var what, mac string
	c := &cobra.Command{
		Use:   "wait --for address[=CIDR] [--mac MAC] | ready | unit=NAME | file=PATH",
		Short: "wait until something has come about in the guest",
		Long: `wait returns when something has come about in the guest, or at once where it has already. The agent watches for it, so
nothing is asked again and again; a guest whose agent does not run yet, or ends meanwhile, is waited for as well.

  address        an interface that leads outside is up and has an address that others reach the guest by
  address=CIDR   an interface is up and has an address in this network, or this very address
  ready          systemd has started all that belongs to the boot
  unit=NAME      a unit of systemd is active, or, where it does its work once, has done that; one that fails ends the wait
  file=PATH      something is at the path; links are followed. What another machine makes on a remote file system is not seen

The address and its interface, or the state of the unit or of the system (running, or degraded where a unit failed), go to
stdout. Without --timeout there is no end.

With --json: WaitResponse.

EXIT STATUS
  0    it is so
  1    the unit has failed, or what was given is no address, or no absolute path
  2    the command line makes no sense
  4    refused, or the guest has nothing of the kind
  124  it took too long`,
		Example: `  quantix-kvm-ctl wait --for address=192.0.2.0/24 --timeout 2m
  quantix-kvm-ctl --vm web wait --for ready && quantix-kvm-ctl --vm web run site.lua
  quantix-kvm-ctl wait --for unit=postgresql --timeout 90s`,
		Args: cobra.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(c *cobra.Command, _ []string) error {
			request, err := waitRequest(what, mac)
			if err != nil {
				return err
			}
			return a.wait(c.Context(), request)
		},
	}
	c.Flags().StringVar(&what, "for", "", "`what` to wait for")
	c.Flags().StringVar(&mac, "mac", "", "with address: on the interface with this hardware `address`")
	words := []cobra.Completion{"address", "address=", "ready", "unit=", "file="}
	completion := cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveNoSpace)
	if err := c.RegisterFlagCompletionFunc("for", completion); err != nil {
		panic(err) // the flag is the one above
	}
	return c
}

// waitRequest is what the flags ask for.
func waitRequest(what, mac string) (*pb.WaitRequest, error) {
	kind, value, valued := strings.Cut(what, "=")
	if mac != "" && kind != "address" {
		return nil, usage("--mac goes with --for address")
	}
	switch {
	case kind == "address" && (value != "" || !valued):
		return &pb.WaitRequest{Condition: &pb.WaitRequest_Address{Address: &pb.WaitAddress{Network: value, Mac: mac}}}, nil
	case what == "ready":
		return &pb.WaitRequest{Condition: &pb.WaitRequest_Ready{Ready: &pb.WaitReady{}}}, nil
	case kind == "unit" && value != "":
		return &pb.WaitRequest{Condition: &pb.WaitRequest_Unit{Unit: &pb.WaitUnit{Name: value}}}, nil
	case kind == "file" && value != "":
		return &pb.WaitRequest{Condition: &pb.WaitRequest_File{File: &pb.WaitFile{Path: value}}}, nil
	}
	return nil, usage("--for is address, address=CIDR, ready, unit=NAME or file=PATH")
}

func (a *app) wait(ctx context.Context, request *pb.WaitRequest) error {
	if a.timeout > 0 {
		late := fault.Wrapf(context.DeadlineExceeded, "it did not come about within %v", a.timeout)
		limited, stop := context.WithTimeoutCause(ctx, a.timeout, late)
		defer stop()
		ctx = limited
	}
	for noted := false; ; {
		reply, err := a.waitOnce(ctx, request)
		switch {
		case err == nil:
			return a.printWait(reply)
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !again(err):
			return err
		}
		if !noted {
			a.note("%v; waiting for an agent", err)
			noted = true
		}
		if err := waitBetweenPolls(ctx); err != nil { // for an agent that does not run there is nothing else
			return err
		}
	}
}

// waitOnce waits on one connection.
func (a *app) waitOnce(ctx context.Context, request *pb.WaitRequest) (*pb.WaitResponse, error) {
	s, err := a.connect(ctx, noTimeout, interruptGrace)
	if err != nil {
		return nil, err
	}
	defer s.close()
	if end, limited := ctx.Deadline(); limited {
		request.TimeoutSeconds = client.Seconds(time.Until(end)) // also for an agent that would not hear of the end
	}
	reply, err := s.Wait(s.ctx, request)
	return reply, s.causeOf(err)
}

func (a *app) printWait(reply *pb.WaitResponse) error {
	if a.json {
		return a.printJSON(reply)
	}
	words := joined(printableLine(reply.Address), printableLine(reply.Interface), printableLine(reply.State))
	if words == "" {
		return nil
	}
	_, err := fmt.Fprintln(a.stdout, words)
	return err
}
