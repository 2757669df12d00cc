// Package policy says who may do what on which path or command.
//
//	agent.yaml: security ─► New ─► Policy ──┐
//	script: needs, request: allow ─► Rights ┼─► each call: fine, or "refused by KEY (FILE line N): what"
//	Guest: what paths and programs are ─────┘
//
// What a request reads, changes and runs its row computes (builtins.Access). Paths are compared as the file system's own
// resolver gives them, element by element, and by what stands there: another spelling, a link, a second name or a bind mount
// is no way around. Where something cannot be read, the request is refused.
//
// Between the check and the use of a path somebody may change it. What was checked is remembered (fsys.CheckedPaths), and
// the operation acts on that or fails.
//
// A list of forbidden programs is no boundary: what is not on it can do the same. It refuses what names a program that is on
// it, also after env, sh -c and the like. A list of allowed programs is a boundary as far as those programs are one.
// Rules on paths bind the operations on files, not what commands do.
//
// Not here: reading agent.yaml, and doing anything.
package policy

import (
	"fmt"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/runtime/config"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Policy is a security section in force. It is safe for concurrent use.
type Policy struct {
	security config.Security
	guest    *Guest
	writable [][]string // the places of each of AllowedWritePaths
	commands *bucket
	files    *bucket
	section  string // where its keys stand, as in "security."
	port     string // whose section it is, * for any text; empty: it is the general one
	ports    []*Policy
	through  map[string][]*builtins.Op // rows by which others act, by the name of these
}

// New makes a policy. It fails where a rule names no operation among ops, or cannot be held to on this system.
func New(security config.Security, guest *Guest, ops []builtins.Op) (*Policy, error) {
	p, err := newSection(security, "security.", guest, ops)
	if err != nil {
		return nil, err
	}
	for _, port := range security.Ports {
		port.Security.File = security.File
		of, err := newSection(port.Security, "security.ports."+port.Port+".", guest, ops)
		if err != nil {
			return nil, err
		}
		of.port = port.Port
		p.ports = append(p.ports, of)
	}
	return p, nil
}

func newSection(security config.Security, section string, guest *Guest, ops []builtins.Op) (*Policy, error) {
	p := &Policy{
		security: security, section: section, guest: guest,
		commands: newBucket(security.CommandsPerMinute.N, 60), files: newBucket(security.FileOpsPerSecond.N, 1),
	}
	if runtime.GOOS != "linux" && len(security.AllowedCommands)+len(security.DeniedCommands) > 0 {
		return nil, fault.Unsupported("%s: rules on commands are not supported on this system", security.File)
	}
	for key, list := range map[string][]config.Rule{"allow_operations": security.AllowedOperations, "deny_operations": security.DeniedOperations} {
		for _, rule := range list {
			if !namesOne(rule.Value, ops) {
				return nil, fmt.Errorf("%s: line %d: %s%s: %q names no operation", security.File, rule.Line, section, key, rule.Value)
			}
		}
	}
	p.through = actThrough(ops)
	for _, rule := range security.AllowedWritePaths {
		p.writable = append(p.writable, guest.fixed(rule.Value))
	}
	return p, nil
}

// actThrough returns the rows of scripts that have something done by another room, and those of that room which do the same:
// what SameAs names, or for a command, as that of tx.on_rollback, all that run commands.
func actThrough(ops []builtins.Op) map[string][]*builtins.Op {
	through := map[string][]*builtins.Op{}
	for i := range ops {
		op := &ops[i]
		by := op.Defers
		if by == "" {
			by = op.Inverse
		}
		room, _, _ := strings.Cut(by, ".")
		for j := range ops {
			other := &ops[j]
			same := op.SameAs == nil && len(op.Roles.Commands) > 0 && room != op.Room() && other.Room() == room && !other.Internal &&
				other.Mutates && len(other.Roles.Commands) > 0
			if same || op.SameAs != nil && slices.Contains(op.SameAs(nil), other.Name) {
				through[op.Name] = append(through[op.Name], other)
			}
		}
	}
	return through
}

// namesOne reports whether a rule is about any row.
func namesOne(pattern string, ops []builtins.Op) bool {
	for i := range ops {
		if matched, _ := path.Match(pattern, ops[i].Name); matched && !ops[i].Internal {
			return true
		}
	}
	return false
}

// of are the sections that bind the hosts on a channel.
func (p *Policy) of(port string) []*Policy {
	list := []*Policy{p}
	for _, section := range p.ports {
		if matches(section.port, port) {
			list = append(list, section)
		}
	}
	return list
}

// matches reports whether a pattern is about a channel; * is any text in it, slashes too.
func matches(pattern, port string) bool {
	flat := strings.NewReplacer("/", "\x00")
	matched, _ := path.Match(flat.Replace(pattern), flat.Replace(port))
	return matched
}

// check returns why a request is refused; nil: it is not.
func (p *Policy) check(op *builtins.Op, in proto.Message, access builtins.Access) error {
	if err := p.operation(op, in); err != nil {
		return err
	}
	if err := p.paths(access); err != nil {
		return err
	}
	for _, c := range slices.Concat(access.Commands, access.Helpers) {
		if err := p.command(c); err != nil {
			return err
		}
	}
	return p.rate(access)
}

// denies reports whether a row is refused whatever the request is.
func (p *Policy) denies(op *builtins.Op) bool { return !op.Internal && p.operation(op, nil) != nil }

// operation checks a row against what may be done at all. Without a request it is about any request. A row that acts through
// those of another room may do so where one of these may, or where all that SameAs names may.
func (p *Policy) operation(op *builtins.Op, in proto.Message) error {
	if err := p.row(op, in); err != nil {
		return err
	}
	if in == nil && op.SameAs != nil && len(op.SameAs(op.In)) == 0 { // a request that asks for nothing more does not act through others
		return nil
	}
	var refusal error
	for _, other := range p.through[op.Name] {
		refused := p.row(other, nil)
		if op.SameAs != nil && in != nil {
			if refused != nil && slices.Contains(op.SameAs(in), other.Name) {
				return refused
			}
			continue
		}
		if refusal = refused; refusal == nil {
			return nil
		}
	}
	return refusal
}

// row checks a row by itself against what may be done.
func (p *Policy) row(op *builtins.Op, in proto.Message) error {
	for _, rule := range p.security.DeniedOperations {
		if matched, _ := path.Match(rule.Value, op.Name); matched {
			return p.refuse("deny_operations", rule.Line, op.Name)
		}
	}
	allowed := len(p.security.AllowedOperations) == 0
	for _, rule := range p.security.AllowedOperations {
		matched, _ := path.Match(rule.Value, op.Name)
		allowed = allowed || matched
	}
	if !allowed && !op.EndsOwn {
		return p.refuse("allow_operations", p.security.AllowedOperations[0].Line, op.Name+" is not listed")
	}
	if p.security.ReadOnly.On && changes(op, in) {
		return p.refuse("read_only", p.security.ReadOnly.Line, op.Name)
	}
	return nil
}

// changes reports whether a request counts as a change of the guest. A command does, whatever it says of itself: that is not
// held to everywhere. So does a part of an upload.
func changes(op *builtins.Op, in proto.Message) bool {
	switch {
	case op.Delegates:
		return false
	case len(op.Roles.Commands) > 0:
		return true
	case op.Script == nil || in == nil:
		return op.Mutates && (op.Script == nil || op.Readonly == nil)
	}
	return op.Changes(in)
}

// paths checks what a request reads and changes against the rules.
func (p *Policy) paths(a builtins.Access) error {
	trees := map[string]bool{}
	for _, t := range a.Trees {
		trees[t] = true
	}
	if len(p.security.DeniedReadPaths) > 0 {
		for _, text := range a.Reads {
			if err := p.readable(text, trees[text], a.Checked); err != nil {
				return err
			}
		}
		// A change in place needs no reading, but what is moved or removed whole could be read elsewhere later.
		for _, text := range a.Trees {
			if err := p.readable(text, true, a.Checked); err != nil {
				return err
			}
		}
		for _, text := range a.Patterns {
			dir, deep := builtins.Static(text)
			if deep {
				return p.refuse("deny_file_read_paths", p.security.DeniedReadPaths[0].Line, text+": a wildcard may stand in the last element alone")
			}
			if err := p.readable(dir, false, a.Checked); err != nil {
				return err
			}
		}
	}
	if len(p.security.AllowedWritePaths) > 0 {
		for _, text := range a.Writes {
			if err := p.writes(text, a.Checked); err != nil {
				return err
			}
		}
		for _, s := range a.Siblings {
			at, err := p.guest.Files.Resolve(s.Path, true)
			if err != nil {
				continue // there is nothing to be beside of; the path itself was looked at
			}
			if err := p.writes(at+s.Suffix, a.Checked); err != nil {
				return err
			}
		}
	}
	return nil
}

// readable checks a path against what must not be read.
func (p *Policy) readable(text string, tree bool, checked *fsys.CheckedPaths) error {
	o, err := p.guest.look(text, checked)
	if err != nil {
		return fault.On(text, err)
	}
	for _, rule := range p.security.DeniedReadPaths {
		for _, value := range []string{rule.Value, p.guest.State} {
			if value == "" {
				continue
			}
			covers, err := p.guest.covers(value, o, tree)
			if err != nil {
				return p.refuse("deny_file_read_paths", rule.Line, fmt.Sprintf("%s: %s cannot be looked at: %v", text, value, err))
			}
			if covers && value != rule.Value {
				text += " (the agent keeps copies there)"
			}
			if covers {
				return p.refuse("deny_file_read_paths", rule.Line, text)
			}
		}
	}
	return nil
}

// writes checks a path against what may be changed: the place itself, and what it leads to.
func (p *Policy) writes(text string, checked *fsys.CheckedPaths) error {
	o, err := p.guest.look(text, checked)
	if err != nil {
		return fault.On(text, err)
	}
	line := p.security.AllowedWritePaths[0].Line
	for _, place := range o.places {
		if !anyWithin(place, p.writable) {
			return p.refuse("allow_file_write_paths", line, place+" is not below what is listed")
		}
	}
	if o.names > 1 {
		return p.refuse("allow_file_write_paths", line, fmt.Sprintf("%s has %d names, and the others may lie elsewhere", text, o.names))
	}
	return nil
}

// rate takes what a request costs.
func (p *Policy) rate(a builtins.Access) error {
	if len(a.Commands)+len(a.Helpers) > 0 {
		if limit := p.security.CommandsPerMinute; !p.commands.take() {
			return p.busy("max_commands_per_minute", limit)
		}
		return nil
	}
	if limit := p.security.FileOpsPerSecond; len(a.Reads)+len(a.Writes)+len(a.Patterns) > 0 && !p.files.takeAll(max(a.Ops, 1)) {
		return p.busy("max_file_ops_per_second", limit)
	}
	return nil
}

func (p *Policy) refuse(key string, line int, what string) error {
	return fault.Wrapf(builtins.ErrPolicy, "refused by %s%s (%s line %d): %s", p.section, key, p.security.File, line, what)
}

func (p *Policy) busy(key string, limit config.Limit) error {
	return fault.Wrapf(fault.ErrBusy, "refused by %s%s (%s line %d): more than %d", p.section, key, p.security.File, limit.Line, limit.N)
}

// Current is the policy in force, which can be exchanged while requests are checked. The zero value refuses everything.
type Current struct{ policy atomic.Pointer[Policy] }

// Set puts a policy into force. Requests that are under way go on.
func (c *Current) Set(p *Policy) { c.policy.Store(p) }

// Check returns why the policy in force refuses a request from a host on a port; nil: it does not. access is the row's for the
// request.
func (c *Current) Check(port string, op *builtins.Op, in proto.Message, access builtins.Access) error {
	p := c.policy.Load()
	if p == nil {
		return fault.Wrapf(builtins.ErrPolicy, "refused: no policy is in force")
	}
	if !p.security.Restricts() {
		return nil
	}
	for _, section := range p.of(port) {
		if err := section.check(op, in, access); err != nil {
			return err
		}
	}
	return nil
}

// Denies reports whether a row is refused to the hosts on a channel whatever the request is.
func (c *Current) Denies(port string, op *builtins.Op) bool {
	p := c.policy.Load()
	return p == nil || slices.ContainsFunc(p.of(port), func(section *Policy) bool { return section.denies(op) })
}

// Sees reports whether hosts on a channel may see, and end, what those on another began: their own, what nobody is known to
// have begun, all where there is no other channel, and what a section of theirs says.
func (c *Current) Sees(port, owner string) bool {
	if owner == port || owner == "" || config.IsOnlyPort(port) {
		return true
	}
	p := c.policy.Load()
	if p == nil {
		return false
	}
	return slices.ContainsFunc(p.of(port), func(section *Policy) bool {
		return slices.ContainsFunc(section.security.OtherPorts, func(rule config.Rule) bool { return matches(rule.Value, owner) })
	})
}

// Security is what the policy in force was made of.
func (c *Current) Security() config.Security {
	if p := c.policy.Load(); p != nil {
		return p.security
	}
	return config.Security{}
}
