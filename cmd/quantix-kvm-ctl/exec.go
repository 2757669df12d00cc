package main

import (
	"errors"
	"io"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// execFlags are the flags of exec.
type execFlags struct {
	dir, user, group string
	shell            bool
	env              []string
	maxOutput        uint32
	detach           bool
}

func (a *app) execCommand() *cobra.Command {
	var f execFlags
	c := &cobra.Command{
		Use:   "exec [flags] [--] PROGRAM [ARG...] | exec --shell [flags] [--] LINE",
		Short: "run a command in the guest",
		Long: `exec runs a program in the guest and passes its output and its exit code through. No shell touches the arguments; --shell
runs a line with the guest's shell instead. Flags end at the program.

The protocol hands a command without arguments to a shell, so a lone program is sent as "exec 'PROGRAM'", which the shell
becomes at once: it runs as if it were run directly, in a guest with a POSIX shell.

There is no standard input. Output comes when the command has ended, at most --max-output bytes of each stream; bytes that
are not UTF-8 arrive as \xNN. --timeout is rounded up to whole seconds, and cannot exceed the agent's maximum
(max_exec_timeout_secs, 300 seconds), which also holds without it. A command that takes too long, or is interrupted here,
is ended in the guest with all its children, and what it wrote is printed.

With --detach exec returns when the command has started; what becomes of it cannot be asked.

With --json: ExecuteResponse.

EXIT STATUS
  The command's own; 128+n where signal n ended it; 124 where it took too long; 125 where quantix-kvm-ctl or the agent
  failed; 126 where the program cannot be executed; 127 where there is no such program.`,
		Example: `  quantix-kvm-ctl exec uname -r
  quantix-kvm-ctl exec --user postgres -- psql -c 'select 1'
  quantix-kvm-ctl exec --shell 'journalctl -b | tail -n 20'
  quantix-kvm-ctl exec --timeout 10s -e LANG=C -- apt-get check`,
		RunE: func(c *cobra.Command, args []string) error {
			command, err := f.command(args)
			if err != nil {
				return err
			}
			command.Timeout = a.timeout
			return a.withPatience(c.Context(), func(s *session) error { return a.exec(s, command, f.detach) })
		},
	}
	c.Flags().SetInterspersed(false)
	c.Flags().StringVarP(&f.dir, "cwd", "C", "", "run in this `dir` of the guest (default /, or the home of --user)")
	c.Flags().StringArrayVarP(&f.env, "env", "e", nil, "set a variable, `name=value`; may be repeated")
	c.Flags().StringVarP(&f.user, "user", "u", "", "run as this `user` with all its groups")
	c.Flags().StringVarP(&f.group, "group", "g", "", "run with this `group`")
	c.Flags().BoolVar(&f.shell, "shell", false, "the command is a line for the guest's shell")
	c.Flags().Uint32Var(&f.maxOutput, "max-output", 0, "keep this many `bytes` of each stream (default 1 MiB)")
	c.Flags().BoolVarP(&f.detach, "detach", "d", false, "start the command and leave it to itself")
	return c
}

func (f *execFlags) command(args []string) (client.Command, error) {
	command := client.Command{Dir: f.dir, User: f.user, Group: f.group, MaxOutput: f.maxOutput, Env: map[string]string{}}
	switch {
	case len(args) == 0 || args[0] == "":
		return command, usage("exec needs a program, or --shell and a line")
	case f.shell && len(args) > 1:
		return command, usage("--shell takes one line: put it into quotes")
	case f.shell:
		command.Line = args[0]
	default:
		command.Argv = args
	}
	for _, pair := range f.env {
		name, value, ok := strings.Cut(pair, "=")
		if !ok || name == "" {
			return command, usage("--env %s is not name=value", pair)
		}
		command.Env[name] = value
	}
	return command, nil
}

func (a *app) exec(s *session, command client.Command, detach bool) error {
	if detach {
		return notStarted(s.Start(s.ctx, command))
	}
	reply, err := s.Run(s.ctx, command, lastWords)
	if err != nil {
		return notStarted(s.why(err))
	}
	if a.json {
		if err := a.printJSON(reply); err != nil {
			return err
		}
	} else {
		if _, err := io.WriteString(a.stdout, reply.Stdout); err != nil {
			return err
		}
		if _, err := io.WriteString(a.stderr, reply.Stderr); err != nil {
			return err
		}
	}
	return a.ended(reply)
}

// ended turns the end of a command into an exit code.
func (a *app) ended(reply *pb.ExecuteResponse) error {
	if reply.Truncated {
		a.note("exec: the output is longer than what was kept; --max-output allows more")
	}
	if reply.Error != "" && !a.json {
		a.note("exec: %s", reply.Error)
	}
	code := int(reply.ExitCode)
	switch {
	case reply.TimedOut:
		code = exitTimeout
	case code < 0:
		code = exitOurs
	case code > 255: // does not fit; a host would see another one
		code = 255
	}
	if code == 0 {
		return nil
	}
	return &failure{code: code}
}

// notStarted gives the error of a command that did not start its exit code.
func notStarted(err error) error {
	switch {
	case client.IsProgram(err) && errors.Is(err, fs.ErrNotExist):
		return &failure{exitMissing, err}
	case client.IsProgram(err):
		return &failure{exitForbidden, err}
	}
	return err
}
