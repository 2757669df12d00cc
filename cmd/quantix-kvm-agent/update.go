package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/builtins/update"
	"github.com/quantix-kvm/guest-agent/cmd/internal/core"
	"github.com/quantix-kvm/guest-agent/runtime/agent"
	"github.com/quantix-kvm/guest-agent/runtime/config"
	"github.com/quantix-kvm/guest-agent/runtime/journal"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// An update that awaits its confirmation is tried at each start of an agent: the installed program becomes the new one, beside
// which a watcher runs until that has heard a host or has ended.
//
//	service manager ─► installed program ─► tryUpdate ─┬─► the new one, at most three times ─► awaitHost ─┬─► confirmed
//	       ▲                                           └─► it was given up: run                           │
//	       └──────────── the process ends: by itself, by the watcher, or since no host was heard ◄────────┘
//
// Where there is no service manager that this process could ask, it becomes the next program by itself.

// errRestart is the cause of the end of an agent that is to start again.
var errRestart = errors.New("the agent is to start again")

// updatesStopAtEnv is for tests, which set it by the linker: the environment variable that names the file of stopAtStep.
var updatesStopAtEnv string

// stopAtStep ends the process, as a kill would, at the action on the disk that a file names: for tests of what a crash leaves.
// With "wait NAME" it goes on no more instead, and makes the file NAME.reached beside it. Nothing in a program sets the
// variable.
func stopAtStep(name string) {
	if updatesStopAtEnv == "" {
		return
	}
	path := os.Getenv(updatesStopAtEnv)
	text, err := os.ReadFile(path)
	switch {
	case err != nil:
	case string(text) == name:
		_ = os.Remove(path)
		process, _ := os.FindProcess(os.Getpid())
		_ = process.Kill()
		select {}
	case string(text) == "wait "+name:
		_ = os.WriteFile(path+".reached", nil, 0o600)
		select {}
	}
}

// runAgain runs the agent, and starts it again where it is to.
func runAgain(ctx context.Context, f flags) error {
	err := run(ctx, f)
	if !errors.Is(err, errRestart) {
		return err
	}
	if os.Getenv("NOTIFY_SOCKET") != "" {
		return nil // the unit has it started again, whatever it ends with
	}
	program := executable()
	if f.trial != nil {
		program = f.trial.Former
	}
	return fmt.Errorf("start %s again: %w", program, become(program, append([]string{program}, os.Args[1:]...)...))
}

// tryUpdate replaces this process by the new program of an update that is to be tried. It returns where there is none, where
// this is that program, or where that cannot be started.
func (f *flags) tryUpdate() {
	if t, err := update.Trial(f.stateDir()); t == nil && err == nil {
		return // as nearly always
	}
	if err := core.CheckState(f.stateDir(), f.root); err != nil {
		return // the agent itself says so
	}
	program, trial, err := update.Next(f.stateDir(), executable(), stopAtStep)
	if err == nil && program != "" {
		args := slices.DeleteFunc(slices.Clone(os.Args[1:]), func(arg string) bool { return arg == "launch" })
		if err = startWatcher(trial, f.stateDir()); err == nil {
			err = become(program, append([]string{trial.Target}, args...)...)
		}
		_, e := update.Abandon(f.stateDir(), trial.Id, "it cannot be started: "+err.Error())
		err = errors.Join(err, e)
		trial = nil
	}
	f.trial, f.refused = trial, err
}

// programs are the paths of this agent's programs.
func (f flags) programs() []string {
	if f.trial == nil {
		return []string{executable()}
	}
	return []string{executable(), f.trial.Target, f.trial.Former}
}

// preferredProgram is where launch looks for a program before the one of the package.
const preferredProgram = "/usr/local/bin/quantix-kvm-agent"

// updateConfig says how this agent is replaced.
func updateConfig(f flags, conf config.Config) all.UpdateConfig {
	c := all.UpdateConfig{
		PublicKey: conf.UpdateKey, Confirm: conf.UpdateConfirm, Downgrades: conf.UpdateDowngrade,
		State: f.stateDir(), Program: executable(), Version: version,
		Trial: f.trial, Step: stopAtStep,
		SelfTest: func(version string) []string {
			return []string{"self-test", "--version-is", version, "--config", f.config, "--state", f.stateDir()}
		},
	}
	if f.trial != nil {
		c.Program = f.trial.Target
	}
	if f.ofMachine() && filepath.Dir(c.Program) == "/usr/bin" {
		c.Preferred = preferredProgram
	}
	return c
}

// awaitHost confirms an update when a host is heard, and gives it up when none is in time; the agent then restarts.
func awaitHost(
	ctx context.Context, trial *pb.UpdateTrial, a *agent.Agent, rooms *all.Rooms, restart func(), log *zap.Logger,
) {
	within := time.Duration(trial.ConfirmMs) * time.Millisecond
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	every := time.NewTicker(200 * time.Millisecond)
	defer every.Stop()
	log.Info("this version is on trial until a host is heard", zap.Duration("within", within), zap.Uint32("start", trial.Starts))
	said := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
			status := a.Status()
			if !a.Started() || status.LastHeard == nil {
				continue
			}
			var err error
			if status.State == pb.AgentState_AGENT_STATE_REFUSING { // it would refuse the next update as well
				err = errors.New("it refuses everything: " + status.Reason)
			} else {
				err = rooms.ConfirmUpdate()
			}
			if err == nil {
				log.Info("a host was heard: this version is the installed one", zap.String("program", trial.Target))
				return
			}
			if err.Error() != said {
				said = err.Error()
				log.Error("cannot install this version", zap.Error(err))
			}
		case <-deadline.C:
			err := fmt.Errorf("no host was heard within %v", within)
			if said != "" {
				err = errors.New("it cannot be installed: " + said)
			}
			log.Error("the former version comes back", zap.Error(err))
			if err := rooms.GiveUpUpdate(err); err != nil {
				log.Error("cannot note that the update is given up", zap.Error(err))
			}
			restart()
			return
		}
	}
}

// selfTestCommand is run by an agent that is about to be replaced: its name, flags and exit codes stay as they are.
func selfTestCommand(f *flags) *cobra.Command {
	var want string
	c := &cobra.Command{
		Use: "self-test", Short: "look whether this version can serve this guest", Hidden: true, Args: cobra.NoArgs,
		Long: `self-test looks whether this program is of the version that is expected, and reads the configuration and the journal of this
guest. It changes nothing, and an agent may run meanwhile. It is what an agent has a program do that is about to replace it.`,
		RunE: func(c *cobra.Command, _ []string) error {
			f, err := f.absolute()
			if err != nil {
				return err
			}
			if want != version {
				return fmt.Errorf("this is version %s, and not %s", version, want)
			}
			if _, _, err := config.Load(f.config); err != nil {
				return err
			}
			if err := journal.CheckFormat(filepath.Join(f.stateDir(), "tx")); err != nil {
				return fault.On("journal "+f.stateDir(), err)
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), "version", version, "can serve this guest")
			return err
		},
	}
	c.Flags().StringVar(&want, "version-is", version, "fail unless this is that `version`")
	c.Flags().StringVar(&f.config, "config", config.DefaultFile, "configuration `file`")
	return c
}
