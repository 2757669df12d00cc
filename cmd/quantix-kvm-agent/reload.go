package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/runtime/config"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// setting is a key, or some that are changed together, and how a new value gets into force.
type setting struct {
	name string
	of   func(config.Config) any
	// apply puts it into force; nil: only a restart does.
	apply func(config.Config)
}

// reloader reads the configuration again and puts into force what it can.
type reloader struct {
	path     string
	settings []setting
	check    func(config.Config) error // finds faults that only the agent's own operations show
	log      *zap.Logger
	refusing bool // the agent started with a faulty configuration, and refuses until it is started again

	mu         sync.Mutex
	started    config.Config // what the agent was started with
	inForce    config.Config // of that what can change, as it is now
	loaded     time.Time
	absent     bool // there was no file
	generation uint32
	err        error
	warnings   []string
	pending    []string // wait for a restart
}

func newReloader(path string, conf config.Config, warnings []string, faulty error, settings []setting, check func(config.Config) error, log *zap.Logger) *reloader {
	return &reloader{
		path: path, settings: settings, check: check, log: log, refusing: faulty != nil,
		started: conf, inForce: conf, loaded: time.Now(), absent: isAbsent(path), generation: 1, err: faulty, warnings: warnings,
	}
}

func isAbsent(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// settings lists everything that a configuration says. live gives what puts the changeable ones into force.
func settings(live func(name string) func(config.Config)) []setting {
	list := []setting{
		{name: "log_level", of: func(c config.Config) any { return c.LogLevel }},
		{name: "security", of: func(c config.Config) any { return c.Security }},
		{name: "telemetry_interval_secs", of: func(c config.Config) any { return c.TelemetryInterval }},
		{name: "the limits of script", of: func(c config.Config) any {
			c.Script.Enabled, c.Script.Source = false, 0
			return c.Script
		}},
		{name: "clipboard", of: func(c config.Config) any { return c.Clipboard }},
		{name: "script.enabled", of: func(c config.Config) any { return c.Script.Enabled }},
		{name: "script.max_source_bytes", of: func(c config.Config) any { return c.Script.Source }},
		{name: "max_exec_timeout_secs", of: func(c config.Config) any { return c.MaxExecTimeout }},
		{name: "max_chunk_size", of: func(c config.Config) any { return c.MaxChunkSize }},
		{name: "log_format", of: func(c config.Config) any { return c.LogFormat }},
		{name: "log_file", of: func(c config.Config) any { return c.LogFile }},
		{name: "log_max_size_bytes", of: func(c config.Config) any { return c.LogMaxSize }},
		{name: "log_max_files", of: func(c config.Config) any { return c.LogMaxFiles }},
		{name: "transport", of: func(c config.Config) any { return c.Transport }},
		{name: "vsock_port", of: func(c config.Config) any { return c.VsockPort }},
		{name: "vsock_allow_cids", of: func(c config.Config) any { return c.VsockCIDs }},
		{name: "vsock_unprivileged", of: func(c config.Config) any { return c.VsockUnprivileged }},
		{name: "device_path", of: func(c config.Config) any { return c.Device }},
		{name: "framing", of: func(c config.Config) any { return c.Framing }},
		{name: "pre_freeze_script_dir", of: func(c config.Config) any { return c.PreFreezeDir }},
		{name: "update.public_key", of: func(c config.Config) any { return c.UpdateKey }},
		{name: "update.allow_downgrade", of: func(c config.Config) any { return c.UpdateDowngrade }},
		{name: "update.confirm_seconds", of: func(c config.Config) any { return c.UpdateConfirm }},
		{name: "post_thaw_script_dir", of: func(c config.Config) any { return c.PostThawDir }},
	}
	for i := range list {
		list[i].apply = live(list[i].name)
	}
	return list
}

// reload reads the file. One with faults changes nothing: what was in force stays.
func (r *reloader) reload() {
	conf, warnings, err := config.Load(r.path)
	if err == nil {
		err = r.check(conf)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.generation++
	r.loaded, r.absent, r.err, r.warnings = time.Now(), isAbsent(r.path), err, warnings
	for _, warning := range warnings {
		r.log.Warn("configuration", zap.String("file", r.path), zap.String("warning", warning))
	}
	if err != nil {
		r.log.Error("the configuration has faults; what was in force stays", zap.Error(err))
		return
	}
	if r.refusing {
		r.pending = []string{"everything"}
		r.log.Warn("the configuration has no faults any more; restart the agent to end its refusing")
		return
	}
	var changed []string
	r.pending = nil
	for _, s := range r.settings {
		switch {
		case s.apply == nil && !same(s.of(conf), s.of(r.started)):
			r.pending = append(r.pending, s.name)
		case s.apply != nil && !same(s.of(conf), s.of(r.inForce)):
			s.apply(conf)
			changed = append(changed, s.name)
		}
	}
	r.inForce = conf
	r.log.Info("configuration read again", zap.Strings("changed", changed), zap.Strings("waits_for_a_restart", r.pending))
}

func same(a, b any) bool { return reflect.DeepEqual(a, b) }

// status is what get_status reports of the configuration.
func (r *reloader) status() *pb.ConfigStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &pb.ConfigStatus{
		Path: r.path, Loaded: timestamppb.New(r.loaded), Generation: r.generation,
		Warnings: slices.Clone(r.warnings), NeedsRestart: slices.Clone(r.pending), Absent: r.absent,
	}
	if r.err != nil {
		s.Error = r.err.Error()
	}
	return s
}

// serve reloads at each signal, until ctx ends.
func (r *reloader) serve(ctx context.Context, signals <-chan os.Signal, n *notifier) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-signals:
		}
		if err := n.reloading(); err != nil {
			r.log.Warn("sd_notify failed", zap.Error(err))
		}
		r.reload()
		if err := n.reloaded(); err != nil {
			r.log.Warn("sd_notify failed", zap.Error(err))
		}
		n.change()
	}
}
