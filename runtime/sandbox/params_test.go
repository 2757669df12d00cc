package sandbox_test

import (
	"testing"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func TestBoundsOfParameters(t *testing.T) {
	pool := newPool(t, sandbox.Config{})
	declared := `return script {
		name = "bounds",
		params = {
			port = {type = "integer", min = 1, max = 65535, default = 80},
			title = {type = "string", min = 1, max = 5},
			names = {type = "list", max = 2},
		},
		run = function(p) return p.port end,
	}`
	list := func(n int) *pb.LuaValue {
		table := &pb.LuaTable{List: true}
		for range n {
			table.Array = append(table.Array, text("x"))
		}
		return &pb.LuaValue{Kind: &pb.LuaValue_Table{Table: table}}
	}
	for _, good := range []map[string]*pb.LuaValue{
		{}, {"port": number(1), "title": text("a")}, {"port": number(65535), "title": text("abcde"), "names": list(2)}, {"names": list(0)},
	} {
		mustRun(t, pool, declaredJob(declared, good))
	}
	for words, wrong := range map[string]map[string]*pb.LuaValue{
		"port must be at least 1":                          {"port": number(0)},
		"port must be at most 65535":                       {"port": number(65536)},
		"title must be at least 1 long, in bytes":          {"title": text("")},
		"title must be at most 5 long, in bytes":           {"title": text("ééé")},
		"names must be at most 2 long, in elements; title": {"names": list(3), "title": text("")},
	} {
		mustFail(t, pool, declaredJob(declared, wrong), "params", words)
	}
	for words, spec := range map[string]string{
		"params.a: min must be a number":       `{type = "integer", min = "1"}`,
		"params.a: min is more than max":       `{type = "integer", min = 2, max = 1}`,
		"params.a: a boolean has no min":       `{type = "boolean", max = 1}`,
		"params.a: default must be at least 2": `{type = "number", min = 2, default = 1}`,
	} {
		mustFail(t, pool, script(`return script {name = "x", params = {a = `+spec+`}, run = function() end}`), "syntax", words)
	}
}
