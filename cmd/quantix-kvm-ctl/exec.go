package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func (a *app) execCommand() *cobra.Command {
	request := &pb.ExecuteRequest{IncludeSupplementaryGroups: true}
	var env []string
	var line bool
	var timeout time.Duration
	var detach bool
	c := &cobra.Command{
		Use:   "exec [flags] -- COMMAND [ARGUMENT…]",
		Short: "run a command in the guest",
		Long: `Runs a command and gives its output and exit status. A command that a signal ended has the status 128 and the
number of the signal.`,
		Example: "  quantix-kvm-ctl exec -- uname -r\n  quantix-kvm-ctl exec --shell -- 'dmesg | tail'\n  quantix-kvm-ctl exec --user www-data -- id",
		Args:    args(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, list []string) error {
			request.Command, request.Args = list[0], list[1:]
			if line {
				request.Command, request.Args = strings.Join(list, " "), nil
			} else if len(list) == 1 {
				// The contract takes a command without arguments for a line of shell, so the shell is told to become it.
				request.Command, request.Args = "/bin/sh", []string{"-c", `exec "$0"`, list[0]}
			}
			request.WaitForExit = !detach
			request.TimeoutSeconds = uint32((timeout + time.Second - 1) / time.Second)
			request.Environment = map[string]string{}
			for _, pair := range env {
				name, value, ok := strings.Cut(pair, "=")
				if !ok || name == "" {
					return usageError{fmt.Errorf("--env %q is not NAME=VALUE", pair)}
				}
				request.Environment[name] = value
			}
			return a.with(c.Context(), func(ctx context.Context, c *client.Client) error { return a.exec(ctx, c, request) })
		},
	}
	f := c.Flags()
	f.SetInterspersed(false)
	f.BoolVar(&line, "shell", false, "the command is a line for the shell")
	f.StringVar(&request.WorkingDirectory, "cwd", "", "run in this `directory`")
	f.StringArrayVarP(&env, "env", "e", nil, "set `NAME=VALUE` (again for more)")
	f.StringVarP(&request.RunAsUser, "user", "u", "", "run as this `user`")
	f.StringVarP(&request.RunAsGroup, "group", "g", "", "run with this `group`")
	f.DurationVar(&timeout, "timeout", 0, "end it after this `time`; 0: the agent's limit")
	f.Uint32Var(&request.MaxOutputBytes, "max-output", 0, "keep so many `bytes` of each stream; 0: 1 MiB")
	f.BoolVar(&detach, "detach", false, "do not wait for its end")
	return c
}

func (a *app) exec(ctx context.Context, c *client.Client, request *pb.ExecuteRequest) error {
	reply, err := ask[*pb.ExecuteResponse](ctx, c, request)
	if reply == nil || err != nil && !reply.TimedOut {
		return execFailure(err)
	}
	if a.json {
		if err := a.showJSON(reply); err != nil {
			return err
		}
	} else {
		io.WriteString(a.out, reply.Stdout)
		io.WriteString(a.err, reply.Stderr)
		if reply.Truncated {
			a.note("quantix-kvm-ctl: the output was longer than what was kept")
		}
	}
	switch {
	case reply.TimedOut:
		return &exitError{exitTimeout, "the command ran out of time"}
	case reply.ExitCode < 0:
		return &exitError{exitExecFailed, reply.Error}
	case reply.ExitCode != 0:
		said := ""
		if !a.json {
			said = reply.Error
		}
		return &exitError{int(reply.ExitCode), said}
	}
	return nil
}

// execFailure is what happened to a command that gave no status.
func execFailure(err error) error {
	var remote *fault.Remote
	switch {
	case errors.Is(err, fs.ErrNotExist) && errors.As(err, &remote) && strings.HasPrefix(remote.Detail.Object, "program "):
		return &exitError{exitExecMissing, err.Error()}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return err
	}
	return &exitError{exitExecFailed, err.Error()}
}
