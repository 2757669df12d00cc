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
	"github.com/quantix-kvm/guest-agent/runtime/firstboot"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/scripts"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/port"
)

// daemon is the parts of a running agent. run makes them in the order of the fields.
type daemon struct {
	flags     flags
	conf      config.Config
	faulty    error // why everything but status requests is refused; nil: it is not
	manager   *notifier
	logs      *logger
	log       *zap.Logger // of logs
	pool      *sandbox.Pool
	rules     *rules
	core      *core.Core
	recovery  *recovery
	firstBoot *firstboot.Runner
	layers    func() []sandbox.Layer
	telemetry *agent.Interval
	reloader  *reloader
}

// run wires an agent together and runs it.
func run(ctx context.Context, f flags) (err error) {
	hangups := f.hangups
	if hangups == nil {
		hangups = make(chan os.Signal, 1)
	}
	signal.Notify(hangups, syscall.SIGHUP) // before anything takes time: unheard, it would end the agent
	defer signal.Stop(hangups)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	restart := func() { cancel(errRestart) }
	d := &daemon{flags: f, manager: newNotifier(os.Getenv)}
	tuneMemory()
	left := all.ThawLeft(f.freezeFile()) // before anything is written to a disk
	warnings, err := d.loadConfig(left)
	if err != nil {
		return err
	}
	defer d.logs.out.close()
	d.pool = sandbox.New(sandbox.Config{Limits: limits(d.conf.Script)})
	defer d.pool.Close()
	if err := d.openCore(ctx, left, restart); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.core.Close()) }()
	d.core.Rooms.Start()
	d.recovery = newRecovery(d.core.Journal, d.manager.change)
	background, stop := context.WithCancelCause(ctx)
	var work sync.WaitGroup
	work.Go(func() { d.recovery.run(background, d.core, d.log) })
	work.Go(func() { watchSessions(background, f.sessions, d.core.Rooms.SessionsChanged, d.log) })
	d.firstBoot = newFirstBoot(f, d.conf, d.core, d.manager.change)
	if d.faulty == nil {
		work.Go(func() { runFirstBoot(background, d.firstBoot, d.recovery, d.log) })
	}
	defer func() { stop(builtins.ErrStopping); work.Wait() }()
	d.layers = sync.OnceValue(sandbox.Layers) // finding them takes milliseconds, and they stay the same
	d.telemetry = agent.NewInterval(d.conf.TelemetryInterval)
	d.reloader = d.newReloader(warnings)
	a := agent.New(d.agentConfig(ctx))
	if f.trial != nil {
		work.Go(func() { awaitHost(background, f.trial, a, d.core.Rooms, restart, d.log) })
	}
	if err := d.serve(ctx, a, hangups); err != nil || !errors.Is(context.Cause(ctx), errRestart) {
		return err
	}
	return errRestart
}

// loadConfig reads the configuration and opens the log, which gets what was found until then. It returns the warnings about the
// configuration; its faults are d.faulty.
func (d *daemon) loadConfig(left all.Left) (warnings []string, err error) {
	d.conf, warnings, d.faulty = config.Load(d.flags.config)
	if err := checkLogFile(d.conf.LogFile); err != nil {
		d.faulty, d.conf.LogFile = errors.Join(d.faulty, err), ""
	}
	if d.conf.LogFile == "" {
		d.conf.LogFile = d.flags.logFile
	}
	if d.logs, err = newLog(d.conf, d.flags.logLevel, d.flags.events); err != nil {
		return nil, err
	}
	d.log = d.logs.Logger
	for _, warning := range warnings {
		d.log.Warn("configuration", zap.String("file", d.flags.config), zap.String("warning", warning))
	}
	for _, message := range left.Messages {
		d.log.Warn(message)
	}
	if d.flags.instead != nil {
		d.log.Error("another agent is first in PATH", zap.Error(d.flags.instead))
	}
	if d.flags.refused != nil {
		d.log.Error("the update on trial is not started", zap.Error(d.flags.refused))
	}
	logFaults(d.log, d.faulty)
	return warnings, nil
}

// openCore opens the core, and puts the rules of the configuration into force.
func (d *daemon) openCore(ctx context.Context, left all.Left, restart func()) (err error) {
	d.rules = newRules(d.log, d.logs.audit)
	c := coreConfig(d.flags, d.conf, d.rules, d.pool, d.logs)
	c.Halt, c.Rooms.Left = stopInTime(ctx), left
	c.Rooms.Update.Restart = restart
	c.Unconfirmed = func(e *pb.ErrorEvent) { d.recovery.unconfirmed(e, d.log) } // which comes after the recovery began
	if d.core, err = core.Open(c); err != nil {
		return err
	}
	if err := d.core.Journal.Unusable(); err != nil {
		d.log.Error("scripts and changes of files are refused", zap.Error(err))
	}
	d.rules.of(d.flags, d.core)
	if d.faulty == nil {
		d.faulty = d.rules.start(d.conf)
		logFaults(d.log, d.faulty)
	}
	return nil
}

// newReloader returns the reloader, with what puts each setting into force that can change.
func (d *daemon) newReloader(warnings []string) *reloader {
	live := map[string]func(config.Config){
		"log_level":               d.logs.change,
		"security":                d.rules.change,
		"telemetry_interval_secs": func(c config.Config) { d.telemetry.Set(c.TelemetryInterval) },
		"the limits of script":    func(c config.Config) { d.pool.SetLimits(limits(c.Script)) },
	}
	list := settings(func(name string) func(config.Config) { return live[name] })
	return newReloader(d.flags.config, d.conf, warnings, d.faulty, list, d.rules.check, d.log)
}

// agentConfig connects the agent with the other parts.
func (d *daemon) agentConfig(ctx context.Context) agent.Config {
	rooms := d.core.Rooms
	return agent.Config{
		Calls: d.core.Calls, Log: d.log, Refusing: d.faulty, Trim: trimMemory, TrimIdle: dropStartPages,
		Identity: agent.Identity{Version: version, Commit: commitID(), Built: built, OS: runtime.GOOS, Architecture: architecture()},
		Ports: agent.PortsConfig{
			Open: func(serves func(string) bool) ([]port.Port, error) {
				return port.Open(device(d.flags, d.conf), serves)
			},
			Announced: announced(ctx, d.log),
			Protocol:  protocolOf,
			Framing:   d.conf.Framing,
		},
		Guest: agent.GuestConfig{
			Ready: func(ctx context.Context) *pb.AgentReadyEvent {
				event := rooms.Ready(ctx)
				event.FirstBoot = d.firstBoot.State()
				return event
			},
			Telemetry: rooms.Telemetry, TelemetryEvery: d.telemetry,
			Watch:    rooms.Watch,
			Events:   rooms.Events,
			Features: func() map[string]string { return features(d.core, d.rules, d.layers()) },
		},
		Control: agent.ControlConfig{
			Port: openControl(d.flags, d.log), Status: d.statusDetails(), Changed: d.manager.change,
		},
		Hooks: agent.Hooks{
			Gate: d.recovery.gate, Cancel: d.core.Scripts.Cancel,
			Notices: func() []*pb.ErrorEvent {
				return slices.Concat(insteadNotice(d.flags.instead), d.recovery.notices(), firstBootNotices(d.firstBoot), rooms.Notices())
			},
			SessionClosed: rooms.SessionClosed, HasStream: rooms.HasStream, Release: rooms.Release,
		},
	}
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

// serve runs the agent, and what listens to the service manager and reports to it. These go on until the last call has ended: a
// rollback may take longer than a watchdog waits.
func (d *daemon) serve(ctx context.Context, a *agent.Agent, hangups <-chan os.Signal) error {
	reporting, stop := context.WithCancel(context.WithoutCancel(ctx))
	var work sync.WaitGroup
	defer work.Wait()
	defer stop()
	work.Go(func() { d.manager.run(reporting, a, d.log) })
	work.Go(func() { d.reloader.serve(reporting, hangups, d.manager) })
	unhook := context.AfterFunc(ctx, func() {
		if err := d.manager.stopping(); err != nil {
			d.log.Warn("sd_notify failed", zap.Error(err))
		}
	})
	defer unhook()
	return a.Run(ctx)
}

// announced has a value when a port may have come or gone; nil where the kernel cannot be asked, as in a container.
func announced(ctx context.Context, log *zap.Logger) <-chan struct{} {
	ports, err := port.Announced(ctx)
	if err != nil {
		log.Info("uevents are not available; ports are looked for from time to time", zap.Error(err))
	}
	return ports
}

// coreConfig returns the configuration of the core of an agent that serves hosts.
func coreConfig(f flags, conf config.Config, rules *rules, pool *sandbox.Pool, logs *logger) core.Config {
	c := core.Config{
		Root: f.root, State: f.stateDir(), Tolerant: true, Rooms: roomConfig(f, conf), Policy: &rules.Current, Audit: rules.record, Panicked: rules.panicked,
		Pool: pool, Library: library(f.root, conf.Script.Source), Disabled: !conf.Script.Enabled, MachineChanged: f.machineChanged,
	}
	c.Rooms.Thawed = func(words string) { logs.Warn(words) }
	c.Rooms.DesktopWarn = func(words string) { logs.Warn(words) }
	memory := &memoryLock{}
	c.Rooms.Frozen = logs.out.hold
	c.Rooms.ProgramFrozen = memory.set
	return c
}

func roomConfig(f flags, conf config.Config) all.Config {
	return all.Config{
		Version: version, Name: f.groupName(), Reexec: true, MaxTimeout: conf.MaxExecTimeout, Burst: useProcessors,
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

// logFaults logs why everything will be refused, if it will.
func logFaults(log *zap.Logger, faulty error) {
	if faulty != nil {
		log.Error("the configuration has faults; all but ping, get_capabilities and get_status is refused", zap.Error(faulty))
	}
}

// features returns the details of get_capabilities: those of the rooms, the policy, what scripts may be allowed, and the layers
// of isolation.
func features(c *core.Core, rules *rules, layers []sandbox.Layer) map[string]string {
	f := c.Rooms.Features()
	f["policy"] = rules.describe()
	f["rooms"] = roomNames(c.Calls.Table().Scopes())
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
