package main

import (
	"context"
	"time"

	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/runtime/config"
	"github.com/quantix-kvm/guest-agent/runtime/policy"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// rules is the policy of this agent, which a reload exchanges.
type rules struct {
	policy.Current
	guest *policy.Guest
	table *builtins.Table
}

func newRules(f flags, root *fsys.Root, table *builtins.Table) *rules {
	r := &rules{guest: &policy.Guest{Files: root}, table: table}
	if own := f.below(f.stateDir()); len(own) > 0 {
		r.guest.State = own[0]
	}
	return r
}

// start puts the first policy into force. With an error there is none, and everything is refused.
func (r *rules) start(c config.Config) error {
	p, err := policy.New(c.Security, r.guest, r.table.Ops())
	if err == nil {
		r.Set(p)
	}
	return err
}

// check says what is wrong with a configuration that is to come.
func (r *rules) check(c config.Config) error {
	_, err := policy.New(c.Security, r.guest, r.table.Ops())
	return err
}

// change puts the policy of a checked configuration into force.
func (r *rules) change(c config.Config) {
	if p, err := policy.New(c.Security, r.guest, r.table.Ops()); err == nil {
		r.Set(p)
	}
}

// guard makes the table ask the policy, and then another.
func (r *rules) guard(then func(context.Context, *builtins.Call, *builtins.Op, proto.Message) error) {
	r.table.Denies = r.Denies
	r.table.Allow = func(ctx context.Context, call *builtins.Call, op *builtins.Op, in proto.Message) error {
		if err := r.Check(ctx, call, op, in); err != nil {
			return err
		}
		return then(ctx, call, op, in)
	}
}

func (r *rules) audits() bool { return r.Security().Audit.On }

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

// audited is the entry of the audit log for an operation: who asked, for what, and what came of it. Of a command it names
// the program alone, for arguments may be secret, and of an error the code, for its words may tell some of the content.
func audited(call *builtins.Call, op *builtins.Op, in proto.Message, err error, took time.Duration) []zap.Field {
	access := op.Access(in)
	var paths, programs []string
	for _, list := range [][]string{access.Writes, access.Reads, access.Patterns} {
		paths = append(paths, list...)
	}
	for _, c := range access.Commands {
		if len(c.Argv) > 0 {
			programs = append(programs, c.Argv[0])
		}
	}
	outcome := "ok"
	if err != nil {
		outcome = fault.Code(err)
	}
	return []zap.Field{
		zap.String("port", call.Port), zap.String("id", call.ID), zap.String("op", op.Name), zap.Strings("paths", paths),
		zap.Strings("programs", programs), zap.String("outcome", outcome), zap.Float64("seconds", took.Seconds()),
	}
}
