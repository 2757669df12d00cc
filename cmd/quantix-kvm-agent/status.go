package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/cmd/internal/statustext"
	"github.com/quantix-kvm/guest-agent/runtime/config"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/port"
)

// controlPath returns the path of the control socket, over which an agent reports its status to the guest's root. A file
// instead would be outdated when it is read, and would have to be written at each change.
func (f flags) controlPath() string {
	switch {
	case f.control != "":
		return f.control
	case f.stateDir() == config.StateDir:
		return defaultControl
	}
	return controlBeside(f.stateDir())
}

// freezeFile returns where an agent notes which file systems it froze.
func (f flags) freezeFile() string { return f.noteFile("frozen") }

// shutdownFile returns where an agent notes which shutdown is pending.
func (f flags) shutdownFile() string { return f.noteFile("shutdown") }

// noteFile returns where an agent notes what is forgotten at the next boot: beside its control socket, where that is in memory;
// else nowhere.
func (f flags) noteFile(name string) string {
	dir := filepath.Dir(f.controlPath())
	if !inMemory(dir) {
		return ""
	}
	return filepath.Join(dir, name)
}

// ofMachine reports whether the agent is the one that the running machine is installed with. One that is started with a state
// directory of its own, as a second one or for a test, is not: it shuts nothing down and sets no clock.
func (f flags) ofMachine() bool { return f.root == rootDir && f.stateDir() == config.StateDir }

// openControl opens the control socket; nil where it cannot, since the agent works without one.
func openControl(f flags, log *zap.Logger) port.Port {
	path := f.controlPath()
	device, err := controlDevice(path)
	var p port.Port
	if err == nil {
		var ports []port.Port
		if ports, err = port.Open(device, noneServed); err == nil {
			p = ports[0]
		}
	}
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		log.Warn("cannot open control socket", zap.Error(err))
	}
	return p
}

// statusDetails returns what adds to get_status what runtime/agent does not know.
func (d *daemon) statusDetails() func(*pb.GetStatusResponse) {
	rooms := d.core.Rooms
	boot := rooms.BootID()
	return func(s *pb.GetStatusResponse) {
		s.Pid = uint32(os.Getpid())
		s.ResidentBytes, s.CpuMs = usage()
		s.Journal = d.core.Journal.Status()
		s.PendingShutdown, s.BootId = rooms.PendingShutdown(), boot
		s.FirstBoot, s.Update, s.Desktop = d.firstBoot.State(), rooms.UpdateStatus(), rooms.Desktop()
		s.Frozen = rooms.FrozenStatus()
		d.recovery.describe(s)
		for _, layer := range d.layers() {
			s.Sandbox = append(s.Sandbox, &pb.SandboxLayer{Name: layer.Name, Missing: layer.Missing})
		}
		s.Config = d.reloader.status()
		s.Errors = d.logs.recent.list()
	}
}

// statusLine returns what a status says of an event.
func statusLine(at time.Time, e *pb.ErrorEvent) *pb.StatusLine {
	level := "warn"
	if e.Severity == pb.ErrorSeverity_ERROR_SEVERITY_CRITICAL {
		level = "error"
	}
	return &pb.StatusLine{At: timestamppb.New(at), Level: level, Message: e.Message}
}

func statusCommand(f *flags) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "status",
		Short: "show how the agent of this guest is",
		Long: `status asks the agent that runs in this guest how it is: what it serves, who is there, since when, when it heard a host last,
its transactions, the layers of the sandbox around scripts, its configuration, and its latest warnings. It asks over a socket
that only root and the agent's own user may use.

With --json: a GetStatusResponse as the protocol has it, with its field names.
The exit code is 1 where no agent answers.`,
		Example: "  quantix-kvm-agent status\n  quantix-kvm-agent status --json | jq -r .state",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := askStatus(c.Context(), *f)
			if err != nil {
				return err
			}
			if asJSON {
				return printStatusJSON(c.OutOrStdout(), s)
			}
			return printStatus(c.OutOrStdout(), s)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// askTimeout bounds a question to the agent of this guest.
const askTimeout = 10 * time.Second

// askStatus returns the status of the agent of this guest.
func askStatus(ctx context.Context, f flags) (*pb.GetStatusResponse, error) {
	f, err := f.absolute()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	c, err := client.Dial(ctx, f.controlPath(), client.Options{})
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("no agent answers: %w", err)
	}
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return client.Call[*pb.GetStatusResponse](ctx, c, &pb.GetStatusRequest{})
}

func printStatusJSON(w io.Writer, s *pb.GetStatusResponse) error {
	text, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true, Multiline: true}.Marshal(s)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s\n", text)
	return err
}

func printStatus(w io.Writer, s *pb.GetStatusResponse) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, row := range statustext.Rows(s) {
		fmt.Fprintln(t, strings.NewReplacer("\n", " ").Replace(strings.Join(row, "\t")))
	}
	return t.Flush()
}

func reloadCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "have the agent of this guest read its configuration again",
		Long: `reload has the agent read its configuration again and waits for the outcome. log_level, telemetry_interval_secs,
security and the limits of scripts change at once; other keys wait for a restart, and are named. A configuration with faults
changes nothing: the faults are printed, and the exit code is 1.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return reload(c.Context(), c.OutOrStdout(), *f) },
	}
}

// reload signals the agent and waits until it has read the file once more.
func reload(ctx context.Context, w io.Writer, f flags) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	before, err := askStatus(ctx, f)
	if err != nil {
		return err
	}
	if err := hangUp(int(before.Pid)); err != nil {
		return fmt.Errorf("signal the agent: %w", err)
	}
	for {
		s, err := askStatus(ctx, f)
		if err != nil {
			return err
		}
		if s.Config.GetGeneration() > before.Config.GetGeneration() {
			return printReload(w, s.Config)
		}
		select {
		case <-ctx.Done():
			return errors.New("the agent did not read its configuration again in time")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// printReload prints the outcome of a reload, and returns the faults of the configuration as an error.
func printReload(w io.Writer, c *pb.ConfigStatus) error {
	for _, warning := range c.Warnings {
		fmt.Fprintf(w, "warning: %s\n", warning)
	}
	if len(c.NeedsRestart) > 0 {
		fmt.Fprintf(w, "waits for a restart: %s\n", strings.Join(c.NeedsRestart, ", "))
	}
	if c.Error != "" {
		return errors.New("the configuration has faults; what was in force stays: " + c.Error)
	}
	return nil
}

// noneServed reports that no port is served yet.
func noneServed(string) bool { return false }
