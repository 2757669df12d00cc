package main

import (
	"os"
	"path"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// pullFlags are the flags of pull.
type pullFlags struct {
	recursive, parents, sum, noResume bool
	keep                              keepFlags
}

func (a *app) pullCommand() *cobra.Command {
	var f pullFlags
	c := &cobra.Command{
		Use:   "pull [-r] REMOTE... LOCAL",
		Short: "copy files out of the guest",
		Long: `pull copies files of the guest to a local path. Where LOCAL is a directory a file goes into it under its own
name. LOCAL "-" is standard output. With -r a directory is copied with all that is in it: LOCAL becomes its copy, the first time
and each time after. With a slash at the end of LOCAL, and where there are several, each goes into LOCAL under its own name.
What is here and not in the guest stays.

A file appears at its path when all of it has arrived. Every chunk carries a checksum. A file that grows meanwhile is copied
to its end; one that is replaced by another is an error. --sha256 compares what came with the digest that the guest has of the
file afterwards, which needs scripts in the guest.

With -r, -p and -a a file that is here with the same size and time of modification, or else with the same SHA-256, is not
fetched; --checksum looks at the SHA-256 alone.

When the connection is lost, pull connects again and goes on where it stopped. A file that has changed by then is copied from
its beginning; on standard output, which cannot be taken back, that is an error. pull gives up when it has got no further for
a minute.

Files get the permission bits that they have in the guest, but never setuid, setgid or sticky; they belong to the caller. With
-r symbolic links are copied as they are, and modification times come along; -p keeps the time of a single file too. -a is -r,
and keeps as well what only a guest whose root is trusted should decide: setuid, setgid and sticky, extended attributes
(user.*, ACLs, file capabilities), which names are those of one file, and, where pull runs as root, owners, by name, or by
number where there is no such name here. Nothing is written outside LOCAL, whatever names and links the guest has. What cannot
be copied is named on stderr, the rest is copied, and the exit code is 1.

--exclude leaves out files and directories by a pattern of *, ? and [a-z]: of a name at any depth, or, where it has a slash,
of the path below REMOTE.

With --json: {"files","directories","links","unchanged","bytes","failed"}.`,
		Example: `  quantix-kvm-ctl pull /etc/hostname .
  quantix-kvm-ctl pull -r /etc/netplan ./backup
  quantix-kvm-ctl pull -a --exclude '*.log' /srv/app ./app
  quantix-kvm-ctl pull /var/tmp/etc.tar - | tar t`,
		Args: cobra.MinimumNArgs(2), ValidArgsFunction: a.completePath,
		RunE: func(c *cobra.Command, args []string) error {
			local := args[len(args)-1]
			if err := f.keep.check(); err != nil {
				return err
			}
			f.recursive = f.recursive || f.keep.all
			if local == "-" && (a.json || f.recursive || f.keep.times) {
				return usage("standard output takes neither --json nor -r, -p or -a")
			}
			return a.with(c.Context(), noTimeout, func(s *session) error {
				link := a.newLink(s, !f.noResume)
				defer link.Close()
				return a.pull(s, link, args[:len(args)-1], local, f)
			})
		},
	}
	c.Flags().BoolVarP(&f.recursive, "recursive", "r", false, "copy directories with all that is in them")
	c.Flags().BoolVar(&f.parents, "parents", false, "make missing local directories")
	f.keep.add(c)
	c.Flags().BoolVar(&f.sum, "sha256", false, "compare with the guest's SHA-256 of each file afterwards")
	c.Flags().BoolVar(&f.noResume, "no-resume", false, noResumeUsage)
	return c
}

func (a *app) pull(s *session, link *client.Link, remotes []string, local string, f pullFlags) error {
	to := destination{path: local}
	if local != "-" {
		info, err := os.Stat(local)
		to.into = os.IsPathSeparator(local[len(local)-1]) || len(remotes) > 1
		to.isDir = os.IsPathSeparator(local[len(local)-1]) || err == nil && info.IsDir()
		if len(remotes) > 1 && !to.isDir {
			return fault.Wrapf(syscall.ENOTDIR, "%s: not a directory", local)
		}
		if err := makeParents(local, to.isDir, f.parents); err != nil {
			return err
		}
	}
	var out copyResult
	for _, remote := range remotes {
		err := a.pullOne(s, link, remote, to, f, &out)
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

func (a *app) pullOne(s *session, link *client.Link, remote string, to destination, f pullFlags, out *copyResult) error {
	if to.path == "-" {
		got, err := link.PullTo(s.ctx, remote, a.stdout, client.PullOptions{SHA256: f.sum})
		out.add(client.CopyStats{Files: 1, Bytes: got.Size})
		return err
	}
	dir, err := isDir(s.ctx, link, remote)
	if err != nil {
		return err
	}
	target := to.of(path.Base(remote), dir, func(dir, name string) string { return filepath.Join(dir, name) })
	m := a.meter(remote)
	defer m.clear()
	tree := f.keep.tree()
	tree.SHA256, tree.Progress, tree.Failed = f.sum, m.progress(), a.failureHandler(m, out)
	switch {
	case dir && !f.recursive:
		return usage("%s is a directory of the guest: give -r", remote)
	case dir:
		copied, err := link.PullTree(s.ctx, remote, target, tree)
		out.add(copied)
		return err
	case tree.All || tree.Times:
		copied, err := link.PullKeeping(s.ctx, remote, target, tree)
		out.add(copied)
		return err
	}
	got, err := link.PullFile(s.ctx, remote, target, client.PullOptions{SHA256: f.sum, Progress: m.progress()})
	if err == nil {
		out.add(client.CopyStats{Files: 1, Bytes: got.Size})
	}
	return err
}
