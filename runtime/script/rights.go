package script

import (
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins"
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
		rights, err := policy.NewRights(r.manager.config.Files, of.who, of.needs, r.manager.scopes())
		if err != nil {
			return refused(of.kind, err.Error())
		}
		r.rights = append(r.rights, rights)
	}
	return nil
}

// scopes are what needs may name and limit: also rooms that this agent does not have, of which no call is served.
func (m *Manager) scopes() map[string]builtins.Scope {
	scopes := m.config.Calls.Table().Scopes()
	for _, name := range m.config.Unsupported {
		if room, _, _ := strings.Cut(name, "."); scopes[room] == "" {
			scopes[room] = builtins.ScopeNone
		}
	}
	return scopes
}

// explain names the kind of an error that comes of a call that a policy or the rights refused.
func (r *run) explain(e *pb.ScriptError) {
	if e.GetKind() == "builtin" && r.refusal != nil && e.Code == r.refusal.Code && e.Op == r.refusal.Op && e.Object == r.refusal.Object {
		e.Kind = "policy"
	}
}
