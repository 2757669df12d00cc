package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// pushFlags are the flags of push.
type pushFlags struct {
	recursive    bool
	mode         string
	owner, group string
	parents, sum bool
	noResume     bool
	keep         keepFlags
}

// keepFlags are the flags of push and pull that say what a copy keeps, and what is copied.
type keepFlags struct {
	all, times, checksum bool
	exclude              []string
}

func (f *keepFlags) add(c *cobra.Command) {
	c.Flags().BoolVarP(&f.all, "archive", "a", false, "-r, and keep owners, modes, times, hard links and extended attributes")
	c.Flags().BoolVarP(&f.times, "preserve", "p", false, "keep modes and times of modification")
	c.Flags().BoolVarP(&f.checksum, "checksum", "c", false, "compare files by their digests, and not by size and time")
	c.Flags().StringArrayVar(&f.exclude, "exclude", nil, "leave out what matches a `pattern`; may be given again")
}

// check returns the error of the command line.
func (f *keepFlags) check() error {
	for _, pattern := range f.exclude {
		if err := client.CheckExclude(pattern); err != nil {
			return usage("--exclude: %w", err)
		}
	}
	return nil
}

// tree returns the options of a tree.
func (f *keepFlags) tree() client.Tree {
	return client.Tree{All: f.all, Times: f.times, Checksum: f.checksum, Exclude: f.exclude}
}

func (a *app) pushCommand() *cobra.Command {
	var f pushFlags
	c := &cobra.Command{
		Use:   "push [-r] LOCAL... REMOTE",
		Short: "copy files into the guest",
		Long: `push copies local files to a path of the guest. Where REMOTE is a directory a file goes into it under its own
name. LOCAL "-" is standard input. With -r a directory is copied with all that is in it: REMOTE becomes its copy, the first time
and each time after. With a slash at the end of REMOTE, and where there are several, each goes into REMOTE under its own
name. What is in the guest and not here stays.

A file appears at its path when all of it has arrived, and is then on disk; a copy that fails leaves what was there. A link
at the path is followed where only root can have made it. Every file carries a checksum; --sha256 has the agent check the
SHA-256 of each file as well, before it appears.

With -r a file whose content is in the guest already is not sent: with -p and -a one of the same size and time of
modification, else, and with --checksum, one of the same SHA-256.

When the connection is lost, push connects again and goes on behind what the agent has; where that is gone, since the agent was
restarted or waited for more than 90 seconds, it sends the file from its beginning. It gives up when it has got no further for a
minute. Standard input from a pipe cannot be sent twice: there a lost connection is an error.

Without --mode a single file keeps the mode of the file that it replaces, or becomes 0644. With -r files and new directories
get the permission bits that they have here, symbolic links are made as they are, and all belong to the agent unless --owner
and --group say whose they are. -p keeps modes, of directories that are there as well, and times of modification. -a is -r,
and keeps owners too (by name, or by number where the guest has no such name), setuid, setgid and sticky, which names are
those of one file, and the extended attributes user.*, ACLs and file capabilities. Devices, pipes and sockets are left out.
What cannot be copied is named on stderr, the rest is copied, and the exit code is 1.

--exclude leaves out files and directories by a pattern of *, ? and [a-z]: of a name at any depth, or, where it has a slash,
of the path below LOCAL.

With --json: {"files","directories","links","unchanged","bytes","failed"}.`,
		Example: `  quantix-kvm-ctl push motd /etc/motd
  quantix-kvm-ctl push --mode 0600 --owner app --parents key.pem /etc/app/tls/
  quantix-kvm-ctl push -r ./site /srv/www
  quantix-kvm-ctl push -a --exclude '*.tmp' --exclude /cache ./app /opt/app
  tar c etc | quantix-kvm-ctl push - /var/tmp/etc.tar`,
		Args: cobra.MinimumNArgs(2), ValidArgsFunction: a.completePath,
		RunE: func(c *cobra.Command, args []string) error {
			mode, err := parseMode(f.mode)
			if err != nil {
				return err
			}
			if err := f.keep.check(); err != nil {
				return err
			}
			o := client.PushOptions{Mode: mode, Owner: f.owner, Group: f.group, Parents: f.parents, SHA256: f.sum}
			return a.with(c.Context(), noTimeout, func(s *session) error {
				link := a.newLink(s, !f.noResume)
				defer link.Close()
				tree := f.keep.tree()
				tree.Push = o
				return a.push(s, link, args[:len(args)-1], args[len(args)-1], tree, f.recursive || f.keep.all)
			})
		},
	}
	c.Flags().BoolVarP(&f.recursive, "recursive", "r", false, "copy directories with all that is in them")
	c.Flags().StringVarP(&f.mode, "mode", "m", "", "permission `bits` of files in octal")
	c.Flags().StringVar(&f.owner, "owner", "", "`user` who owns the files, by name or number")
	c.Flags().StringVar(&f.group, "group", "", "`group` of the files, by name or number")
	a.flagWords(c, "owner", userNames)
	a.flagWords(c, "group", groupNames)
	c.Flags().BoolVar(&f.parents, "parents", false, "make missing directories of the guest")
	f.keep.add(c)
	c.Flags().BoolVar(&f.sum, "sha256", false, "have the agent check the SHA-256 of each file")
	c.Flags().BoolVar(&f.noResume, "no-resume", false, noResumeUsage)
	return c
}

// copyResult counts what was copied, and what could not be.
type copyResult struct {
	client.CopyStats
	failed int
	code   int // of the last failure
}

func (a *app) push(s *session, link *client.Link, locals []string, remote string, tree client.Tree, recursive bool) error {
	into := strings.HasSuffix(remote, "/")
	there := into
	if !into {
		var err error
		if there, err = isDir(s.ctx, link, remote); err != nil {
			return err
		}
	}
	if len(locals) > 1 && !there {
		return fault.Wrapf(syscall.ENOTDIR, "%s: not a directory of the guest", remote)
	}
	to := destination{remote, into || len(locals) > 1, there}
	var out copyResult
	for _, local := range locals {
		err := a.pushOne(s, link, local, to, tree, recursive, &out)
		if s.ctx.Err() != nil || client.Gone(err) {
			return err
		}
		if err != nil {
			a.reportFailure(&out, err)
		}
	}
	return a.finishCopy(&out)
}

// destination is where something is copied to.
type destination struct {
	path  string
	into  bool // it goes in there under its own name
	isDir bool // a file goes in there under its own name
}

// of returns the path that something of a name gets; join puts a name below a directory.
func (d destination) of(name string, dir bool, join func(dir, name string) string) string {
	if !d.into && (dir || !d.isDir) || name == "." || name == ".." || name == "/" {
		return d.path
	}
	return join(d.path, name)
}

func joinGuest(dir, name string) string { return strings.TrimSuffix(dir, "/") + "/" + name }

func (a *app) pushOne(
	s *session, link *client.Link, local string, to destination, tree client.Tree, recursive bool, out *copyResult,
) error {
	if local == "-" {
		if to.isDir {
			return fmt.Errorf("%s is a directory: standard input has no name there", to.path)
		}
		return a.pushFile(s, link, a.stdin, to.path, tree.Push, out)
	}
	info, err := os.Stat(local)
	if err != nil {
		return err
	}
	target := to.of(filepath.Base(local), info.IsDir(), joinGuest)
	if !info.IsDir() && !tree.All && !tree.Times {
		from, err := openLocal(s.ctx, local)
		if err != nil {
			return err
		}
		defer from.Close()
		o := tree.Push
		if info.Mode().IsRegular() {
			o.Size = info.Size()
		}
		return a.pushFile(s, link, from, target, o, out)
	}
	if info.IsDir() && !recursive {
		return usage("%s is a directory: give -r", local)
	}
	m := a.meter(local)
	defer m.clear()
	tree.Progress, tree.Failed = m.progress(), a.failureHandler(m, out)
	copied, err := link.PushTree(s.ctx, local, target, tree)
	out.add(copied)
	return err
}

// openLocal opens a file, also a pipe that nobody writes to yet, which is waited for as long as ctx lasts.
func openLocal(ctx context.Context, path string) (*os.File, error) {
	type opened struct {
		file *os.File
		err  error
	}
	done := make(chan opened, 1)
	go func() {
		file, err := os.Open(path)
		done <- opened{file, err}
	}()
	select {
	case o := <-done:
		return o.file, o.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (a *app) pushFile(s *session, link *client.Link, from *os.File, target string, o client.PushOptions, out *copyResult) error {
	m := a.meter(target)
	defer m.clear()
	o.Progress = m.progress()
	n, err := link.PushFile(s.ctx, target, from, o)
	if err == nil {
		out.add(client.CopyStats{Files: 1, Bytes: n})
	}
	return err
}

func (o *copyResult) add(c client.CopyStats) {
	o.Files += c.Files
	o.Directories += c.Directories
	o.Links += c.Links
	o.Unchanged += c.Unchanged
	o.Bytes += c.Bytes
}

// failureHandler returns the function that reports failures within a tree.
func (a *app) failureHandler(m *meter, out *copyResult) func(string, error) error {
	return func(path string, err error) error {
		m.clear()
		if text := err.Error(); !strings.Contains(text, path) {
			err = fmt.Errorf("%s: %w", path, err)
		}
		a.reportFailure(out, err)
		return nil
	}
}

func (a *app) reportFailure(out *copyResult, err error) {
	f := withExitCode(err)
	out.failed, out.code = out.failed+1, f.code
	a.printError(f)
}

// finishCopy prints the result of a copy and returns its error.
func (a *app) finishCopy(out *copyResult) error {
	if a.json {
		err := a.printJSON(struct {
			Files       int   `json:"files"`
			Directories int   `json:"directories"`
			Links       int   `json:"links"`
			Unchanged   int   `json:"unchanged"`
			Bytes       int64 `json:"bytes"`
			Failed      int   `json:"failed"`
		}{out.Files, out.Directories, out.Links, out.Unchanged, out.Bytes, out.failed})
		if err != nil {
			return err
		}
	}
	switch {
	case out.failed == 0:
		return nil
	case out.failed == 1 && out.Files+out.Directories+out.Links+out.Unchanged == 0:
		return &failure{code: out.code}
	case a.json:
		return &failure{code: exitFailed} // each failure was printed, and their number is in the result
	}
	return &failure{exitFailed, errors.New("not copied: " + plural(out.failed, "thing"))}
}
