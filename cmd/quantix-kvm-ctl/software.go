package main

import (
	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// packageTypes are the types of packages that agents know.
func packageTypes() []string { return []string{"deb", "rpm", "apk", "pacman", "flatpak", "snap"} }

func (a *app) softwareCommand() *cobra.Command {
	request := &pb.ListInstalledSoftwareRequest{}
	c := &cobra.Command{
		Use:   "software [NAME]",
		Short: "list the packages that are installed in the guest",
		Long: `software lists the installed packages of the guest, or those whose name has NAME in it, in any case: of dpkg, rpm, apk, pacman,
flatpak and snap. What a database does not have is a dash, such as the time of an installation by apk.

What could not be read, so that the list is not complete, is said on stderr.

With --json: ListInstalledSoftwareResponse. total_count is that of all that match, also where --max cuts the list.`,
		Example: `  quantix-kvm-ctl software openssl
  quantix-kvm-ctl software --type deb --all-states
  quantix-kvm-ctl software --json --max 1 | jq .total_count`,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.complete(false, softwareNames),
		RunE: func(c *cobra.Command, args []string) error {
			request.Filter = joined(args...)
			return a.with(c.Context(), requestTimeout, func(s *session) error { return a.software(s, request) })
		},
	}
	f := c.Flags()
	f.StringVar(&request.PackageType, "type", "", "only packages of this `type`: deb, rpm, apk, pacman, flatpak or snap")
	f.Uint32Var(&request.MaxEntries, "max", 0, "list at most `n`, the first by name; 0: all")
	f.BoolVar(&request.AllStates, "all-states", false, "list those too that are not, or no more, wholly installed, with their state")
	complete := cobra.FixedCompletions(packageTypes(), cobra.ShellCompDirectiveNoFileComp)
	if err := c.RegisterFlagCompletionFunc("type", complete); err != nil {
		panic(err) // the flag is the one above
	}
	return c
}

func (a *app) software(s *session, request *pb.ListInstalledSoftwareRequest) error {
	list, err := s.Software(s.ctx, request)
	if err != nil {
		return err
	}
	for _, warning := range list.Warnings {
		a.note("not complete: %s", warning)
	}
	if a.json {
		return a.printJSON(list)
	}
	rows := [][]string{{"NAME", "VERSION", "ARCH", "TYPE", "SIZE", "INSTALLED", "STATE"}}
	if !request.AllStates {
		rows[0] = rows[0][:6]
	}
	for _, p := range list.Software {
		taken := "-"
		if p.SizeBytes > 0 {
			taken = size(p.SizeBytes)
		}
		row := []string{p.Name, dash(p.Version), dash(p.Architecture), p.PackageType, taken, at(p.InstallDate)}
		if request.AllStates {
			row = append(row, p.State)
		}
		rows = append(rows, row)
	}
	return table(a.stdout, rows)
}

// softwareNames returns the names of the installed packages, each once, as completions.
func softwareNames(s *session) (words []string, err error) {
	list, err := s.Software(s.ctx, &pb.ListInstalledSoftwareRequest{})
	for i, p := range list.GetSoftware() {
		if i == 0 || p.Name != list.Software[i-1].Name {
			words = append(words, p.Name)
		}
	}
	return words, err
}
