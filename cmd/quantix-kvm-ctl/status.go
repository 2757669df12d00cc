package main

import (
	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/cmd/internal/statustext"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "show how the agent is",
		Long: `status asks the agent how it is: its state, the hosts on its ports and when each was last heard, the open transaction,
what it found interrupted when it started, the layers of the sandbox around scripts, its configuration and what of it waits
for a restart, and its latest warnings and errors. It is answered also while the agent recovers, or refuses everything else
because its configuration has faults.

With --json: GetStatusResponse. Its times are by the guest's clock, which is its field now.`,
		Example: `  quantix-kvm-ctl status
  quantix-kvm-ctl --json status | jq -r '.state, .config.error'`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), requestTimeout, a.status)
		},
	}
}

func (a *app) status(s *session) error {
	reply, err := client.Call[*pb.GetStatusResponse](s.ctx, s.Client, &pb.GetStatusRequest{})
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(reply)
	}
	return table(a.stdout, statustext.Rows(reply))
}
