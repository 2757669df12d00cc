package main

import (
	"errors"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// execFlags are the flags of exec.
type execFlags struct {
	dir, user, group string
	shell            bool
	env              []string
	maxOutput        uint32
	memory           uint64
	processor        time.Duration
	detach           bool
	stdin, tty       bool
	name             string
}

func (a *app) execCommand() *cobra.Command {
	var f execFlags
	c := &cobra.Command{
		Use:   "exec [flags] [--] PROGRAM [ARG...] | exec --shell [flags] [--] LINE",
		Short: "run a command in the guest",
		Long: `exec runs a program in the guest and passes its output and its exit code through. No shell touches the arguments; --shell
runs a line with the guest's shell instead. Flags end at the program.

Output comes as the command writes it, stdout and stderr apart; a slow reader here slows the command down. -i brings the
standard input to the command; without it there is none. -t gives the command a terminal of its own, on which both outputs are
one: exec -it -- bash is a shell. From a terminal, Ctrl-C then goes to the guest, like every other key, and the size of the
window does too. Only ~. at the beginning of a line does not: it leaves a command or a guest that hangs; ~~ is one tilde.
The command ends, with all that it started, when quantix-kvm-ctl or its connection does; what a command leaves running when it
ends by itself lives on. A command without -i and -t outlives the agent: where that is restarted meanwhile, as by the command
itself, it goes on, and exec connects again and reports how it ended. "jobs" lists it while it runs.

--timeout is rounded up to whole seconds. A command that takes too long, or is interrupted here, is ended in the guest with all
its children.

With --json or --max-output, and with an agent that knows nothing else, output comes when the command has ended, at most
--max-output bytes of each stream; bytes that are not UTF-8 arrive as \xNN; the agent's maximum (max_exec_timeout_secs, 300
seconds) holds; and a program without arguments is sent to the guest's shell as "exec 'PROGRAM'", which needs a POSIX shell.

With --detach exec returns when the command has started, and prints the id of its job, which goes on whatever becomes of this
connection and of the agent: see "jobs".

With --json: ExecuteResponse; with --detach: ExecStartResponse.

EXIT STATUS
  The command's own; 128+n where signal n ended it; 124 where it took too long; 125 where quantix-kvm-ctl or the agent
  failed; 126 where the program cannot be executed or may not be; 127 where there is no such program.`,
		Example: `  quantix-kvm-ctl exec uname -r
  quantix-kvm-ctl exec --user postgres -- psql -c 'select 1'
  quantix-kvm-ctl exec -it -- bash
  quantix-kvm-ctl exec --detach -- apt-get -y dist-upgrade
  quantix-kvm-ctl exec -i -- tar -x -C /srv <site.tar
  quantix-kvm-ctl exec --shell 'journalctl -b | tail -n 20'
  quantix-kvm-ctl exec --timeout 10s -e LANG=C -- apt-get check`,
		RunE: func(c *cobra.Command, args []string) error {
			command, err := f.command(args)
			if err != nil {
				return err
			}
			kept := c.Flags().Changed("max-output")
			if f.detach && kept {
				return usage("--max-output goes not with --detach: the guest keeps the last 2 to 4 MiB of each stream of a job")
			}
			if f.name != "" && !f.detach && (a.json || kept) {
				return usage("--name goes not with --json and --max-output, but for --detach")
			}
			command.Timeout = a.timeout
			whole := a.json || f.detach || kept
			if whole && (f.stdin || f.tty) {
				return usage("--stdin and --tty go with none of --json, --detach and --max-output")
			}
			return a.withCancelWait(c.Context(), func(s *session) error {
				if whole {
					return a.exec(s, command, f.detach)
				}
				return a.execLive(s, command, f.stdin, f.tty)
			})
		},
	}
	c.Flags().SetInterspersed(false)
	c.Flags().StringVarP(&f.dir, "cwd", "C", "", "run in this `dir` of the guest (default /, or the home of --user)")
	c.Flags().StringVarP(&f.dir, "workdir", "w", "", "the same as --cwd: run in this `dir`")
	c.Flags().StringArrayVarP(&f.env, "env", "e", nil, "set a variable, `name=value`; may be repeated")
	c.Flags().StringVarP(&f.user, "user", "u", "", "run as this `user` with all its groups")
	c.Flags().StringVarP(&f.group, "group", "g", "", "run with this `group`")
	a.flagWords(c, "user", userNames)
	a.flagWords(c, "group", groupNames)
	c.Flags().BoolVar(&f.shell, "shell", false, "the command is a line for the guest's shell")
	c.Flags().Uint32Var(&f.maxOutput, "max-output", 0, "keep this many `bytes` of each stream (default 1 MiB)")
	c.Flags().Uint64Var(&f.memory, "memory-limit", 0, "let the command use this many `bytes` of memory (Windows guests)")
	c.Flags().DurationVar(&f.processor, "processor-limit", 0, "let the command use this much processor `time` (Windows guests)")
	c.Flags().BoolVarP(&f.stdin, "stdin", "i", false, "bring the standard input to the command")
	c.Flags().BoolVarP(&f.tty, "tty", "t", false, "give the command a terminal")
	c.Flags().StringVar(&f.name, "name", "", "list the command in the guest by this `name`, under which cancel ends it")
	c.Flags().BoolVarP(&f.detach, "detach", "d", false, "start the command and leave it to itself")
	return c
}

func (f *execFlags) command(args []string) (client.Command, error) {
	command := client.Command{Dir: f.dir, User: f.user, Group: f.group, MaxOutput: f.maxOutput,
		Env: map[string]string{}, Name: f.name, MemoryLimit: f.memory, ProcessorLimit: f.processor}
	switch {
	case f.processor < 0:
		return command, usage("--processor-limit %v: it is negative", f.processor)
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
		return a.detached(s, command)
	}
	reply, err := s.Run(s.ctx, command, cancelWait)
	if err != nil {
		return notStarted(s.causeOf(err))
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
	return a.executeResult(reply)
}

// executeResult prints how a command ended and returns its exit code as a failure.
func (a *app) executeResult(reply *pb.ExecuteResponse) error {
	if reply.Truncated {
		a.note("exec: the output is longer than what was kept; --max-output allows more")
	}
	if reply.Error != "" && !a.json {
		a.note("exec: %s", reply.Error)
	}
	return exitWith(int(reply.ExitCode), reply.TimedOut)
}

// exitWith returns the failure that exits with the command's code, nil for 0.
func exitWith(code int, timedOut bool) error {
	switch {
	case timedOut:
		code = exitTimeout
	case code < 0:
		code = exitExecFailed
	case code > 255: // does not fit into an exit status, which would be another one
		code = 255
	}
	if code == 0 {
		return nil
	}
	return &failure{code: code}
}

// notStarted adds the exit code to the error of a command that did not start.
func notStarted(err error) error {
	switch {
	case client.IsProgram(err) && errors.Is(err, fs.ErrNotExist):
		return &failure{exitNoProgram, err}
	case client.IsProgram(err), errors.Is(err, fault.ErrRefused):
		return &failure{exitCannotExecute, err}
	}
	return err
}
