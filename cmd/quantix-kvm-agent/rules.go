package main

import (
	"slices"

	"go.uber.org/zap"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/cmd/internal/core"
	"github.com/quantix-kvm/guest-agent/runtime/agent"
	"github.com/quantix-kvm/guest-agent/runtime/call"
	"github.com/quantix-kvm/guest-agent/runtime/config"
	"github.com/quantix-kvm/guest-agent/runtime/policy"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// rules is the policy of this agent, which a reload exchanges, and what is logged of each call.
type rules struct {
	policy.Current
	log, audit *zap.Logger

	guest *policy.Guest
	ops   []builtins.Op
}

func newRules(log, audit *zap.Logger) *rules { return &rules{log: log, audit: audit} }

// of says what the rules are about.
func (r *rules) of(f flags, agentCore *core.Core) {
	r.guest = &policy.Guest{Files: agentCore.Files, Dir: f.root}
	r.ops = slices.Concat(agentCore.Calls.Table().Ops(), agent.Ops())
	if own := f.below(f.stateDir()); len(own) > 0 {
		r.guest.State = own[0]
	}
}

// start puts the first policy into force. With an error there is none, and everything is refused.
func (r *rules) start(c config.Config) error {
	p, err := policy.New(c.Security, r.guest, r.ops)
	if err == nil {
		r.Set(p)
	}
	return err
}

// check says what is wrong with a configuration that is to come.
func (r *rules) check(c config.Config) error {
	_, err := policy.New(c.Security, r.guest, r.ops)
	return err
}

// change puts the policy of a checked configuration into force.
func (r *rules) change(c config.Config) {
	if p, err := policy.New(c.Security, r.guest, r.ops); err == nil {
		r.Set(p)
	}
}

// describe says for get_capabilities whether a policy is in force.
func (r *rules) describe() string {
	security, words := r.Security(), "no"
	if security.Restricts() {
		words = "yes, of " + security.File
	}
	if security.ReadOnly.On {
		words += ", read-only"
	}
	if security.Audit.On {
		words += ", with an audit log"
	}
	return words
}

// record logs what an operation did, without what it carries: in the audit log where that is on, and for debugging.
func (r *rules) record(e call.Entry) {
	if r.Security().Audit.On {
		r.audit.Info("audit", fieldsOf(e)...)
	}
	if line := r.log.Check(zap.DebugLevel, "operation"); line != nil {
		line.Write(zap.String("op", e.Operation), zap.String("id", e.ID), zap.String("port", e.Port),
			zap.Duration("took", e.Took), zap.String("code", fault.Code(e.Err)))
	}
}

// panicked logs a panic in an operation.
func (r *rules) panicked(op *builtins.Op, value any, stack []byte) {
	r.log.Error("panic in an operation", zap.String("op", op.Name), zap.Any("panic", value), zap.ByteString("stack", stack))
}

// fieldsOf are those of an entry of the audit log.
func fieldsOf(e call.Entry) []zap.Field {
	fields := []zap.Field{
		zap.String("port", e.Port), zap.String("id", e.ID), zap.String("op", e.Operation), zap.Strings("paths", e.Paths),
		zap.Strings("programs", e.Programs), zap.String("outcome", e.Outcome), zap.Float64("seconds", e.Took.Seconds()),
	}
	if len(e.Objects) > 0 {
		fields = append(fields, zap.Strings("objects", e.Objects))
	}
	if e.Cause != "" {
		fields = append(fields, zap.String("cause", e.Cause))
	}
	if e.DryRun {
		fields = append(fields, zap.Bool("dry_run", true))
	}
	if e.Transaction != "" {
		fields = append(fields, zap.String("transaction", e.Transaction))
	}
	return fields
}
