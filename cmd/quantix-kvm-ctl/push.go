package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/client"
)

// pushFlags are the flags of push.
type pushFlags struct {
	recursive    bool
	mode         string
	owner, group string
	parents, sum bool
	noResume     bool
}

func (a *app) pushCommand() *cobra.Command {
	var f pushFlags
	c := &cobra.Command{
		Use:   "push [-r] LOCAL... REMOTE",
		Short: "copy files into the guest",
		Long: `push copies local files to a path of the guest, as cp does: where REMOTE is a directory, or ends with a slash, they go into
it under their own names. LOCAL "-" is standard input.

A file appears at its path when all of it has arrived, and is then on disk; a copy that fails leaves what was there. A link
at the path is replaced, not followed. Every chunk carries a checksum; --sha256 has the agent check the whole file as well,
before it appears.

When the connection is lost, push connects again and goes on behind what the agent has; where that is gone, since the agent was
restarted or waited for more than 90 seconds, it sends the file from its beginning. It gives up when it has got no further for a
minute. Standard input from a pipe cannot be sent twice: there a lost connection is an error.

Without --mode a single file keeps the mode of the file that it replaces, or becomes 0644. With -r directories are copied
with all that is in them: files and new directories get the permission bits that they have here, and symbolic links are made
as they are, by a script. The protocol carries no modification times, extended attributes or hard links, and no owners but
--owner and --group: files belong to the agent, and their time is now. Devices, pipes and sockets are left out. What cannot
be copied is told, the rest is copied, and the exit code is 1.

With --json: {"files","directories","links","bytes","failed"}.`,
		Example: `  quantix-kvm-ctl push motd /etc/motd
  quantix-kvm-ctl push --mode 0600 --owner app --parents key.pem /etc/app/tls/
  quantix-kvm-ctl push -r ./site /srv/www
  tar c etc | quantix-kvm-ctl push - /var/tmp/etc.tar`,
		Args: cobra.MinimumNArgs(2), ValidArgsFunction: a.completePath,
		RunE: func(c *cobra.Command, args []string) error {
			mode, err := parseMode(f.mode)
			if err != nil {
				return err
			}
			o := client.PushOptions{Mode: mode, Owner: f.owner, Group: f.group, Parents: f.parents, SHA256: f.sum}
			return a.with(c.Context(), noTimeout, func(s *session) error {
				link := a.newLink(s, !f.noResume)
				defer link.Close()
				return a.push(s, link, args[:len(args)-1], args[len(args)-1], o, f.recursive)
			})
		},
	}
	c.Flags().BoolVarP(&f.recursive, "recursive", "r", false, "copy directories with all that is in them")
	c.Flags().StringVarP(&f.mode, "mode", "m", "", "permission `bits` of files in octal")
	c.Flags().StringVar(&f.owner, "owner", "", "`user` who owns the files, by name or number")
	c.Flags().StringVar(&f.group, "group", "", "`group` of the files, by name or number")
	a.flagWords(c, "owner", userNames)
	a.flagWords(c, "group", groupNames)
	c.Flags().BoolVarP(&f.parents, "parents", "p", false, "make missing directories of the guest")
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

func (a *app) push(s *session, link *client.Link, locals []string, remote string, o client.PushOptions, recursive bool) error {
	into := strings.HasSuffix(remote, "/")
	if !into {
		var err error
		if into, err = isDir(s.ctx, link, remote); err != nil {
			return err
		}
	}
	if len(locals) > 1 && !into {
		return fmt.Errorf("%s: not a directory of the guest", remote)
	}
	var out copyResult
	for _, local := range locals {
		err := a.pushOne(s, link, local, remote, into, o, recursive, &out)
		if s.ctx.Err() != nil || client.Gone(err) {
			return err
		}
		if err != nil {
			a.reportFailure(&out, err)
		}
	}
	return a.finishCopy(&out)
}

func (a *app) pushOne(s *session, link *client.Link, local, remote string, into bool, o client.PushOptions, recursive bool, out *copyResult) error {
	if local == "-" {
		if into {
			return fmt.Errorf("%s is a directory: standard input has no name there", remote)
		}
		return a.pushFile(s, link, a.stdin, remote, o, out)
	}
	info, err := os.Stat(local)
	if err != nil {
		return err
	}
	target := remote
	if name := filepath.Base(local); into && name != "." && name != ".." {
		target = strings.TrimSuffix(remote, "/") + "/" + name
	}
	if !info.IsDir() {
		from, err := os.Open(local)
		if err != nil {
			return err
		}
		defer from.Close()
		if info.Mode().IsRegular() {
			o.Size = info.Size()
		}
		return a.pushFile(s, link, from, target, o, out)
	}
	if !recursive {
		return usage("%s is a directory: give -r", local)
	}
	m := a.meter(local)
	defer m.clear()
	copied, err := link.PushTree(s.ctx, local, target, client.Tree{Push: o, Progress: m.progress(), Failed: a.failureHandler(m, out)})
	out.add(copied)
	return err
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
			Bytes       int64 `json:"bytes"`
			Failed      int   `json:"failed"`
		}{out.Files, out.Directories, out.Links, out.Bytes, out.failed})
		if err != nil {
			return err
		}
	}
	switch {
	case out.failed == 0:
		return nil
	case out.failed == 1 && out.Files+out.Directories+out.Links == 0:
		return &failure{code: out.code}
	}
	return &failure{exitFailed, errors.New("not copied: " + plural(out.failed, "thing"))}
}
