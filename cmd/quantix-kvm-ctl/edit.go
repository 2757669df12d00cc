package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/client"
)

func (a *app) editCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "edit REMOTE",
		Short: "change a file of the guest in an editor of this host",
		Long: `edit copies a file here, starts $VISUAL, $EDITOR or vi, and copies it back if it was changed. A file that is not there is made.
Mode and owner stay. If somebody else has changed the file meanwhile nothing is copied back: what was written is left in a
file of this host, which is named.`,
		Example: "  EDITOR=nano quantix-kvm-ctl edit /etc/hosts",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: a.completePath,
		RunE: func(c *cobra.Command, args []string) error {
			return a.with(c.Context(), noTimeout, func(s *session) error {
				link := a.newLink(s, true)
				defer link.Close()
				return a.edit(s.ctx, link, args[0])
			})
		},
	}
}

func (a *app) edit(ctx context.Context, link *client.Link, remote string) error {
	dir, err := os.MkdirTemp("", "quantix-kvm-edit-")
	if err != nil {
		return err
	}
	keep := false
	defer func() {
		if !keep {
			os.RemoveAll(dir)
		}
	}()
	local := filepath.Join(dir, path.Base(remote))
	before, err := pullInto(ctx, link, remote, local)
	if err != nil {
		return err
	}
	if err := a.editor(ctx, local); err != nil {
		return err
	}
	after, err := os.ReadFile(local)
	if errors.Is(err, fs.ErrNotExist) && before == nil {
		return nil // nothing was written
	}
	if err != nil {
		return err
	}
	if before != nil && bytes.Equal(before, after) {
		a.note("%s is not changed", remote)
		return nil
	}
	keep = true // until it has arrived
	now, err := pullInto(ctx, link, remote, filepath.Join(dir, "now"))
	if err != nil {
		return fmt.Errorf("%w; what was written is in %s", err, local)
	}
	if (now == nil) != (before == nil) || !bytes.Equal(now, before) {
		return &failure{exitRefused, fmt.Errorf("%s was changed by somebody else meanwhile; what was written is in %s", remote, local)}
	}
	if _, err := link.PushFile(ctx, remote, bytes.NewReader(after), client.PushOptions{Size: int64(len(after))}); err != nil {
		return fmt.Errorf("%w; what was written is in %s", err, local)
	}
	keep = false
	return nil
}

// pullInto copies a file of the guest here, and returns its content; nil: there is none.
func pullInto(ctx context.Context, link *client.Link, remote, local string) ([]byte, error) {
	_, err := link.PullFile(ctx, remote, local, client.PullOptions{})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	content, err := os.ReadFile(local)
	if err == nil && content == nil {
		content = []byte{}
	}
	return content, err
}

// editor lets the user change a file.
func (a *app) editor(ctx context.Context, file string) error {
	line := os.Getenv("VISUAL")
	if line == "" {
		line = os.Getenv("EDITOR")
	}
	if line == "" {
		line = "vi"
	}
	c := exec.CommandContext(ctx, shell[0], append(shell[1:], line+` "$QUANTIX_FILE"`)...)
	c.Env = append(os.Environ(), "QUANTIX_FILE="+file)
	c.Stdin, c.Stdout, c.Stderr = a.stdin, a.stdout.file, a.stderr
	if err := c.Run(); err != nil {
		return fmt.Errorf("editor %s: %w; nothing is copied back", line, err)
	}
	return nil
}

func (a *app) diffCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "diff REMOTE LOCAL",
		Short: "show how a file of this host differs from one of the guest",
		Long: `diff shows what would change in the guest's file if it became the local one, by the diff of this host. LOCAL "-" is standard
input.

The exit code is 1 where they differ, as that of diff, and 125 where they could not be compared.`,
		Example: "  quantix-kvm-ctl diff /etc/nginx/nginx.conf ./nginx.conf",
		Args:    cobra.ExactArgs(2), ValidArgsFunction: a.completePath,
		RunE: func(c *cobra.Command, args []string) error {
			if err := a.hasNoJSON("diff"); err != nil {
				return err
			}
			return a.with(c.Context(), noTimeout, func(s *session) error {
				link := a.newLink(s, true)
				defer link.Close()
				return a.diff(s.ctx, link, args[0], args[1])
			})
		},
	}
}

func (a *app) diff(ctx context.Context, link *client.Link, remote, local string) error {
	dir, err := os.MkdirTemp("", "quantix-kvm-diff-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	theirs := filepath.Join(dir, "theirs")
	if _, err := link.PullFile(ctx, remote, theirs, client.PullOptions{}); err != nil {
		return &failure{exitExecFailed, err}
	}
	argv := []string{"-u", "--label", "guest:" + remote, "--label", local, theirs, local}
	if isTerminal(a.stdout.file) && os.Getenv("NO_COLOR") == "" {
		argv = append([]string{"--color=always"}, argv...)
	}
	c := exec.CommandContext(ctx, "diff", argv...)
	c.Stdin, c.Stdout, c.Stderr = a.stdin, a.stdout.file, a.stderr
	err = c.Run()
	var exited *exec.ExitError
	switch {
	case errors.As(err, &exited) && exited.ExitCode() == exitFailed:
		return &failure{code: exitFailed} // they differ, which it has shown
	case err != nil:
		return &failure{exitExecFailed, fmt.Errorf("diff: %w", err)}
	}
	return nil
}
