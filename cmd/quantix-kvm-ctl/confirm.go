package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/cmd/internal/scriptreport"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func (a *app) confirmCommand() *cobra.Command {
	var rollback bool
	var extend time.Duration
	c := &cobra.Command{
		Use:   "confirm ID [--rollback | --extend TIME]",
		Short: "keep the changes of a script that must be confirmed",
		Long: `confirm keeps the changes of a script that was run with --confirm, or that declares that it must be confirmed: unless that
comes in time, the agent takes all of it back by itself. So does a boot of the guest; a restart of the agent keeps the deadline.
Meanwhile no other script can change the guest. ID is that of the transaction, or its beginning, as run prints it; status and tx
list show it.

Only hosts of the port that the script came by can confirm, unless the configuration of the agent says otherwise. To confirm
what is confirmed already does nothing.

With --json: ConfirmResponse.

EXIT STATUS
  0  the changes stay; with --rollback they are taken back; with --extend there is more time
  1  there is no such transaction; with --rollback and --extend: it is committed already
  4  refused, or the transaction awaits no confirmation yet
  5  too late: everything is taken back
  6  too late, or --rollback: not everything could be taken back`,
		Example: `  quantix-kvm-ctl confirm 01a2077db00b8a7213684abd1156b6cb
  quantix-kvm-ctl confirm 01a2077db00b8a7213684abd1156b6cb --extend 5m`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.complete(false, awaitingIDs),
		RunE: func(c *cobra.Command, args []string) error {
			request := &pb.ConfirmRequest{TransactionId: args[0], Action: pb.ConfirmAction_CONFIRM_ACTION_CONFIRM}
			switch extends := c.Flags().Changed("extend"); {
			case rollback && extends:
				return usage("--rollback and --extend exclude each other")
			case extends && extend <= 0:
				return usage("--extend is more than 0")
			case extends:
				request.Action, request.ExtendSeconds = pb.ConfirmAction_CONFIRM_ACTION_EXTEND, client.Seconds(extend)
			case rollback:
				request.Action = pb.ConfirmAction_CONFIRM_ACTION_ROLLBACK
			}
			return a.with(c.Context(), requestTimeout, func(s *session) (err error) {
				if request.TransactionId, err = openID(s, request.TransactionId); err != nil {
					return err
				}
				return a.confirm(s, request)
			})
		},
	}
	c.Flags().BoolVar(&rollback, "rollback", false, "take the changes back now")
	c.Flags().DurationVar(&extend, "extend", 0, "have the deadline at least this `time` from now")
	return c
}

// openID returns the id of the transaction that is open and begins as given, or else of the one that has ended and does; where
// there is neither, what was given.
func openID(s *session, given string) (string, error) {
	reply, err := client.Call[*pb.GetStatusResponse](s.ctx, s.Client, &pb.GetStatusRequest{})
	if client.Gone(err) || s.ctx.Err() != nil {
		return "", err
	}
	open := reply.GetJournal().GetOpen().GetTransactionId() // empty for an older agent, which has no status
	if given != "" && strings.HasPrefix(open, given) {
		return open, nil
	}
	return transactionID(s, given)
}

func (a *app) confirm(s *session, request *pb.ConfirmRequest) error {
	reply, err := s.Confirm(s.ctx, request)
	if err != nil {
		return err
	}
	if a.json {
		if err := a.printJSON(reply); err != nil {
			return err
		}
	} else {
		a.printConfirmed(request.TransactionId, reply)
	}
	return a.confirmOutcome(reply)
}

// printConfirmed prints the outcome of a transaction.
func (a *app) printConfirmed(id string, reply *pb.ConfirmResponse) {
	if a.quiet {
		return
	}
	for _, c := range reply.AfterCommit {
		fmt.Fprintln(a.stderr, scriptreport.AfterLine(c))
	}
	for _, c := range reply.RollbackRan {
		fmt.Fprintln(a.stderr, scriptreport.RanLine(c))
	}
	for _, c := range reply.NotUndone {
		fmt.Fprintf(a.stderr, "not undone: %s\n", scriptreport.ChangeLine(reply.Status, &pb.Change{Op: c.Op, Target: c.Target, Action: c.Action}))
	}
	words := scriptreport.StatusText(reply.Status)
	if reply.Status == pb.ScriptStatus_SCRIPT_STATUS_AWAITING_CONFIRM {
		words = "undone in " + untilText(reply.RemainingMs) + " unless it is confirmed"
	}
	fmt.Fprintf(a.stderr, "%s: transaction %s\n", words, printable(id))
}

// untilText is a time that is left, in words.
func untilText(ms uint64) string {
	return (time.Duration(ms) * time.Millisecond).Round(time.Second).String()
}

// confirmOutcome returns the exit code that an answer stands for, with its error.
func (a *app) confirmOutcome(reply *pb.ConfirmResponse) error {
	if reply.Error == nil {
		return nil
	}
	code := exitFailed
	switch reply.Status {
	case pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK:
		code = exitRolledBack
	case pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED, pb.ScriptStatus_SCRIPT_STATUS_PARTIAL:
		code = exitPartial
	}
	if a.json {
		return &failure{code: code} // the error is in the reply
	}
	told := proto.CloneOf(reply.Error)
	if told.Kind == "params" { // a script's, and here there are none
		told.Kind = ""
	}
	return &failure{code, errors.New(strings.TrimSpace(scriptreport.ErrorText(told)))}
}
