package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/cmd/internal/core"
	"github.com/quantix-kvm/guest-agent/runtime/agent"
	"github.com/quantix-kvm/guest-agent/runtime/config"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/scripts"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/port"
)

// run wires an agent together and runs it.
func run(ctx context.Context, f flags) (err error) {
	hangups := f.hangups
	if hangups == nil {
		hangups = make(chan os.Signal, 1)
	}
	signal.Notify(hangups, syscall.SIGHUP) // before anything takes time: unheard, it would end the agent
	defer signal.Stop(hangups)
	ctx, restart := context.WithCancelCause(ctx)
	defer restart(nil)
	tell := newNotifier(os.Getenv)
	tuneMemory()
	left := all.ThawLeft(f.freezeFile())
	conf, warnings, faulty := config.Load(f.config)
	if err := checkLogFile(conf.LogFile); err != nil {
		faulty, conf.LogFile = errors.Join(faulty, err), ""
	}
	if conf.LogFile == "" {
		conf.LogFile = f.logFile
	}
	logs, err := newLog(conf, f.logLevel, f.events)
	if err != nil {
		return err
	}
	log := logs.Logger
	defer logs.out.close()
	for _, warning := range warnings {
		log.Warn("configuration", zap.String("file", f.config), zap.String("warning", warning))
	}
	for _, words := range left.Messages {
		log.Warn(words)
	}
	if f.instead != nil {
		log.Error("another agent is first in PATH", zap.Error(f.instead))
	}
	if f.refused != nil {
		log.Error("the update on trial is not started", zap.Error(f.refused))
	}
	logFaults(log, faulty)
	pool := sandbox.New(sandbox.Config{Limits: limits(conf.Script)})
	defer pool.Close()
	rules := newRules(log, logs.audit)
	inner := coreConfig(f, conf, rules, pool, logs)
	inner.Halt, inner.Rooms.Left = stopInTime(ctx), left
	inner.Rooms.Update.Restart = func() { restart(errRestart) }
	var recovery *recovery
	inner.Unconfirmed = func(e *pb.ErrorEvent) { recovery.unconfirmed(e, log) } // which comes after the recovery began
	inside, err := core.Open(inner)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, inside.Close()) }()
	if err := inside.Journal.Unusable(); err != nil {
		log.Error("scripts and changes of files are refused", zap.Error(err))
	}
	rules.of(f, inside)
	if faulty == nil {
		faulty = rules.start(conf)
		logFaults(log, faulty)
	}
	inside.Rooms.Start()
	recovery = newRecovery(inside.Journal, tell.change)
	recover, stop := context.WithCancelCause(ctx)
	var work sync.WaitGroup
	work.Go(func() { recovery.run(recover, inside, log) })
	work.Go(func() { watchSessions(recover, f.sessions, inside.Rooms.SessionsChanged, log) })
	first := newFirstBoot(f, conf, inside, tell.change)
	if faulty == nil {
		work.Go(func() { runFirstBoot(recover, first, recovery, log) })
	}
	defer func() { stop(builtins.ErrStopping); work.Wait() }()
	layers := sync.OnceValue(sandbox.Layers) // finding them takes milliseconds, and they stay the same
	every := agent.NewInterval(conf.TelemetryInterval)
	again := newReloader(f.config, conf, warnings, faulty, settings(func(name string) func(config.Config) {
		return map[string]func(config.Config){
			"log_level":               logs.change,
			"security":                rules.change,
			"telemetry_interval_secs": func(c config.Config) { every.Set(c.TelemetryInterval) },
			"the limits of script":    func(c config.Config) { pool.SetLimits(limits(c.Script)) },
		}[name]
	}), rules.check, log)
	a := agent.New(agent.Config{
		Calls: inside.Calls, Log: log, Refusing: faulty, Trim: trimMemory, Rest: dropStartPages,
		Identity: agent.Identity{Version: version, Commit: commitID(), Built: built, OS: runtime.GOOS, Architecture: architecture()},
		Ports: agent.PortsConfig{
			Open:      func(serves func(string) bool) ([]port.Port, error) { return port.Open(device(f, conf), serves) },
			Announced: announced(ctx, log),
			Protocol:  protocolOf,
			Framing:   conf.Framing,
		},
		Guest: agent.GuestConfig{
			Ready: func(ctx context.Context) *pb.AgentReadyEvent {
				event := inside.Rooms.Ready(ctx)
				event.FirstBoot = first.State()
				return event
			},
			Telemetry: inside.Rooms.Telemetry, TelemetryEvery: every,
			Watch:    inside.Rooms.Watch,
			Events:   inside.Rooms.Events,
			Features: func() map[string]string { return features(inside, rules, layers()) },
		},
		Control: agent.ControlConfig{
			Port: openControl(f, log), Status: statusDetails(recovery, first, inside, layers, again, logs.recent), Changed: tell.change,
		},
		Hooks: agent.Hooks{
			Gate: recovery.gate, Cancel: inside.Scripts.Cancel,
			Notices: func() []*pb.ErrorEvent {
				return slices.Concat(insteadNotice(f.instead), recovery.notices(), firstBootNotices(first), inside.Rooms.Notices())
			},
			SessionClosed: inside.Rooms.SessionClosed, HasStream: inside.Rooms.HasStream, Release: inside.Rooms.Release,
		},
	})
	if f.trial != nil {
		work.Go(func() { awaitHost(recover, f.trial, a, inside.Rooms, func() { restart(errRestart) }, log) })
	}
	if err := serve(ctx, a, tell, again, hangups, log); err != nil || !errors.Is(context.Cause(ctx), errRestart) {
		return err
	}
	return errRestart
}

// The unit waits 90 s for the end of the agent and then kills it.
const (
	haltAfter = 50 * time.Second // a rollback may go on for that long
	exitAfter = 85 * time.Second // what hangs then, hangs in the kernel
)

// stopInTime returns a channel that is closed when rollbacks must stop, some time after ctx ended. Later it ends the
// process, if that has not ended: an operation may hang on a file system.
func stopInTime(ctx context.Context) <-chan struct{} {
	halt := make(chan struct{})
	context.AfterFunc(ctx, func() {
		time.AfterFunc(haltAfter, func() { close(halt) })
		time.AfterFunc(exitAfter, func() {
			fmt.Fprintln(os.Stderr, "quantix-kvm-agent: an operation hangs; the next start takes back what is unfinished")
			os.Exit(1)
		})
	})
	return halt
}

// serve runs the agent, and beside it what listens to the service manager and speaks to it. That goes on until the last
// call has ended: a rollback may take longer than a watchdog waits.
func serve(ctx context.Context, a *agent.Agent, tell *notifier, again *reloader, hangups <-chan os.Signal, log *zap.Logger) error {
	beside, stop := context.WithCancel(context.WithoutCancel(ctx))
	var work sync.WaitGroup
	defer work.Wait()
	defer stop()
	work.Go(func() { tell.run(beside, a, log) })
	work.Go(func() { again.serve(beside, hangups, tell) })
	unhook := context.AfterFunc(ctx, func() {
		if err := tell.stopping(); err != nil {
			log.Warn("sd_notify failed", zap.Error(err))
		}
	})
	defer unhook()
	return a.Run(ctx)
}

// announced tells of ports that come and go; nil where the kernel cannot be asked, as in a container.
func announced(ctx context.Context, log *zap.Logger) <-chan struct{} {
	told, err := port.Announced(ctx)
	if err != nil {
		log.Info("uevents are not available; ports are looked for from time to time", zap.Error(err))
	}
	return told
}

// coreConfig is that of the service.
func coreConfig(f flags, conf config.Config, rules *rules, pool *sandbox.Pool, logs *logger) core.Config {
	c := core.Config{
		Root: f.root, State: f.stateDir(), Tolerant: true, Rooms: roomConfig(f, conf), Policy: &rules.Current, Audit: rules.record, Panicked: rules.panicked,
		Pool: pool, Library: library(f.root, conf.Script.Source), Disabled: !conf.Script.Enabled, MachineChanged: f.machineChanged,
	}
	c.Rooms.Thawed = func(words string) { logs.Warn(words) }
	c.Rooms.DesktopTold = func(words string) { logs.Warn(words) }
	memory := &memoryLock{}
	c.Rooms.Frozen = logs.out.hold
	c.Rooms.ProgramFrozen = memory.set
	return c
}

func roomConfig(f flags, conf config.Config) all.Config {
	return all.Config{
		Version: version, Name: f.groupName(), Reexec: true, MaxTimeout: conf.MaxExecTimeout, Crowd: useProcessors,
		Protected:  f.below(append([]string{f.config, f.stateDir()}, f.programs()...)...),
		FreezeFile: f.freezeFile(), Jobs: filepath.Join(f.stateDir(), "jobs"),
		Leftovers: filepath.Join(f.stateDir(), "uploads"), Machine: f.ofMachine(), ShutdownFile: f.shutdownFile(),
		Clipboard: all.Clipboard{
			DenyGuest: !conf.Clipboard.ToGuest, DenyHost: !conf.Clipboard.FromGuest, Changes: conf.Clipboard.Changes,
			MaxEvent: conf.Clipboard.MaxEvent,
		},
		FreezeHooks: conf.PreFreezeDir, ThawHooks: conf.PostThawDir, BundledHooks: scripts.Hooks(), Update: updateConfig(f, conf),
	}
}

func device(f flags, conf config.Config) string {
	if f.device != "" {
		return f.device
	}
	return conf.Channel()
}

func limits(s config.Script) sandbox.Limits {
	return sandbox.Limits{
		Memory: uint64(s.Memory), CPU: s.CPU, Wall: s.Wall, Source: s.Source, Calls: s.Calls, Depth: s.Depth,
		LogLines: s.Lines, LogBytes: s.Log, Result: s.Result,
	}
}

// logFaults says in the log why everything will be refused, if it will.
func logFaults(log *zap.Logger, faulty error) {
	if faulty != nil {
		log.Error("the configuration has faults; all but ping, get_capabilities and get_status is refused", zap.Error(faulty))
	}
}

// features tells a host what the rooms say of themselves, what scripts may be allowed, and which layers of isolation there are.
func features(inside *core.Core, rules *rules, layers []sandbox.Layer) map[string]string {
	f := inside.Rooms.Features()
	f["policy"] = rules.describe()
	f["rooms"] = roomNames(inside.Calls.Table().Scopes())
	for _, layer := range layers {
		state := "yes"
		if layer.Missing != "" {
			state = "no: " + layer.Missing
		}
		f["sandbox."+strings.ReplaceAll(layer.Name, " ", "_")] = state
	}
	return f
}

// roomNames lists the rooms that scripts see, each with what a need can limit it to: "file:path,host".
func roomNames(scopes map[string]builtins.Scope) string {
	var names []string
	for _, room := range slices.Sorted(maps.Keys(scopes)) {
		if scope := scopes[room]; scope != builtins.ScopeNone {
			room += ":" + string(scope)
		}
		names = append(names, room)
	}
	return strings.Join(names, ",")
}

// architecture is spelt as the host does it.
func architecture() string {
	switch runtime.GOARCH {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	}
	return runtime.GOARCH
}

func executable() string {
	path, err := os.Executable()
	if err != nil {
		return "/usr/bin/quantix-kvm-agent"
	}
	return path
}
