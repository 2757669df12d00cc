package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Set by the linker: -X main.version=….
var version = "0.2.0-dev"

// Exit statuses. exec passes the command's own through, and uses 125 and 127 for what is not the command's doing.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitNoAnswer    = 3
	exitRefused     = 4
	exitRolledBack  = 5
	exitPartial     = 6
	exitTimeout     = 124
	exitExecFailed  = 125
	exitExecMissing = 127
	exitInterrupted = 130
)

const exitHelp = `Exit status: 0 done; 1 it failed in the guest; 2 wrong usage; 3 no connection or no answer; 4 refused or not
supported; 5 the script failed and everything is as it was; 6 the script failed and something is not; 124 out of time;
130 interrupted. exec gives the command's own status, 125 when the agent failed, 127 when there is no such command.`

var errInterrupted = errors.New("interrupted")

type stdio struct {
	in       io.Reader
	out, err io.Writer
}

// app is what all commands share: the flags, and the connection once it is made.
type app struct {
	stdio
	socket, vm, framing string
	json, quiet         bool
	timeout             time.Duration
	event               func(id string, event proto.Message)
}

// exitError ends the program with a status of its own; nothing more is said when text is empty.
type exitError struct {
	status int
	text   string
}

func (e *exitError) Error() string { return e.text }

// usageError is the caller's mistake.
type usageError struct{ error }

func (a *app) root() *cobra.Command {
	c := &cobra.Command{
		Use:   "quantix-kvm-ctl",
		Short: "speak to the agent of a virtual machine",
		Long: `Speaks to the agent in a virtual machine over the socket of its virtio-serial port.

The socket is named by --socket or QUANTIX_SOCKET, or found by --vm ID.

` + exitHelp,
		SilenceUsage: true, SilenceErrors: true, Version: version,
	}
	c.SetVersionTemplate("quantix-kvm-ctl {{.Version}}\n")
	f := c.PersistentFlags()
	f.StringVarP(&a.socket, "socket", "s", os.Getenv("QUANTIX_SOCKET"), "`path` of the host's socket (QUANTIX_SOCKET)")
	f.StringVar(&a.vm, "vm", "", "`id` of a virtual machine whose socket is looked for")
	f.BoolVar(&a.json, "json", false, "print JSON for programs")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "say nothing that was not asked for")
	f.DurationVar(&a.timeout, "wait", 0, "give up after this `time`, such as 30s; 0: never")
	f.StringVar(&a.framing, "framing", "plain", "how requests are framed: plain or qtx1")
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	c.AddCommand(
		a.pingCommand(), a.infoCommand(), a.telemetryCommand(), a.execCommand(),
		a.catCommand(), a.pushCommand(), a.pullCommand(), a.lsCommand(), a.statCommand(), a.rmCommand(), a.mkdirCommand(),
		a.runCommand(), a.scriptsCommand(), a.cancelCommand(), a.txCommand(),
	)
	return c
}

// args checks the number of arguments as cobra does, as a mistake in usage.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, list []string) error {
		if err := check(c, list); err != nil {
			return usageError{fmt.Errorf("%w\nusage: %s", err, c.UseLine())}
		}
		return nil
	}
}

// with connects, waits for the agent's first word, and calls f.
func (a *app) with(ctx context.Context, f func(ctx context.Context, c *client.Client) error) error {
	if a.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, a.timeout)
		defer cancel()
	}
	framing, err := wire.ParseFraming(a.framing)
	if err != nil {
		return usageError{err}
	}
	path, err := a.find()
	if err != nil {
		return err
	}
	c, err := client.Dial(ctx, path, client.Options{Framing: framing, Event: a.event})
	if err != nil {
		return &exitError{exitNoAnswer, err.Error()}
	}
	defer c.Close()
	if _, err := c.Ready(ctx); err != nil {
		return &exitError{exitNoAnswer, path + ": " + err.Error()}
	}
	return f(ctx, c)
}

// find gives the path of the socket. The channel for tools comes before the Node Daemon's.
func (a *app) find() (string, error) {
	if a.socket != "" && a.vm != "" {
		return "", usageError{errors.New("give --socket or --vm, not both")}
	}
	if a.socket != "" {
		return a.socket, nil
	}
	if a.vm == "" {
		return "", usageError{errors.New("no socket: give --socket PATH, QUANTIX_SOCKET or --vm ID")}
	}
	if strings.ContainsAny(a.vm, "/*?[\\") {
		return "", usageError{fmt.Errorf("%q is no id of a virtual machine", a.vm)}
	}
	patterns := []string{"/var/run/quantix-kvm/vms/" + a.vm + ".agent.1.sock", "/var/run/quantix-kvm/vms/" + a.vm + ".agent.sock"}
	for _, name := range []string{"org.quantix.agent.1", "org.quantix.agent.0", "org.limiquantix.agent.0"} {
		for _, dir := range []string{"/run/libvirt/qemu/channel/", "/var/lib/libvirt/qemu/channel/"} {
			patterns = append(patterns, dir+"*"+a.vm+"*/"+name)
		}
	}
	for _, pattern := range patterns {
		if found, _ := filepath.Glob(pattern); len(found) == 1 {
			return found[0], nil
		} else if len(found) > 1 {
			sort.Strings(found)
			return "", usageError{fmt.Errorf("several machines match %s: %s", a.vm, strings.Join(found, ", "))}
		}
	}
	return "", &exitError{exitNoAnswer, "no socket of machine " + a.vm + " was found; looked for " + strings.Join(patterns, ", ")}
}

// describe gives what is said of an error.
func (a *app) describe(err error) string {
	if err == nil {
		return ""
	}
	text := err.Error()
	var remote *fault.Remote
	if errors.As(err, &remote) && remote.Detail.GetDetails()["hint"] != "" {
		text += "\nhint: " + remote.Detail.Details["hint"]
	}
	return text
}

// status gives the exit status for an error.
func (a *app) status(err error) int {
	var exit *exitError
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errInterrupted):
		return exitInterrupted
	case errors.As(err, &exit):
		return exit.status
	case errors.As(err, &usage), strings.HasPrefix(err.Error(), "unknown command"):
		return exitUsage
	case errors.Is(err, context.DeadlineExceeded):
		return exitTimeout
	case errors.Is(err, errors.ErrUnsupported), errors.Is(err, fault.ErrRefused):
		return exitRefused
	case errors.Is(err, io.ErrUnexpectedEOF):
		return exitNoAnswer
	}
	return exitFailed
}

// show prints a message as JSON, or lets people have it their way.
func (a *app) show(m proto.Message, people func(w io.Writer)) error {
	if !a.json {
		w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
		people(w)
		return w.Flush()
	}
	return a.showJSON(m)
}

func (a *app) showJSON(m proto.Message) error {
	text, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return err
	}
	var value any // protojson's spacing differs from run to run
	if err := json.Unmarshal(text, &value); err != nil {
		return err
	}
	return a.printJSON(value)
}

func (a *app) printJSON(value any) error {
	e := json.NewEncoder(a.out)
	e.SetEscapeHTML(false)
	if a.terminal() {
		e.SetIndent("", "  ")
	}
	return e.Encode(value)
}

func (a *app) terminal() bool {
	f, ok := a.out.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// note is said to people, beside the result.
func (a *app) note(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintf(a.err, format+"\n", args...)
	}
}

// size is a number of bytes for people.
func size(n uint64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 1024 && i < len(units)-1 {
		f /= 1024
		i++
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}

func ask[Out proto.Message](ctx context.Context, c *client.Client, request proto.Message) (Out, error) {
	return client.Call[Out](ctx, c, request)
}
