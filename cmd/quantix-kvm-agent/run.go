package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/builtins/exec"
	"github.com/quantix-kvm/guest-agent/builtins/file"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/host"
	"github.com/quantix-kvm/guest-agent/runtime/agent"
	"github.com/quantix-kvm/guest-agent/runtime/config"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/runtime/script"
	"github.com/quantix-kvm/guest-agent/scripts"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/port"
)

// run wires an agent together and runs it.
func run(ctx context.Context, f flags) (err error) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP) // before anything takes time: unheard, it would end the agent
	defer signal.Stop(hangups)
	tell := newNotifier(os.Getenv)
	if f, err = f.absolute(); err != nil {
		return err
	}
	frugal()
	thawed := exec.ThawLeft(f.freezeFile())
	conf, warnings, faulty := config.Load(f.config)
	logs, err := newLog(conf, f.logLevel)
	if err != nil {
		return err
	}
	log := logs.Logger
	defer log.Sync()
	for _, warning := range warnings {
		log.Warn("configuration", zap.String("file", f.config), zap.String("warning", warning))
	}
	for _, words := range thawed {
		log.Warn(words)
	}
	told(log, faulty)
	root, err := fsys.Open(f.root)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := os.MkdirAll(f.stateDir(), 0o700); err != nil {
		return fault.Wrapf(err, "make the state directory (choose another with --state): %v", err)
	}
	parts := roomConfig(f, conf, root)
	parts.Exec.Thawed = func(words string) { log.Warn(words) }
	rooms := all.New(parts)
	defer func() { err = errors.Join(err, rooms.Close()) }()
	pool := sandbox.New(sandbox.Config{Limits: limits(conf.Script)})
	defer pool.Close()
	var table *builtins.Table
	undo, err := openJournal(f, root, func() *builtins.Table { return table })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, undo.Close()) }()
	key, err := secret(f.stateDir())
	if err != nil {
		return err
	}
	plans, err := pretend(f, root)
	if err != nil {
		return err
	}
	manager := script.New(script.Config{
		Pool: pool, Library: library(f.root, conf.Script.Source), Journal: undo, Secret: key, Unsupported: all.Unsupported,
		Pretend: plans, Files: root,
	})
	ops := rooms.Ops()
	if conf.Script.Enabled {
		ops = append(ops, manager.Ops()...)
	}
	table = builtins.NewTable(ops)
	rules := newRules(f, root, table)
	if faulty == nil {
		faulty = rules.start(conf)
		told(log, faulty)
	}
	rules.guard(manager.Guard(func(path string) (string, error) { return root.Resolve(path, false) }))
	manager.Table = table
	observe(table, log, rules, logs.audit)
	recovery := newRecovery()
	recover, stop := context.WithCancelCause(ctx)
	var work sync.WaitGroup
	work.Go(func() { recovery.run(recover, rooms, manager, log) })
	defer func() { stop(builtins.ErrStopping); work.Wait() }()
	var a *agent.Agent
	again := newReloader(f.config, conf, warnings, faulty, settings(func(name string) func(config.Config) {
		return map[string]func(config.Config){
			"log_level":               logs.change,
			"security":                rules.change,
			"telemetry_interval_secs": func(c config.Config) { a.SetTelemetryEvery(c.TelemetryInterval) },
			"the limits of script":    func(c config.Config) { pool.SetLimits(limits(c.Script)) },
		}[name]
	}), rules.check, log)
	a = agent.New(agent.Config{
		Open:      func(serves func(string) bool) ([]port.Port, error) { return port.Open(device(f, conf), serves) },
		Announced: announced(ctx, log),
		Table:     table, Log: log, Version: version, Commit: commitID(), Built: built,
		OS: runtime.GOOS, Architecture: architecture(), Framing: conf.Framing,
		Ready: rooms.Ready, Telemetry: rooms.Telemetry, TelemetryEvery: conf.TelemetryInterval,
		Features: func() map[string]string { return features(rooms, rules) }, Refusing: faulty, Cancel: manager.Cancel,
		Stopping: rooms.Release, Left: rooms.Left, Sends: rooms.Sends, Gate: recovery.gate, Notices: recovery.notices,
		Local: openControl(f, log), Status: describer(recovery, undo, again, logs.latest), Changed: tell.change,
	})
	return serve(ctx, a, tell, again, hangups, recovery, log)
}

// serve runs the agent, and beside it what listens to the service manager and speaks to it. That goes on until the last
// call has ended: a rollback may take longer than a watchdog waits.
func serve(ctx context.Context, a *agent.Agent, tell *notifier, again *reloader, hangups <-chan os.Signal, recovery *recovery, log *zap.Logger) error {
	beside, stop := context.WithCancel(context.WithoutCancel(ctx))
	var work sync.WaitGroup
	defer work.Wait()
	defer stop()
	work.Go(func() { tell.run(beside, a, log) })
	work.Go(func() { again.serve(beside, hangups, tell) })
	work.Go(func() {
		select {
		case <-recovery.done:
			tell.change()
		case <-beside.Done():
		}
	})
	unhook := context.AfterFunc(ctx, func() {
		if err := tell.stopping(); err != nil {
			log.Warn("the service manager does not listen", zap.Error(err))
		}
	})
	defer unhook()
	return a.Run(ctx)
}

// announced tells of ports that come and go; nil where the kernel cannot be asked, as in a container.
func announced(ctx context.Context, log *zap.Logger) <-chan struct{} {
	told, err := port.Announced(ctx)
	if err != nil {
		log.Info("the kernel does not tell of new ports; they are looked for from time to time", zap.Error(err))
	}
	return told
}

func roomConfig(f flags, conf config.Config, root *fsys.Root) all.Config {
	return all.Config{
		Root: root,
		File: file.Config{Protected: f.below(f.config, f.stateDir(), executable())},
		Exec: exec.Config{Name: f.groupName(), Root: f.root, MaxTimeout: conf.MaxExecTimeout, Reexec: true, FreezeFile: f.freezeFile(),
			Jobs: filepath.Join(f.stateDir(), "jobs")},
		Host: host.Config{Root: f.root, Version: version},
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

// library lists where scripts lie, the administrator's own first.
func library(root string, limit int) *script.Library {
	var places []script.Place
	for _, dir := range []string{"/etc/quantix-kvm/scripts.d", "/usr/share/quantix-kvm/scripts"} {
		places = append(places, script.Place{Name: dir, FS: os.DirFS(filepath.Join(root, dir))})
	}
	return script.NewLibrary(limit, append(places, script.Place{Name: "bundled:", FS: scripts.Bundled()})...)
}

// told says in the log why everything will be refused, if it will.
func told(log *zap.Logger, faulty error) {
	if faulty != nil {
		log.Error("the configuration has faults; all but ping, get_capabilities and get_status is refused", zap.Error(faulty))
	}
}

// observe logs what operations do, without what they carry.
func observe(table *builtins.Table, log *zap.Logger, rules *rules, audit *zap.Logger) {
	table.Audit = func(call *builtins.Call, op *builtins.Op, in proto.Message, err error, took time.Duration) {
		if rules.audits() {
			audit.Info("audit", audited(call, op, in, err, took)...)
		}
		log.Debug("operation", zap.String("op", op.Name), zap.String("id", call.ID), zap.String("port", call.Port),
			zap.Duration("took", took), zap.String("code", fault.Code(err)))
	}
	table.Panicked = func(op *builtins.Op, value any, stack []byte) {
		log.Error("panic in an operation", zap.String("op", op.Name), zap.Any("panic", value), zap.ByteString("stack", stack))
	}
}

// features tells a host which guest this is and which walls stand.
func features(rooms *all.Rooms, rules *rules) map[string]string {
	f := rooms.Features()
	f["policy"] = rules.describe()
	for _, layer := range sandbox.Layers() {
		state := "yes"
		if layer.Missing != "" {
			state = "no: " + layer.Missing
		}
		f["sandbox."+strings.ReplaceAll(layer.Name, " ", "_")] = state
	}
	return f
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
