package main

import (
	"fmt"
	"os"
	"path"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/client"
)

// pullFlags are the flags of pull.
type pullFlags struct {
	recursive, parents, sum, noResume bool
}

func (a *app) pullCommand() *cobra.Command {
	var f pullFlags
	c := &cobra.Command{
		Use:   "pull [-r] REMOTE... LOCAL",
		Short: "copy files out of the guest",
		Long: `pull copies files of the guest to a local path, as cp does: where LOCAL is a directory, or ends with a slash, they go into it
under their own names. LOCAL "-" is standard output.

A file appears at its path when all of it has arrived. Every chunk carries a checksum. A file that grows meanwhile is copied
to its end; one that is replaced by another is an error. --sha256 compares what came with the digest that the guest has of the
file afterwards, which needs scripts in the guest.

When the connection is lost, pull connects again and goes on where it stopped. A file that has changed by then is copied from
its beginning; on standard output, which cannot be taken back, that is an error. pull gives up when it has got no further for
a minute.

Files get the permission bits that they have in the guest, but never setuid, setgid or sticky; they belong to the caller.
With -r directories are copied with all that is in them, symbolic links as they are, and modification times; not extended
attributes or hard links, which the protocol does not carry. Nothing is written outside LOCAL, whatever names and links the
guest has. What cannot be copied is told, the rest is copied, and the exit code is 1.

With --json: {"files","directories","links","bytes","failed"}.`,
		Example: `  quantix-kvm-ctl pull /etc/hostname .
  quantix-kvm-ctl pull -r /etc/netplan ./backup
  quantix-kvm-ctl pull /var/tmp/etc.tar - | tar t`,
		Args: cobra.MinimumNArgs(2), ValidArgsFunction: a.completePath,
		RunE: func(c *cobra.Command, args []string) error {
			local := args[len(args)-1]
			if local == "-" && (a.json || f.recursive) {
				return usage("standard output takes neither --json nor -r")
			}
			return a.with(c.Context(), noTimeout, func(s *session) error {
				link := a.newLink(s, !f.noResume)
				defer link.Close()
				return a.pull(s, link, args[:len(args)-1], local, f)
			})
		},
	}
	c.Flags().BoolVarP(&f.recursive, "recursive", "r", false, "copy directories with all that is in them")
	c.Flags().BoolVarP(&f.parents, "parents", "p", false, "make missing local directories")
	c.Flags().BoolVar(&f.sum, "sha256", false, "compare with the guest's SHA-256 of each file afterwards")
	c.Flags().BoolVar(&f.noResume, "no-resume", false, noResumeUsage)
	return c
}

func (a *app) pull(s *session, link *client.Link, remotes []string, local string, f pullFlags) error {
	into := false
	if local != "-" {
		info, err := os.Stat(local)
		into = os.IsPathSeparator(local[len(local)-1]) || err == nil && info.IsDir()
		if len(remotes) > 1 && !into {
			return fmt.Errorf("%s: not a directory", local)
		}
		if err := makeParents(local, into, f.parents); err != nil {
			return err
		}
	}
	var out copyResult
	for _, remote := range remotes {
		err := a.pullOne(s, link, remote, local, into, f, &out)
		if s.ctx.Err() != nil || client.Gone(err) {
			return err
		}
		if err != nil {
			a.reportFailure(&out, err)
		}
	}
	return a.finishCopy(&out)
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

func (a *app) pullOne(s *session, link *client.Link, remote, local string, into bool, f pullFlags, out *copyResult) error {
	if local == "-" {
		got, err := link.PullTo(s.ctx, remote, a.stdout, client.PullOptions{SHA256: f.sum})
		out.add(client.CopyStats{Files: 1, Bytes: got.Size})
		return err
	}
	dir, err := isDir(s.ctx, link, remote)
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
	case dir && !f.recursive:
		return usage("%s is a directory of the guest: give -r", remote)
	case dir:
		copied, err := link.PullTree(s.ctx, remote, target, client.Tree{SHA256: f.sum, Progress: m.progress(), Failed: a.failureHandler(m, out)})
		out.add(copied)
		return err
	}
	got, err := link.PullFile(s.ctx, remote, target, client.PullOptions{SHA256: f.sum, Progress: m.progress()})
	if err == nil {
		out.add(client.CopyStats{Files: 1, Bytes: got.Size})
	}
	return err
}
