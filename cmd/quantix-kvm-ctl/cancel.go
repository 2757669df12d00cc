package main

import (
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func (a *app) cancelCommand() *cobra.Command {
	var key, transaction string
	c := &cobra.Command{
		Use:   "cancel ID | NAME | --key KEY | --transaction ID",
		Short: "stop a request or a script that runs",
		Long: `cancel stops a request that another client started, by its message id, a command by its name (exec --name), or a
script, by its key or the id of its transaction, or the beginning of that. A command is ended; a script is rolled back. cancel
does not wait for that.

The exit code is 1 where nothing of that name was running.

With --json: {"cancelled": BOOL}.`,
		Example: `  quantix-kvm-ctl cancel --key release-42
  quantix-kvm-ctl cancel backup
  quantix-kvm-ctl cancel 2f9c1c3e-6a3b-4a63-9b27-0f4d6d1f8f2e`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			request := &pb.CancelRequest{Key: key, TransactionId: transaction}
			if len(args) == 1 {
				request.MessageId = args[0]
			}
			named := 0
			for _, name := range []string{request.MessageId, key, transaction} {
				if name != "" {
					named++
				}
			}
			if named != 1 {
				return usage("cancel needs one of ID, --key and --transaction")
			}
			return a.with(c.Context(), requestTimeout, func(s *session) (err error) {
				if request.TransactionId != "" {
					if request.TransactionId, err = openID(s, request.TransactionId); err != nil {
						return err
					}
				}
				if request.MessageId != "" {
					if id := runningCommand(s, request.MessageId); id != "" {
						return a.cancelJob(s, id)
					}
				}
				return a.cancel(s, request)
			})
		},
	}
	c.Flags().StringVar(&key, "key", "", "stop the script that runs under this `key`")
	c.Flags().StringVar(&transaction, "transaction", "", "stop the script with this transaction `id`, or its beginning")
	return c
}

// runningCommand returns the id of the job that runs by a name; empty: there is none, or the agent has no jobs.
func runningCommand(s *session, name string) string {
	list, err := s.Jobs(s.ctx)
	if err != nil {
		return "" // the request says what is wrong
	}
	for _, job := range list { // the newest first
		if job.Name == name && job.State == pb.JobState_JOB_STATE_RUNNING {
			return job.Id
		}
	}
	return ""
}

func (a *app) cancelJob(s *session, id string) error {
	if err := s.SignalJob(s.ctx, id, "", true); err != nil {
		return err
	}
	if a.json {
		return a.printJSON(map[string]bool{"cancelled": true})
	}
	return nil
}

func (a *app) cancel(s *session, request *pb.CancelRequest) error {
	cancelled, err := s.Cancel(s.ctx, request)
	if err != nil {
		return err
	}
	if a.json {
		if err := a.printJSON(map[string]bool{"cancelled": cancelled}); err != nil {
			return err
		}
	}
	if !cancelled {
		return fault.Wrapf(fs.ErrNotExist, "nothing of that name is running")
	}
	return nil
}
