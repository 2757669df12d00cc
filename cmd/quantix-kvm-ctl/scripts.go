package main

import (
	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func (a *app) scriptsCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "scripts",
		Short: "list the scripts that the guest has",
		Long: `scripts lists the scripts that run can start by name: the administrator's, those of packages, and those that the agent brings.
One that cannot run is listed with the reason. CHANGES says whether a script may change the guest; run NAME --help says what it
needs.

With --json: an array of ScriptInfo, with the declared parameters.`,
		Example: `  quantix-kvm-ctl scripts
  quantix-kvm-ctl --json scripts | jq '.[] | select(.name == "motd").params_schema'`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.with(c.Context(), requestTimeout, func(s *session) error {
				scripts, err := s.Scripts(s.ctx)
				if err != nil {
					return err
				}
				return a.printScripts(scripts)
			})
		},
	}
}

func (a *app) printScripts(scripts []*pb.ScriptInfo) error {
	if a.json {
		array, err := listJSON(scripts)
		if err != nil {
			return err
		}
		return a.printJSON(array)
	}
	rows := [][]string{{"NAME", "VERSION", "CHANGES", "DESCRIPTION"}}
	for _, script := range scripts {
		changes, words := "yes", script.Description
		if script.Readonly {
			changes = "no"
		}
		if script.Error != "" {
			words = "cannot run: " + script.Error
		}
		rows = append(rows, []string{script.Name, script.Version, changes, words})
	}
	return table(a.stdout, rows)
}
