package main

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func (a *app) infoCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "info",
		Short: "show what the guest is and what its agent can do",
		Long: `info shows what the agent says of its guest, what it can do, and which layers of protection it has: a layer that is missing
takes the promises that rest on it away.

With --json: {"agent_ready": AgentReadyEvent or null, "capabilities": GetCapabilitiesResponse}.`,
		Example: `  quantix-kvm-ctl info
  quantix-kvm-ctl --json info | jq -r .agent_ready.hostname`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), requestTimeout, a.info)
		},
	}
}

func (a *app) info(s *session) error {
	can, err := client.Call[*pb.GetCapabilitiesResponse](s.ctx, s.Client, &pb.GetCapabilitiesRequest{})
	if err != nil {
		return err
	}
	ready, err := s.Ready(s.ctx)
	if err != nil && s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	if a.json {
		return a.infoJSON(ready, can)
	}
	var rows [][]string
	if ready != nil {
		rows = append(rows,
			[]string{"host name", ready.Hostname},
			[]string{"system", strings.TrimSpace(ready.OsName + " " + ready.OsVersion)},
			[]string{"kernel", ready.KernelVersion},
			[]string{"addresses", strings.Join(ready.IpAddresses, ", ")})
		for _, id := range [][]string{{"machine", ready.ProductUuid}, {"installation", ready.MachineId}} {
			if id[1] != "" { // other agents do not say it
				rows = append(rows, id)
			}
		}
	}
	rows = append(rows,
		[]string{"platform", can.Os + "/" + can.Architecture},
		[]string{"agent", can.Version},
		[]string{"build", strings.TrimSpace(can.BuildCommit + " " + can.BuildTime)},
		[]string{"can", strings.Join(can.Capabilities, ", ")})
	for _, name := range slices.Sorted(maps.Keys(can.Features)) {
		rows = append(rows, []string{name, can.Features[name]})
	}
	return table(a.stdout, rows)
}

func (a *app) infoJSON(ready *pb.AgentReadyEvent, can *pb.GetCapabilitiesResponse) error {
	reply := map[string]json.RawMessage{"agent_ready": []byte("null")}
	var err error
	if ready != nil {
		if reply["agent_ready"], err = toJSON(ready); err != nil {
			return err
		}
	}
	if reply["capabilities"], err = toJSON(can); err != nil {
		return err
	}
	return a.printJSON(reply)
}
