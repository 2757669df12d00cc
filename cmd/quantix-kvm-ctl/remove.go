package main

import (
	"errors"
	"io/fs"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/client"
)

func (a *app) rmCommand() *cobra.Command {
	var recursive, force bool
	c := &cobra.Command{
		Use:   "rm [-r] [-f] PATH...",
		Short: "remove files of the guest",
		Long: `rm removes files, links and empty directories of the guest, and with -r whole trees. A link is removed, not what it leads
to. The paths are independent of each other: one that fails does not keep the others.

With --json: {"removed": [PATH...]}.`,
		Example: `  quantix-kvm-ctl rm /etc/netplan/50-old.yaml
  quantix-kvm-ctl rm -rf /var/tmp/build`,
		Args: cobra.MinimumNArgs(1), ValidArgsFunction: a.completePath,
		RunE: func(c *cobra.Command, paths []string) error {
			return a.with(c.Context(), requestTimeout, func(s *session) error {
				return a.each(s, paths, "removed", func(path string) (bool, error) {
					err := s.Remove(s.ctx, path, recursive)
					if force && errors.Is(err, fs.ErrNotExist) {
						return false, nil
					}
					return err == nil, err
				})
			})
		},
	}
	c.Flags().BoolVarP(&recursive, "recursive", "r", false, "remove directories with all that is in them")
	c.Flags().BoolVarP(&force, "force", "f", false, "what does not exist is no error")
	return c
}

// each calls do for every path and returns all failures. With --json it prints the paths for which do returned true.
func (a *app) each(s *session, paths []string, word string, do func(path string) (bool, error)) error {
	done := []string{}
	var failed []error
	for _, path := range paths {
		ok, err := do(path)
		if s.ctx.Err() != nil || client.Gone(err) {
			return err
		}
		if ok {
			done = append(done, path)
		}
		failed = append(failed, err)
	}
	if a.json {
		if err := a.printJSON(map[string][]string{word: done}); err != nil {
			return err
		}
	}
	return errors.Join(failed...)
}
