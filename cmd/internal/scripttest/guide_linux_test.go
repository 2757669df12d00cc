package scripttest_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/cmd/internal/scripttest"
)

var block = regexp.MustCompile("(?ms)^```lua\n-- (\\S+\\.lua)\n.*?^```$")

// The tests in the guide for authors pass, with all their cases.
func TestTestsOfTheGuide(t *testing.T) {
	guide, err := os.ReadFile("../../../scripts/README.md")
	if err != nil {
		t.Fatal(err)
	}
	dir, tests := t.TempDir(), []string{}
	for _, found := range block.FindAllStringSubmatch(string(guide), -1) {
		source := strings.TrimSuffix(strings.TrimPrefix(found[0], "```lua\n"), "```")
		if err := os.WriteFile(filepath.Join(dir, found[1]), []byte(source), 0o644); err != nil {
			t.Fatal(err)
		}
		if name, is := strings.CutSuffix(found[1], "_test.lua"); is {
			tests = append(tests, name+".lua")
		}
	}
	tester := scripttest.New(scripttest.Config{})
	defer tester.Close()
	passed := 0
	for _, name := range tests {
		err := tester.Test(t.Context(), filepath.Join(dir, name), func(r scripttest.Result) {
			passed++
			if r.Err != nil {
				t.Errorf("%s: %s: %v", name, r.Name, r.Err)
			}
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if passed < 3 {
		t.Errorf("the guide has %d cases", passed)
	}
}
