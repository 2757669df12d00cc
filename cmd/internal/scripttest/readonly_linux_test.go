package scripttest_test

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/all"
)

// A script that says it changes nothing cannot: each builtin that changes something refuses it, and a look does not.
func TestReadonlyIsEnforced(t *testing.T) {
	var calls strings.Builder
	tried := 0
	for _, op := range builtins.NewTable(all.New(all.Config{}).List()...).Ops() {
		if op.Script == nil || op.Internal || !op.Mutates {
			continue
		}
		tried++
		fmt.Fprintf(&calls, "refused(%q, %s%s)\n", op.Name, op.Name, arguments(op))
	}
	if tried < 15 {
		t.Fatalf("only %d builtins change something", tried)
	}
	results := test(t, `return script {name = "site", readonly = true, run = function()
		local function refused(name, f, ...)
			local ok, err = pcall(f, ...)
			assert(not ok and err.op == name and err.code == "refused" and tostring(err):find("declared readonly", 1, true), name .. ": " .. tostring(err))
		end
		`+calls.String()+`
		return {file.exists("/etc"), exec.run({"uname"}, {readonly = true}).code, #host.hostname(), #tx.changes()}
	end}`, `return {looks = function()
		local r = test.run()
		assert(r.status == "committed" and #r.changes == 0 and r.result[1] and #r.commands == 1, json.encode(r))
	end}`)
	is(t, results, "looks", "ok")
}

// arguments are some that a call takes and that would change something, each after a comma.
func arguments(op builtins.Op) string {
	var list strings.Builder
	for _, name := range op.Script.Args {
		list.WriteString(", ")
		switch field := op.In.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(name)); {
		case field.IsList() && field.Kind() == protoreflect.MessageKind:
			list.WriteString("{{}}")
		case field.IsList():
			list.WriteString(`{"/x"}`)
		case field.IsMap(), field.Kind() == protoreflect.MessageKind:
			list.WriteString("{}")
		case field.Kind() != protoreflect.StringKind:
			list.WriteString("2147483646") // no process has this number
		default:
			list.WriteString(`"/x"`)
		}
	}
	return list.String()
}
