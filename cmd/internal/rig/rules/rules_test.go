package rules

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/quantix-kvm/guest-agent/"

// rule forbids imports. A package is a path below the module, "…" at the end for all below it, "" for all packages.
// What is forbidden is an import path, or such a path with "…"; except lists packages that the rule does not hold for.
type rule struct {
	in     string
	forbid []string
	except []string
	why    string
}

var rules = []rule{
	{"", []string{"github.com/yuin/gopher-lua…"}, []string{"runtime/sandbox/lua"}, "Lua lives in the runner alone"},
	{"", []string{"go.uber.org/zap…"}, []string{"runtime/agent", "cmd…"}, "libraries return errors; the agent and main log"},
	{"", []string{"github.com/shirou/gopsutil…"}, []string{"builtins/internal/facts", "builtins/telemetry"}, "measuring the guest is their work"},
	{"", []string{"gopkg.in/yaml.v3"}, []string{"builtins/netplan", "runtime/policy", "runtime/config", "runtime/sandbox/lua"}, "YAML is configuration"},
	{"", []string{"os/exec"}, []string{"builtins/internal/proc", "runtime/sandbox", "cmd…"}, "children are started in two places"},
	{"", []string{"github.com/spf13/cobra…"}, []string{"cmd…"}, "command lines are main's"},
	{"builtins…", []string{module + "runtime…", module + "wire", module + "wire/client…", module + "wire/port…", module + "cmd…", module + "scripts…"}, nil, "an operation knows neither way in"},
	{"builtins", []string{module + "builtins/… but " + module + "builtins/fsys"}, nil, "the table knows no room"},
	{"wire…", []string{module + "builtins…", module + "runtime…", module + "cmd…", module + "scripts…"}, nil, "the channel knows no operation"},
	{"wire/client", []string{module + "wire/port"}, nil, "the host does not open guest ports"},
	{"runtime…", []string{module + "cmd…", module + "scripts…", module + "builtins/all", module + "builtins/file", module + "builtins/exec", module + "builtins/host", module + "builtins/telemetry", module + "builtins/tx"}, nil, "no way in knows a room"},
	{"runtime/sandbox", []string{module + "runtime/sandbox/lua", module + "runtime/script", module + "runtime/agent"}, nil, "the parent's side knows no Lua"},
	{"runtime/sandbox/lua", []string{"os/exec", "net", "net/http…", "net/rpc…", module + "builtins…", module + "wire", module + "wire/client", module + "wire/port"}, nil, "a runner has one connection"},
	{"runtime/agent", []string{"flag", "os", "syscall"}, nil, "the agent does not touch the guest"},
	{"cmd/quantix-kvm-ctl", []string{module + "builtins…", module + "runtime…"}, nil, "the host's tool knows the client alone"},
}

type pkg struct {
	ImportPath string
	Doc        string
	Imports    []string
}

func packages(t *testing.T, goos string) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Doc,Imports", "./...")
	cmd.Dir = "../../../.."
	cmd.Env = append(os.Environ(), "GOOS="+goos, "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	var list []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
}

func matches(pattern, path string) bool {
	if pattern, but, ok := strings.Cut(pattern, " but "); ok {
		return matches(pattern, path) && !matches(but, path)
	}
	if head, all := strings.CutSuffix(pattern, "…"); all {
		return strings.HasPrefix(path, head) && (head == "" || strings.HasSuffix(head, "/") || path == head || path[len(head)] == '/')
	}
	return pattern == path
}

func TestImports(t *testing.T) {
	for _, goos := range []string{"linux", "windows"} {
		list := packages(t, goos)
		if len(list) < 10 {
			t.Fatalf("only %d packages were found", len(list))
		}
		for _, p := range list {
			here := strings.TrimPrefix(p.ImportPath, module)
			for _, r := range rules {
				if r.in != "" && !matches(r.in, here) || excepted(r, here) {
					continue
				}
				for _, imported := range p.Imports {
					for _, forbidden := range r.forbid {
						if matches(forbidden, imported) && imported != p.ImportPath {
							t.Errorf("%s (%s) imports %s: %s", here, goos, imported, r.why)
						}
					}
				}
			}
		}
	}
}

func excepted(r rule, here string) bool {
	for _, e := range r.except {
		if matches(e, here) {
			return true
		}
	}
	return false
}

// The rules themselves find what they forbid.
func TestRulesCanFail(t *testing.T) {
	for _, c := range []struct {
		pattern, path string
		want          bool
	}{
		{"net…", "net/http", true}, {"net…", "net", true}, {"net…", "netip", false},
		{module + "builtins/…", module + "builtins/file", true}, {module + "builtins/…", module + "builtins", false},
		{"a/… but a/b", "a/c", true}, {"a/… but a/b", "a/b", false},
		{"os/exec", "os/exec", true}, {"os/exec", "os", false}, {"cmd…", "cmd/x", true},
	} {
		if matches(c.pattern, c.path) != c.want {
			t.Errorf("%s against %s", c.pattern, c.path)
		}
	}
}

// Every package says in its documentation what it is, and what it is not.
func TestPackagesAreDocumented(t *testing.T) {
	for _, p := range packages(t, "linux") {
		here := strings.TrimPrefix(p.ImportPath, module)
		if p.Doc == "" {
			t.Errorf("%s has no package documentation", here)
		}
	}
}

// At top level lies only what the layout names.
func TestTopLevel(t *testing.T) {
	entries, err := os.ReadDir("../../../..")
	if err != nil {
		t.Fatal(err)
	}
	allowed := " runtime builtins scripts wire cmd go.mod go.sum Makefile README.md "
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") && !strings.Contains(allowed, " "+e.Name()+" ") {
			t.Errorf("%s lies at top level", e.Name())
		}
	}
}

// No word of where or how this was made stands in the tree.
func TestTheProjectSpeaksOfItselfAlone(t *testing.T) {
	forbidden := []string{"/work/" + "main", "/work/" + "shared", "TO" + "DO", "FIX" + "ME"}
	err := filepath.WalkDir("../../../..", func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && len(d.Name()) > 2) {
			return filepath.SkipDir
		}
		if d.IsDir() || strings.HasSuffix(path, ".sum") {
			return nil
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, word := range forbidden {
			if bytes.Contains(b, []byte(word)) {
				t.Errorf("%s contains %s", path, word)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
