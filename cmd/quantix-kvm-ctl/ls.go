package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

func (a *app) lsCommand() *cobra.Command {
	var long, all bool
	c := &cobra.Command{
		Use:   "ls [-l] [-a] PATH...",
		Short: "list directories of the guest",
		Long: `ls lists what is in directories of the guest, sorted by name; stat describes what is no directory. Directories have no
size. Devices, pipes and sockets look like files, since the protocol does not distinguish them.

With --json: an array of DirectoryEntry. In it, a byte of a name that is not UTF-8 is written as %80 to %FF.`,
		Example: `  quantix-kvm-ctl ls -la /etc/netplan
  quantix-kvm-ctl ls --json /var/log | jq -r '.[] | select(.is_directory).name'`,
		Args: cobra.MinimumNArgs(1), ValidArgsFunction: a.completePath,
		RunE: func(c *cobra.Command, paths []string) error {
			return a.with(c.Context(), requestTimeout, func(s *session) error { return a.ls(s, paths, long, all) })
		},
	}
	c.Flags().BoolVarP(&long, "long", "l", false, "show mode, owner, group, size and time as well")
	c.Flags().BoolVarP(&all, "all", "a", false, "show names that begin with a dot as well")
	return c
}

func (a *app) ls(s *session, paths []string, long, all bool) error {
	var entries []*pb.DirectoryEntry // for --json
	var failed []error
	for i, path := range paths {
		listed, err := a.listOne(s, path, all)
		if s.ctx.Err() != nil || client.Gone(err) {
			return err
		}
		failed = append(failed, err)
		entries = append(entries, listed...)
		if a.json {
			continue
		}
		if len(paths) > 1 {
			if i > 0 {
				fmt.Fprintln(a.stdout)
			}
			fmt.Fprintf(a.stdout, "%s:\n", printable(path))
		}
		if err := a.printEntries(listed, long); err != nil {
			return err
		}
	}
	if a.json {
		array, err := listJSON(entries)
		if err != nil {
			return err
		}
		if err := a.printJSON(array); err != nil {
			return err
		}
	}
	return errors.Join(failed...)
}

// listOne lists a directory. Entries may come together with an error.
func (a *app) listOne(s *session, path string, all bool) (entries []*pb.DirectoryEntry, err error) {
	err = s.List(s.ctx, path, all, func(e *pb.DirectoryEntry) error {
		entries = append(entries, e)
		return nil
	})
	return entries, err
}

func (a *app) printEntries(entries []*pb.DirectoryEntry, long bool) error {
	if !long {
		for _, e := range entries {
			fmt.Fprintln(a.stdout, printableLine(text.UnescapePath(e.Name)))
		}
		return nil
	}
	var rows [][]string
	for _, e := range entries {
		name := text.UnescapePath(e.Name)
		if e.IsSymlink {
			name += " -> " + text.UnescapePath(e.SymlinkTarget)
		}
		amount := "-"
		if !e.IsDirectory {
			amount = size(e.SizeBytes)
		}
		rows = append(rows, []string{modeText(e), e.Owner, e.Group, amount, at(e.ModifiedAt), name})
	}
	return table(a.stdout, rows)
}
