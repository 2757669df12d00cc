package rules

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	module = "github.com/quantix-kvm/guest-agent/"
	top    = "../../../.."
)

// rule forbids imports: to packages that in matches, but for those that except does. in and except are paths below the module,
// "" is every package; forbid are import paths. Of all three "…" at the end stands for all below as well, and "<room>" for the
// directory of any room. A package may import what belongs to its own room.
type rule struct {
	in     string
	forbid []string
	except []string
	why    string
}

var rules = []rule{
	{"", []string{"github.com/yuin/gopher-lua…"}, []string{"runtime/sandbox/lua"}, "Lua lives in the runner alone"},
	{"", []string{"go.uber.org/zap…"}, []string{"runtime/agent", "cmd…"}, "libraries return errors; the agent and main log"},
	{"", []string{"log", "log/slog"}, nil, "logs are written by zap"},
	{"", []string{"github.com/shirou/gopsutil…"}, []string{"builtins/telemetry", "builtins/inventory", "builtins/internal/facts"}, "measuring the guest is their work"},
	{"", []string{"gopkg.in/yaml.v3…", "gopkg.in/yaml.v2…", "go.yaml.in…", "sigs.k8s.io/yaml…"}, []string{"builtins/netplan", "runtime/policy", "runtime/config", "runtime/sandbox/lua"}, "YAML is configuration"},
	{"", []string{"os/exec"}, []string{"builtins/internal/proc", "runtime/sandbox", "cmd/quantix-kvm-ctl", "cmd/internal/scripttest", "cmd/internal/diskimage", "cmd/internal/rig…", "builtins/internal/desktoptest"}, "children are started in two places of the agent"},
	{"", []string{"github.com/spf13…"}, []string{"cmd…"}, "command lines are main's"},
	{"", []string{module + "cmd/internal/rig…"}, []string{"cmd/internal/rig…"}, "what only tests need is no part of a program"},
	{"", []string{module + "builtins/internal/desktoptest"}, nil, "what only tests need is no part of a program"},

	{"builtins…", []string{module + "runtime…", module + "wire", module + "wire/client…", module + "wire/port…", module + "cmd…", module + "scripts…"}, nil, "an operation does not know who calls it"},
	{"builtins", []string{module + "builtins/… but " + module + "builtins/fsys"}, nil, "the table knows no room"},
	{"builtins/<room>…", []string{module + "builtins/<room>…", module + "builtins/all…"}, nil, "a room knows no other room"},
	{"builtins/fsys…", []string{module + "builtins… but " + module + "builtins/fsys…"}, nil, "files know no operation"},
	{"builtins/internal…", []string{module + "builtins/<room>…", module + "builtins/all…"}, nil, "what rooms share knows no room"},

	{"wire…", []string{module + "builtins…", module + "runtime…", module + "cmd…", module + "scripts…"}, nil, "the channel knows no operation"},
	{"wire/client", []string{module + "wire/port"}, nil, "the host does not open guest ports"},

	{"runtime…", []string{module + "cmd…", module + "scripts…", module + "builtins/all…", module + "builtins/<room>…"}, nil, "who calls operations knows no room"},
	{"runtime/sandbox", []string{module + "runtime/sandbox/lua", module + "runtime/script", module + "runtime/agent"}, nil, "the parent's side knows no Lua"},
	{"runtime/sandbox/lua", []string{"os/exec", "net", "net/http…", "net/rpc…", module + "builtins…", module + "wire", module + "wire/client", module + "wire/port"}, nil, "a runner has one connection"},
	{"runtime/agent", []string{"flag", "os", "syscall"}, nil, "the agent does not touch the guest"},

	{"scripts", []string{module + "…"}, nil, "the bundled scripts are files"},
	{"cmd/quantix-kvm-ctl", []string{module + "builtins… but " + module + "builtins/clipboard/local", module + "runtime…"}, nil, "the host's tool knows the client alone, and the clipboard of the desktop that it is in"},
	{"cmd/internal/core", []string{"flag", "github.com/spf13…", "go.uber.org/zap…", module + "runtime/agent", module + "runtime/config", module + "wire/port"}, nil, "flags, configuration, logs and channels are main's"},
}

// roomOf returns the name of the room that a package, or an import path of this module, belongs to: of the directory directly
// below builtins. Empty: it belongs to none.
func roomOf(path string) string {
	name, ok := strings.CutPrefix(strings.TrimPrefix(path, module), "builtins/")
	name, _, _ = strings.Cut(name, "/")
	if !ok || slices.Contains([]string{"all", "fsys", "internal"}, name) {
		return ""
	}
	return name
}

// forbids returns why a package may not import another; empty: it may.
func forbids(here, imported string) (why string) {
	if room := roomOf(here); module+here == imported || room != "" && room == roomOf(imported) {
		return ""
	}
	for _, r := range rules {
		if r.in != "" && !matches(r.in, here) || slices.ContainsFunc(r.except, func(e string) bool { return matches(e, here) }) {
			continue
		}
		if slices.ContainsFunc(r.forbid, func(f string) bool { return matches(f, imported) }) {
			return r.why
		}
	}
	return ""
}

func matches(pattern, path string) bool {
	if pattern, but, ok := strings.Cut(pattern, " but "); ok {
		return matches(pattern, path) && !matches(but, path)
	}
	if strings.Contains(pattern, "<room>") {
		room := roomOf(path)
		return room != "" && matches(strings.ReplaceAll(pattern, "<room>", room), path)
	}
	if head, all := strings.CutSuffix(pattern, "…"); all {
		return strings.HasPrefix(path, head) && (head == "" || strings.HasSuffix(head, "/") || path == head || path[len(head)] == '/')
	}
	return pattern == path
}

type pkg struct {
	ImportPath, Dir, Doc, Export string
	Imports, GoFiles             []string
}

// packages lists packages as go list does; those of this module are in it.
func packages(t *testing.T, goos string, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Dir,Doc,Export,Imports,GoFiles"}, append(args, "./...")...)...)
	cmd.Dir = top
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

func TestImports(t *testing.T) {
	for _, goos := range []string{"linux", "windows"} {
		list := packages(t, goos)
		if len(list) < 10 {
			t.Fatalf("only %d packages were found", len(list))
		}
		for _, p := range list {
			here := strings.TrimPrefix(p.ImportPath, module)
			for _, imported := range p.Imports {
				if why := forbids(here, imported); why != "" {
					t.Errorf("%s (%s) imports %s: %s", here, goos, imported, why)
				}
			}
		}
	}
}

// The rules themselves find what they forbid, of a room too that nobody has thought of yet.
func TestRulesCanFail(t *testing.T) {
	for _, c := range []struct {
		pattern, path string
		want          bool
	}{
		{"net…", "net/http", true}, {"net…", "net", true}, {"net…", "netip", false},
		{module + "builtins/…", module + "builtins/file", true}, {module + "builtins/…", module + "builtins", false},
		{"a/… but a/b", "a/c", true}, {"a/… but a/b", "a/b", false},
		{"os/exec", "os/exec", true}, {"os/exec", "os", false}, {"cmd…", "cmd/x", true},
		{"builtins/<room>", "builtins/lamp", true}, {"builtins/<room>", "builtins/lamp/bulb", false}, {"builtins/<room>…", "builtins/lamp/bulb", true},
		{"builtins/<room>…", "builtins/fsys", false}, {"builtins/<room>…", "builtins/internal/edit", false}, {"builtins/<room>…", "builtins", false},
		{module + "builtins/<room>", module + "builtins/lamp", true}, {module + "builtins/<room>", "builtins/lamp", false},
	} {
		if matches(c.pattern, c.path) != c.want {
			t.Errorf("%s against %s", c.pattern, c.path)
		}
	}
	for _, c := range []struct {
		here, imported string
		may            bool
	}{
		{"builtins/lamp", module + "builtins/internal/edit", true}, {"builtins/lamp", module + "builtins/fsys", true}, {"builtins/lamp", module + "wire/pb", true},
		{"builtins/lamp", module + "builtins/lamp/bulb", true}, {"builtins/lamp/bulb", module + "builtins/lamp", true},
		{"builtins/all", module + "builtins/lamp", true}, {"cmd/quantix-kvm-agent", module + "builtins/lamp", true},
		{"builtins/lamp", module + "builtins/file", false}, {"builtins/file", module + "builtins/lamp/bulb", false}, {"builtins/lamp/bulb", module + "builtins/file", false},
		{"builtins/lamp", module + "builtins/all", false}, {"builtins/internal/edit", module + "builtins/lamp", false}, {"builtins/internal/guest", module + "builtins/all", false},
		{"builtins/fsys", module + "builtins/lamp", false}, {"builtins", module + "builtins/lamp", false},
		{"builtins/lamp", module + "runtime/call", false}, {"builtins/lamp", module + "wire", false},
		{"builtins/lamp", "github.com/shirou/gopsutil/v3/mem", false}, {"builtins/telemetry", "github.com/shirou/gopsutil/v3/mem", true},
		{"builtins/lamp", "gopkg.in/yaml.v3", false}, {"builtins/netplan", "gopkg.in/yaml.v3", true},
		{"builtins/lamp", "os/exec", false}, {"builtins/lamp", "go.uber.org/zap", false}, {"builtins/lamp", "log", false}, {"builtins/lamp", "github.com/yuin/gopher-lua", false},
		{"runtime/call", module + "builtins/lamp", false}, {"runtime/journal/blocktest", module + "builtins/lamp/bulb", false}, {"runtime/call", module + "builtins/fsys", true},
		{"cmd/internal/core", "flag", false}, {"cmd/internal/core", module + "builtins/all", true},
		{"cmd/quantix-kvm-agent", module + "cmd/internal/rig/agenttest", false}, {"cmd/internal/rig/vmtest", module + "cmd/internal/rig/vmtest/qmp", true},
	} {
		if why := forbids(c.here, c.imported); (why == "") != c.may {
			t.Errorf("%s imports %s: %q", c.here, c.imported, why)
		}
	}
}

// Operations run through the executor alone: nothing else calls the function of a row.
func TestTheExecutorAloneCallsOperations(t *testing.T) {
	exports := map[string]string{}
	list := packages(t, "linux", "-deps", "-export")
	for _, p := range list {
		exports[p.ImportPath] = p.Export
	}
	files := token.NewFileSet()
	imports := importer.ForCompiler(files, "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })
	calls := 0
	for _, p := range list {
		if !slices.Contains(p.Imports, module+"builtins") {
			continue
		}
		uses := map[*ast.Ident]types.Object{}
		config := types.Config{Importer: imports}
		if _, err := config.Check(p.ImportPath, files, parse(t, files, p), &types.Info{Uses: uses}); err != nil {
			t.Fatal(err)
		}
		for at, object := range uses {
			f, ok := object.(*types.Func)
			switch {
			case !ok || f.FullName() != "("+module+"builtins.Handler).Call":
			case p.ImportPath == module+"runtime/call":
				calls++
			default:
				t.Errorf("%s: calls an operation", files.Position(at.Pos()))
			}
		}
	}
	if calls == 0 {
		t.Error("the executor's own call was not found")
	}
}

func parse(t *testing.T, files *token.FileSet, p pkg) (list []*ast.File) {
	t.Helper()
	for _, name := range p.GoFiles {
		file, err := parser.ParseFile(files, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, file)
	}
	return list
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
	entries, err := os.ReadDir(top)
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
	err := filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && len(d.Name()) > 2) {
			return filepath.SkipDir
		}
		if d.IsDir() || strings.HasSuffix(path, ".sum") || d.Name() == ".git" { // which is a file in a worktree
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
