package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/zap/zapcore"

	"github.com/quantix-kvm/guest-agent/cmd/internal/core"
	"github.com/quantix-kvm/guest-agent/cmd/internal/manual"
	"github.com/quantix-kvm/guest-agent/runtime/config"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Set by the linker: -X main.version=… and so on.
var (
	version = "0.2.0-dev"
	commit  = "unknown"
	built   = "unknown"
)

// flags are the command line.
type flags struct {
	config, device, root, state, logLevel, control string

	// instead is why this program runs in place of another one; nil: it does not.
	instead error
	// trial is the update that this program is the new version of; nil: it is none. refused is why one is not tried.
	trial   *pb.UpdateTrial
	refused error

	logFile string       // where the log goes unless the configuration says so; empty: to stderr
	events  zapcore.Core // where the log goes as well; nil: nowhere else

	// sessions has a value when a user has logged on or off, or the console was switched; nil: that is not known.
	sessions <-chan uint32
	// hangups has a value when the configuration is to be read again; nil: only SIGHUP says so.
	hangups chan os.Signal
}

func command() *cobra.Command {
	var f flags
	c := &cobra.Command{
		Use:   "quantix-kvm-agent",
		Short: "guest agent for KVM virtual machines, with transactional scripts",
		Long: `The agent serves the host of this virtual machine over virtio-serial: telemetry, commands, files, and Lua scripts that
happen whole or not at all.

It opens every virtio-serial port named org.quantix.agent.N and waits until a host is there. With a fault in its
configuration it answers ping, get_capabilities and get_status, sends the fault to the host, and refuses all else.

SIGHUP, or "systemctl reload", has it read its configuration again. SIGTERM ends it: a script that runs is taken back first.`,
		Example: `  quantix-kvm-agent
  quantix-kvm-agent --device unix:/tmp/agent.sock --root /tmp/scratch --state /tmp/state`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       fmt.Sprintf("%s (commit %s, built %s, %s %s/%s)", version, commitID(), built, runtime.Version(), runtime.GOOS, runtime.GOARCH),
		RunE: func(c *cobra.Command, _ []string) error {
			f, err := f.absolute()
			if err != nil {
				return err
			}
			f.tryUpdate()
			return runAgain(c.Context(), f)
		},
	}
	c.PersistentFlags().StringVar(&f.control, "control", "", "`socket` where the agent reports its status to this guest's root (default "+defaultControl+", or one of its own for another state directory)")
	agentFlags(c.Flags(), &f)
	c.PersistentFlags().StringVar(&f.root, "root", rootDir, "act on the tree below `dir`, as on an image that is mounted there; commands then need root")
	c.PersistentFlags().StringVar(&f.state, "state", "", "`dir` for what must survive a crash (default "+config.StateDir+" below the root)")
	c.AddCommand(
		launchCommand(&f), statusCommand(&f), reloadCommand(&f), recoverCommand(&f), scriptCommand(), applyCommand(&f),
		selfTestCommand(&f), watchCommand(), manual.Command(8, version),
	)
	c.AddCommand(serviceCommands(&f)...)
	return c
}

// agentFlags adds the flags of a command that runs the agent.
func agentFlags(set *pflag.FlagSet, f *flags) {
	set.StringVar(&f.config, "config", config.DefaultFile, "configuration `file`; one that does not exist means defaults")
	set.StringVar(&f.device, "device", "", "channel to the host: auto, a device `path`, unix:PATH or pipe:NAME to listen, unix-connect:PATH, vsock:PORT, vsock:PORT:CID,CID[:unprivileged] (default device_path of the configuration)")
	set.StringVar(&f.logLevel, "log-level", "", "the least `level` that is logged: trace, debug, info, warn or error (default log_level of the configuration)")
}

// stateDir returns the state directory.
func (f flags) stateDir() string {
	if f.state != "" {
		return f.state
	}
	return config.StateDir
}

// absolute returns the flags with paths that do not depend on the working directory, nor, below another root, on where
// its links lead.
func (f flags) absolute() (flags, error) {
	for _, path := range []*string{&f.config, &f.root, &f.state, &f.control} {
		if *path == "" {
			continue
		}
		abs, err := filepath.Abs(*path)
		if err != nil {
			return f, err
		}
		*path = abs
	}
	if f.root == "" || f.root == rootDir {
		return f, nil
	}
	dir := strings.TrimPrefix(config.StateDir, filepath.VolumeName(config.StateDir))
	if f.state != "" {
		below := f.below(f.state)
		if len(below) == 0 {
			return f, nil
		}
		dir = below[0]
	}
	var err error
	f.state, err = core.StateBelow(f.root, dir)
	return f, err
}

// groupName returns what the names of the commands' control groups begin with. It depends on the state directory: an agent
// that starts ends what scripts of an earlier one left running, and must not end what belongs to another agent on the same
// machine.
func (f flags) groupName() string {
	if f.stateDir() == config.StateDir {
		return "quantix-kvm"
	}
	sum := sha256.Sum256([]byte(f.stateDir()))
	return "quantix-kvm_" + hex.EncodeToString(sum[:4])
}

// below returns the paths as they are called below the root; what lies elsewhere cannot be reached there.
func (f flags) below(paths ...string) []string {
	var list []string
	root, err := filepath.EvalSymlinks(f.root)
	if err != nil {
		root = f.root
	}
	for _, path := range paths {
		for _, base := range []string{f.root, root} {
			if relative, err := filepath.Rel(base, path); err == nil && filepath.IsLocal(relative) {
				list = append(list, filepath.Join("/", relative))
				break
			}
		}
	}
	return list
}

// commitID returns the commit that this was built from: what the linker was given, else what the Go tool recorded.
func commitID() string {
	if commit != "unknown" {
		return commit
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return commit
}
