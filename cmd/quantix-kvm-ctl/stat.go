package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

func (a *app) statCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "stat PATH...",
		Short: "describe files of the guest",
		Long: `stat describes what is at paths of the guest; a symbolic link itself, not what it leads to.

With --json: a DirectoryEntry in a line for each path.`,
		Example: `  quantix-kvm-ctl stat /etc/hosts
  quantix-kvm-ctl stat --json /etc/resolv.conf | jq -r .symlink_target`,
		Args: cobra.MinimumNArgs(1), ValidArgsFunction: a.completePath,
		RunE: func(c *cobra.Command, paths []string) error {
			return a.with(c.Context(), requestTimeout, func(s *session) error {
				var failed []error
				for i, path := range paths {
					e, err := s.Stat(s.ctx, path)
					if s.ctx.Err() != nil || client.Gone(err) {
						return err
					}
					if err == nil {
						err = a.printStat(path, e, i)
					}
					failed = append(failed, err)
				}
				return errors.Join(failed...)
			})
		},
	}
}

func (a *app) printStat(path string, e *pb.DirectoryEntry, nth int) error {
	if a.json {
		return a.printJSON(e)
	}
	if nth > 0 {
		fmt.Fprintln(a.stdout)
	}
	kind, _ := kindOf(e)
	if e.IsSymlink {
		kind += " to " + text.UnescapePath(e.SymlinkTarget)
	}
	return table(a.stdout, [][]string{
		{"path", path},
		{"type", kind},
		{"size", fmt.Sprintf("%d (%s)", e.SizeBytes, size(e.SizeBytes))},
		{"mode", fmt.Sprintf("%04o (%s)", e.Mode&permissionBits, modeText(e))},
		{"owner", e.Owner},
		{"group", e.Group},
		{"modified", at(e.ModifiedAt)},
		{"created", at(e.CreatedAt)},
	})
}
