package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/quantix-kvm/guest-agent/cmd/internal/manual"
)

// app is one run of the program.
type app struct {
	stdin, stderr *os.File
	stdout        *output

	// Global flags.
	socket, vm, framing string
	timeout             time.Duration
	json, quiet         bool
	verbose             bool

	started  bool // the command line was parsed
	settings settings
	recovery sync.Once
}

// run executes a command line and returns the exit code.
func (a *app) run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal kills the program
	root := a.command()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		if err = a.stdout.err(); err == nil {
			return 0
		}
		a.started = true // --help and --version end before that
	}
	a.json = a.json || wantsJSON(args) // the mistake may stand before it
	f := a.classify(cmd, err, ctx.Err() != nil)
	a.printError(f)
	return f.code
}

// wantsJSON reports whether a command line that could not be understood has --json.
func wantsJSON(args []string) bool {
	for _, arg := range args {
		switch arg {
		case "--":
			return false
		case "--json", "--json=true":
			return true
		}
	}
	return false
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "quantix-kvm-ctl",
		Short: "talk to the guest agent of a virtual machine",
		Long: `quantix-kvm-ctl runs on the host of a virtual machine and talks to quantix-kvm-agent in the guest: it runs commands and
transactional scripts, copies files, and shows how the guest is.

CONNECTION
  The agent is reached over the unix socket that QEMU makes for a virtio-serial port: --socket, or the environment variable
  QUANTIX_SOCKET. --vm ID, or QUANTIX_VM, finds it: /var/run/quantix-kvm/vms/ID.agent.1.sock or ID.agent.sock there, else the
  directory below /run/libvirt/qemu/channel or /var/lib/libvirt/qemu/channel, or target there, whose name is the id, with
  libvirt's number before it or without, and in it the first of org.quantix.agent.1, org.quantix.agent.0 and
  org.limiquantix.agent.0.
  Such a socket serves one client at a time: while another one is connected, nothing is heard from the guest, and the
  command ends with code 3 after about three seconds; with --timeout it is waited for until then, as for a guest that is
  starting. The same code ends a command that is under way when the guest has not answered a ping for a minute.

SETTINGS
  $XDG_CONFIG_HOME/quantix-kvm/ctl.conf, by default ~/.config/quantix-kvm/ctl.conf, may have lines such as "vm = web",
  "socket = /run/vm/web.agent" and "timeout = 2m", for what neither a flag nor a variable of the environment says.

OUTPUT
  What was asked for goes to stdout, everything else to stderr. With --json stdout holds JSON, each value in one line unless
  it is a terminal: messages of the protocol are written with their field names, modes of files as octal text, bytes as base64
  and times as RFC 3339, every field present. An error is then one line on stderr, unless it is in the reply on stdout, as that
  of a script is: {"error":{"code","message","op","object","hint"},"exit_code"}. The code is the agent's, or usage, no_answer or
  failed where the error is this program's own. diff, logs and jobs logs have no such form.
  Differences are coloured on a terminal, unless NO_COLOR is set.

INTERRUPT
  Ctrl-C cancels the request in the guest. exec and run wait for what becomes of it; a second Ctrl-C does not.

EXIT STATUS
  0    done
  1    the operation failed, in the guest or here
  2    the command line makes no sense
  3    no connection, or no answer
  4    refused, or not supported: nothing was done
  5    the script failed, and everything it did is undone
  6    the script failed, and something it did is not undone
  7    something in the guest is not as scripts want it: drift
  124  it took too long
  130  interrupted
  exec gives the command's own code, and 125 where quantix-kvm-ctl or the agent failed (also for 1 to 4 above), 126 where
  the program cannot be executed or may not be, 127 where there is none.`,
		Example: `  export QUANTIX_SOCKET=/run/libvirt/qemu/channel/1-web/org.quantix.agent.1
  quantix-kvm-ctl info
  quantix-kvm-ctl exec -- systemctl is-system-running
  quantix-kvm-ctl run ./site.lua -p name=shop --dry-run
  quantix-kvm-ctl --vm web push -r ./site /var/www`,
		SilenceUsage: true, SilenceErrors: true,
		Version: versionLine(),
		PersistentPreRunE: func(c *cobra.Command, _ []string) error {
			a.started = true
			if err := noneIsEmpty(c); err != nil {
				return err
			}
			return a.readSettings()
		},
	}
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	f := root.PersistentFlags()
	f.StringVarP(&a.socket, "socket", "s", "", "unix socket of the agent at `path`, or vsock:CID:PORT; on Windows a pipe too, as \\\\.\\pipe\\NAME (default $QUANTIX_SOCKET)")
	f.Var((*onceValue)(&a.vm), "vm", "find the socket of the virtual machine with this `id`")
	f.StringVar(&a.framing, "framing", "plain", "the `form` in which requests are framed: plain, or qtx1 for agents that know only that")
	f.DurationVar(&a.timeout, "timeout", 0, "give up after this `time`, such as 90s or 5m (default 30s; 2m for network apply, 1h for trim; none for cat, push, pull, edit, diff, exec, logs, jobs logs, jobs wait, run, drift, top, update, wait, and what goes on until it is interrupted; freeze has one of its own)")
	f.BoolVar(&a.json, "json", false, "print JSON")
	f.BoolVarP(&a.verbose, "verbose", "v", false, "print on stderr which socket is used, and how to leave a terminal")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "print errors and what was asked for, nothing else")
	if err := root.RegisterFlagCompletionFunc("vm", completeVM("/")); err != nil {
		panic(err) // the flag is the one above
	}
	root.AddCommand(
		a.pingCommand(), a.infoCommand(), a.statusCommand(), a.telemetryCommand(),
		a.vmsCommand(), a.execCommand(), a.jobsCommand(), a.logsCommand(), a.psCommand(), a.killCommand(), a.topCommand(), a.passwdCommand(),
		a.serviceCommand(), a.hardwareCommand(), a.softwareCommand(), a.networkCommand(), a.waitCommand(), a.clipboardCommand(),
		a.catCommand(), a.pushCommand(), a.pullCommand(), a.lsCommand(), a.statCommand(), a.rmCommand(), a.mkdirCommand(),
		a.editCommand(), a.diffCommand(),
		a.shutdownCommand(), a.rebootCommand(), a.timeCommand(), a.displayCommand(),
		a.freezeCommand(), a.thawCommand(), a.trimCommand(),
		a.runCommand(), a.confirmCommand(), a.driftCommand(), a.scriptsCommand(), a.cancelCommand(), a.txCommand(), a.updateCommand(),
		a.versionCommand(), manual.Command(1, version),
	)
	return root
}

// noneIsEmpty refuses a flag with an empty value, as of a variable that is not set: without it the command would be another
// one, for another user or another machine.
func noneIsEmpty(c *cobra.Command) (err error) {
	c.Flags().Visit(func(f *pflag.Flag) {
		text := f.Name == "message" || f.Name == "text"
		if f.Value.Type() == "string" && f.Value.String() == "" && !text && err == nil {
			err = usage("--%s is empty", f.Name)
		}
	})
	return err
}

// readSettings takes what the command line leaves open from the user's file.
func (a *app) readSettings() error {
	s, err := readSettings()
	if err != nil {
		return &failure{exitUsage, err}
	}
	a.settings = s
	if a.timeout == 0 {
		a.timeout = s.timeout
	}
	return nil
}

// onceValue is a flag that may be given once.
type onceValue string

func (v *onceValue) String() string { return string(*v) }
func (v *onceValue) Type() string   { return "string" }

// Set refuses a second value, which the first one would silently lose to.
func (v *onceValue) Set(text string) error {
	if *v != "" {
		return errors.New("it was given before, and one virtual machine is served at a time")
	}
	*v = onceValue(text)
	return nil
}

// note prints a remark to stderr, unless --quiet is set.
func (a *app) note(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintf(a.stderr, "quantix-kvm-ctl: %s\n", printable(fmt.Sprintf(format, args...)))
	}
}
