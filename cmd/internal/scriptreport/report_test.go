package scriptreport

import (
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A change of which nothing is known has other words where a script ran than in a dry run.
func TestChangesOfUnknownState(t *testing.T) {
	const dry, failed = pb.ScriptStatus_SCRIPT_STATUS_DRY_RUN, pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED
	const committed = pb.ScriptStatus_SCRIPT_STATUS_COMMITTED
	const unknown = pb.ChangeState_CHANGE_STATE_UNKNOWN
	ran := &pb.Change{Op: "exec.on_commit", Target: "x", Action: "ran", State: unknown}
	for status, want := range map[pb.ScriptStatus]string{
		committed: "UNKNOWN whether it is done: ran x (exec.on_commit)\nFAILED after the commit: x (exec.on_commit)\n",
		dry:       "cannot be foretold: ran x (exec.on_commit)\nFAILED after the commit: x (exec.on_commit)\n",
		failed:    "UNKNOWN whether it is undone: ran x (exec.on_commit)\nFAILED after the commit: x (exec.on_commit)\n",
	} {
		var b strings.Builder
		Changes(&b, &pb.RunScriptResponse{Status: status, Changes: []*pb.Change{ran}, AfterCommit: []*pb.Change{ran}})
		if b.String() != want {
			t.Errorf("%v: %q, wanted %q", status, b.String(), want)
		}
	}
	for state, want := range map[pb.ChangeState]string{
		pb.ChangeState_CHANGE_STATE_APPLIED: "ran after the commit: x (exec.on_commit)",
		pb.ChangeState_CHANGE_STATE_WOULD:   "would run after the commit: x (exec.on_commit)",
	} {
		if got := AfterLine(&pb.Change{Op: "exec.on_commit", Target: "x", Action: "ran", State: state}); got != want {
			t.Errorf("%q, wanted %q", got, want)
		}
	}
}

func TestErrorText(t *testing.T) {
	for want, e := range map[string]*pb.ScriptError{
		"busy: another transaction is open":         {Kind: "busy", Message: "busy: another transaction is open"},
		"timeout: it took too long (limit timeout)": {Kind: "timeout", Message: "it took too long", Limit: "timeout"},
		"s.lua:2: syntax: unexpected end\nhint: x":  {Kind: "syntax", Script: "s.lua", Line: 2, Message: "unexpected end", Hint: "x"},
		"s.lua:2: stop": {Kind: "runtime", Script: "s.lua", Line: 2, Message: "s.lua:2: stop"},
	} {
		if got := ErrorText(e); got != want {
			t.Errorf("%q, wanted %q", got, want)
		}
	}
}
