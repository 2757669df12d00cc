package reference_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/all"
	"github.com/quantix-kvm/guest-agent/builtins/all/internal/reference"
)

const top = "../../../.."

func TestGeneratedFilesAreCurrent(t *testing.T) {
	files, err := reference.Files(top)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range files {
		have, err := os.ReadFile(filepath.Join(top, name))
		if err != nil || !bytes.Equal(have, want) {
			t.Errorf("%s is out of date (%v): run go generate ./builtins/all", name, err)
		}
	}
}

// What a function is called with, and the comments of its options, reach the reference and the stubs.
func TestReferenceTellsAll(t *testing.T) {
	files, err := reference.Files(top)
	if err != nil {
		t.Fatal(err)
	}
	ops, stubs := string(files["builtins/all/OPS.md"]), string(files["scripts/stubs/quantix.lua"])
	for _, words := range []string{
		"### file.write(path, content, [options])", "| `backup` | boolean | Keep what was there as path.bak. |", "Gives `changed` (boolean)",
		"syntax of RE2", "### file.chown(path, [owner], [group])", "### clipboard.get([type], [options])",
	} {
		if !strings.Contains(ops, words) {
			t.Errorf("OPS.md lacks %q", words)
		}
	}
	for line := range strings.Lines(ops) {
		if strings.HasPrefix(line, "| `") && strings.HasSuffix(line, "|  |\n") {
			t.Errorf("OPS.md does not say what this is: %s", line)
		}
	}
	for _, words := range []string{
		"---@class (exact) file.write.options\n", "---@class (exact) quantix.room.file\nfile = {}\n", "---@field mode? string Octal text", "function file.write(path, content, options) end", "---@return quantix.FileInfo[] entries",
	} {
		if !strings.Contains(stubs, words) {
			t.Errorf("the stubs lack %q", words)
		}
	}
	for _, op := range builtins.NewTable(all.New(all.Config{}).List()...).Ops() {
		shown := strings.Contains(ops, "### "+op.Name+"(") && strings.Contains(stubs, "function "+op.Name+"(")
		if wanted := op.Script != nil && !op.Internal; shown != wanted {
			t.Errorf("%s: in the reference is %v, want %v", op.Name, shown, wanted)
		}
	}
}
