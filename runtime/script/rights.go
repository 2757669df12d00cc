package script

import (
	"errors"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/runtime/policy"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// limit reads what the script needs and what the request allows it; a call must be within both.
func (r *run) limit() *pb.RunScriptResponse {
	for _, of := range []struct {
		who, kind string
		needs     []string
	}{
		{"the script does not declare", "source", r.declared.GetNeeds()},
		{"the request does not allow", "params", r.request.Allow},
	} {
		rights, err := policy.NewRights(r.manager.config.Files, of.who, of.needs, r.manager.rooms())
		if err != nil {
			return refused(of.kind, err.Error())
		}
		r.rights = append(r.rights, rights)
	}
	return nil
}

// may says why the script may not make a call.
func (r *run) may(op *builtins.Op, in proto.Message) error {
	for _, rights := range r.rights {
		if err := rights.Check(r.files(), op, in); err != nil {
			return err
		}
	}
	return nil
}

// files is the file system that calls act on.
func (r *run) files() *fsys.Root {
	if r.plan != nil {
		return r.plan.Files
	}
	return r.manager.config.Files
}

// rooms are what needs may name: also rooms that this agent does not have, of which no call is served.
func (m *Manager) rooms() []string {
	rooms := m.Table.Rooms()
	for _, name := range m.config.Unsupported {
		room, _, _ := strings.Cut(name, ".")
		rooms = append(rooms, room)
	}
	slices.Sort(rooms)
	return slices.Compact(rooms)
}

// denied takes note of a call that a policy or the rights refused.
func (r *run) denied(err error, reply *pb.RunnerReply) *pb.RunnerReply {
	if errors.Is(err, builtins.ErrPolicy) {
		r.refusal = reply.Error
	}
	return reply
}

// explain names the kind of an error that comes of such a call.
func (r *run) explain(e *pb.ScriptError) {
	if e.GetKind() == "builtin" && r.refusal != nil && e.Code == r.refusal.Code && e.Op == r.refusal.Op && e.Object == r.refusal.Object {
		e.Kind = "policy"
	}
}
