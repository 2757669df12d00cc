package scripts_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// example is a block of Lua in the guide. Its first lines name it, and say what the test gives it: files, params, and the
// error that it ends with.
type example struct {
	name, source, fails string
	files               map[string]string
	params              map[string]any
}

var block = regexp.MustCompile("(?ms)^```lua\n(.*?)^```$")

func examples(t *testing.T) (list []example) {
	t.Helper()
	guide, err := os.ReadFile("README.md")
	must(t, err)
	for _, found := range block.FindAllStringSubmatch(string(guide), -1) {
		e := example{source: found[1]}
		for line := range strings.Lines(e.source) {
			comment, ok := strings.CutPrefix(strings.TrimSpace(line), "-- ")
			if !ok {
				break
			}
			switch key, value, _ := strings.Cut(comment, ": "); {
			case strings.HasSuffix(comment, ".lua"):
				e.name = comment
			case key == "files":
				must(t, json.Unmarshal([]byte(value), &e.files))
			case key == "params":
				must(t, json.Unmarshal([]byte(value), &e.params))
			case key == "fails":
				e.fails = value
			}
		}
		if e.name == "" {
			t.Fatalf("an example has no name: %.60s…", e.source)
		}
		list = append(list, e)
	}
	return list
}

func (m *machine) example(e example, dry bool) *pb.RunScriptResponse {
	m.t.Helper()
	params, err := structpb.NewStruct(e.params)
	must(m.t, err)
	m.serial++
	request := &pb.RunScriptRequest{Name: e.name, Source: []byte(e.source), Params: params, DryRun: dry}
	reply, err := m.table.Invoke(m.t.Context(), &builtins.Call{ID: e.name + string(rune('a'+m.serial))}, m.table.Native(request), request)
	must(m.t, err)
	return reply.(*pb.RunScriptResponse)
}

// Every example of the guide foretells what it does, does it, and then finds it done. One that fails leaves nothing.
func TestExamplesOfTheGuide(t *testing.T) {
	list := examples(t)
	if len(list) < 8 {
		t.Fatalf("only %d examples were found", len(list))
	}
	for _, e := range list {
		if strings.HasSuffix(e.name, "_test.lua") {
			continue // package scripttest runs it
		}
		t.Run(e.name, func(t *testing.T) {
			files := map[string]string{"/etc/motd": "hello\n"}
			for path, content := range e.files {
				files[path] = content
			}
			m := newMachine(t, files)
			m.does["useradd"] = func() error {
				return os.WriteFile(filepath.Join(m.dir, "etc/passwd"), []byte(e.files["/etc/passwd"]+"deploy:x:1000:1000::/:/bin/sh\n"), 0o644)
			}
			foretold, first := m.example(e, true), m.example(e, false)
			if e.fails != "" {
				if first.Status != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || !strings.Contains(first.Error.GetMessage(), e.fails) {
					t.Fatal(first)
				}
				m.has("etc/motd", "hello\n")
				if _, err := os.Lstat(filepath.Join(m.dir, "etc/half.conf")); !os.IsNotExist(err) {
					t.Error(err)
				}
				return
			}
			if first.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || len(first.Changes) == 0 {
				t.Fatal(first)
			}
			if !slices.Equal(targets(foretold), targets(first)) {
				t.Errorf("foretold %v, did %v", foretold, first)
			}
			if second := m.example(e, false); second.Status != pb.ScriptStatus_SCRIPT_STATUS_COMMITTED || len(second.Changes) != 0 {
				t.Errorf("again: %v", second)
			}
		})
	}
}

var (
	ruleLine = regexp.MustCompile("(?m)^\\| (`[^|]*`) \\| (.*) \\|$")
	code     = regexp.MustCompile("`([^`]*)`")
)

// What the guide says of results is so: each row of the table is tried.
func TestRulesOfResults(t *testing.T) {
	guide, err := os.ReadFile("README.md")
	must(t, err)
	_, table, _ := strings.Cut(string(guide), "| a script returns |")
	table, _, _ = strings.Cut(table, "\n\n")
	m, tried := newMachine(t, nil), 0
	for _, row := range ruleLine.FindAllStringSubmatch(table, -1) {
		failure, fails := strings.CutPrefix(row[2], "an error: ")
		wants := code.FindAllStringSubmatch(row[2], -1)
		for i, source := range code.FindAllStringSubmatch(row[1], -1) {
			tried++
			reply := m.example(example{name: "rule", source: "return " + source[1]}, false)
			switch got := reply.Result.AsInterface(); {
			case fails:
				if reply.Error.GetKind() != "result" || !strings.Contains(reply.Error.Message, failure) {
					t.Errorf("%s gives %v, %v, want an error with %q", source[1], got, reply.Error, failure)
				}
			case i >= len(wants):
				t.Errorf("the guide does not say what %s gives", source[1])
			default:
				if text, err := json.Marshal(got); err != nil || string(text) != wants[i][1] || reply.Error != nil {
					t.Errorf("%s gives %s, %v, %v, want %s", source[1], text, err, reply.Error, wants[i][1])
				}
			}
		}
	}
	if tried < 20 {
		t.Errorf("only %d rules were found", tried)
	}
}
