package scripts_test

import (
	"context"
	"os"
	"testing"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// What luacheck takes for known is what a script finds, no more and no less. Its configuration is Lua, so a script
// compares the two itself.
func TestLuacheckKnowsWhatARunnerHas(t *testing.T) {
	config, err := os.ReadFile("stubs/quantix.luacheckrc")
	if err != nil {
		t.Fatal(err)
	}
	source := "stds = {}\n" + string(config) + `
		local faults, known = {}, {}
		local function fault(...) table.insert(faults, table.concat({...}, " ")) end
		for key, value in pairs(stds.quantix.read_globals) do
			local name, fields = key, value.fields
			if type(key) == "number" then name, fields = value, nil end
			known[name] = true
			if _G[name] == nil then fault("there is no", name) end
			if fields then
				local listed = {}
				for _, field in ipairs(fields) do
					listed[field] = true
					if rawget(_G[name], field) == nil then fault("there is no", name .. "." .. field) end
				end
				for field in pairs(_G[name]) do
					if not listed[field] then fault(name .. "." .. field, "is not listed") end
				end
			end
		end
		for name in pairs(_G) do
			if not known[name] and name ~= "std" and name ~= "max_line_length" and name ~= "stds" and name ~= "files" then fault(name, "is not listed") end
		end
		return table.concat(faults, "; ")`
	start := &pb.RunnerStart{Name: "check.lua", Source: []byte(source)}
	for _, op := range builtins.NewTable(all.New(all.Config{}).List()...).Ops() {
		if op.Script != nil && !op.Internal {
			start.Functions = append(start.Functions, &pb.RunnerFunction{Name: op.Name})
		}
	}
	out := newPool(t).Run(t.Context(), sandbox.Job{Start: start, Call: func(context.Context, *pb.RunnerCall) *pb.RunnerReply { return nil }})
	if faults := string(out.Result.GetString_()); out.Error != nil || faults != "" {
		t.Errorf("%s, error %v", faults, out.Error)
	}
}

// The stubs are Lua, though nobody runs them.
func TestStubsAreLua(t *testing.T) {
	source, err := os.ReadFile("stubs/quantix.lua")
	if err != nil {
		t.Fatal(err)
	}
	out := newPool(t).Run(t.Context(), sandbox.Job{Start: &pb.RunnerStart{Name: "quantix.lua", Source: source}})
	if out.Error != nil {
		t.Error(out.Error)
	}
}
