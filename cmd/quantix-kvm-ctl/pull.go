package main

import (
	"fmt"
	"os"
	"path"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/client"
)

func (a *app) pullCommand() *cobra.Command {
	var recursive, parents bool
	c := &cobra.Command{
		Use:   "pull [-r] REMOTE... LOCAL",
		Short: "copy files out of the guest",
		Long: `pull copies files of the guest to a local path, as cp does: where LOCAL is a directory, or ends with a slash, they go into it
under their own names. LOCAL "-" is standard output.

A file appears at its path when all of it has arrived. Every chunk carries a checksum. A file that grows meanwhile is copied
to its end; one that is replaced by another is an error.

Files get the permission bits that they have in the guest, but never setuid, setgid or sticky; they belong to the caller.
With -r directories are copied with all that is in them, symbolic links as they are, and modification times; not extended
attributes or hard links, which the protocol does not carry. Nothing is written outside LOCAL, whatever names and links the
guest has. What cannot be copied is told, the rest is copied, and the exit code is 1.

With --json: {"files","directories","links","bytes","failed"}.`,
		Example: `  quantix-kvm-ctl pull /etc/hostname .
  quantix-kvm-ctl pull -r /etc/netplan ./backup
  quantix-kvm-ctl pull /var/tmp/etc.tar - | tar t`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			local := args[len(args)-1]
			if local == "-" && (a.json || recursive) {
				return usage("standard output takes neither --json nor -r")
			}
			return a.with(c.Context(), unlimited, func(s *session) error {
				return a.pull(s, args[:len(args)-1], local, recursive, parents)
			})
		},
	}
	c.Flags().BoolVarP(&recursive, "recursive", "r", false, "copy directories with all that is in them")
	c.Flags().BoolVarP(&parents, "parents", "p", false, "make missing local directories")
	return c
}

func (a *app) pull(s *session, remotes []string, local string, recursive, parents bool) error {
	into := false
	if local != "-" {
		info, err := os.Stat(local)
		into = os.IsPathSeparator(local[len(local)-1]) || err == nil && info.IsDir()
		if len(remotes) > 1 && !into {
			return fmt.Errorf("%s: not a directory", local)
		}
		if err := makeParents(local, into, parents); err != nil {
			return err
		}
	}
	var out outcome
	for _, remote := range remotes {
		err := a.pullOne(s, remote, local, into, recursive, &out)
		if s.ctx.Err() != nil || client.Gone(err) {
			return err
		}
		if err != nil {
			a.failedOne(&out, err)
		}
	}
	return a.copied(&out)
}

// makeParents makes the directory that files go into.
func makeParents(local string, into, parents bool) error {
	if !parents {
		return nil
	}
	if !into {
		local = filepath.Dir(local)
	}
	return os.MkdirAll(local, 0o755)
}

func (a *app) pullOne(s *session, remote, local string, into, recursive bool, out *outcome) error {
	if local == "-" {
		got, err := s.PullTo(s.ctx, remote, a.stdout, client.PullOptions{})
		out.add(client.Copied{Files: 1, Bytes: got.Size})
		return err
	}
	dir, err := s.IsDir(s.ctx, remote)
	if err != nil {
		return err
	}
	target := local
	if name := path.Base(remote); into && name != "." && name != ".." && name != "/" {
		target = filepath.Join(local, name)
	}
	m := a.meter(remote)
	defer m.clear()
	switch {
	case dir && !recursive:
		return usage("%s is a directory of the guest: give -r", remote)
	case dir:
		copied, err := s.PullTree(s.ctx, remote, target, client.Tree{Progress: m.progress(), Failed: a.tell(m, out)})
		out.add(copied)
		return err
	}
	got, err := s.PullFile(s.ctx, remote, target, client.PullOptions{Progress: m.progress()})
	if err == nil {
		out.add(client.Copied{Files: 1, Bytes: got.Size})
	}
	return err
}
