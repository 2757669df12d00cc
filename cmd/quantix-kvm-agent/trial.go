package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/cmd/internal/scriptreport"
	"github.com/quantix-kvm/guest-agent/cmd/internal/scripttest"
)

// trialFlags are the flags of script test.
type trialFlags struct {
	modules       []string
	verbose, json bool
}

func trialCommand() *cobra.Command {
	var f trialFlags
	c := &cobra.Command{
		Use:   "test FILE.lua...",
		Short: "run the tests of scripts, on scratch trees",
		Long: `test runs each script on scratch trees of its own, with the agent's own journal, files and runner. Its commands are not
run: they are noted, and succeed unless the test answers them. It needs no rights.

The test of NAME.lua is NAME_test.lua beside it, or in the directory tests there. It returns a table of functions, each of them one case:

  return {
    writes_the_port = function()
      file.write("/etc/site.conf", "port 80\n")           -- the tree as the script finds it
      test.command("site --check", {code = 0})            -- what a command answers
      local run = test.run({port = 8443})                 -- must succeed; once more, on a copy, it must change nothing
      assert(file.read("/etc/site.conf") == "port 8443\n")
    end,
    survives = function() test.crash({port = 8443}) end,  -- killed at its calls, recovered: all must be as it was
  }

A script without a test file is run without parameters, once more, and killed at its calls that change something, at 25 of them
at most.

EXIT STATUS
  0  all passed
  1  something failed, or could not be tested`,
		Example: "  quantix-kvm-agent script test ./site.lua ./users.lua",
		Args:    cobra.MinimumNArgs(1),
		RunE:    func(c *cobra.Command, args []string) error { return testScripts(c.Context(), c.OutOrStdout(), args, f) },
	}
	moduleFlag(c, &f.modules)
	c.Flags().BoolVarP(&f.verbose, "verbose", "v", false, "print the cases that passed, too")
	c.Flags().BoolVar(&f.json, "json", false, "one line of JSON for each case")
	return c
}

// testScripts tests scripts one after another.
func testScripts(ctx context.Context, out io.Writer, files []string, f trialFlags) error {
	modules, err := scriptreport.Modules(f.modules)
	if err != nil {
		return err
	}
	tester := scripttest.New(scripttest.Config{Modules: modules})
	defer tester.Close()
	failed := 0
	for _, file := range scriptsOf(files) {
		if !testScript(ctx, tester, out, file, f) {
			failed++
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d failed", failed, len(scriptsOf(files)))
	}
	return nil
}

// scriptsOf are the scripts that files name, each once: the test of one stands for it.
func scriptsOf(files []string) (list []string) {
	for _, file := range files {
		if base, is := strings.CutSuffix(file, "_test.lua"); is {
			file = base + ".lua"
			if dir := filepath.Dir(base); filepath.Base(dir) == "tests" {
				file = filepath.Join(filepath.Dir(dir), filepath.Base(file))
			}
		}
		if !slices.Contains(list, file) {
			list = append(list, file)
		}
	}
	return list
}

// testScript tests one script, and reports whether it passed.
func testScript(ctx context.Context, tester *scripttest.Tester, out io.Writer, file string, f trialFlags) bool {
	began, passed := time.Now(), true
	err := tester.Test(ctx, file, func(r scripttest.Result) {
		passed = passed && r.Err == nil
		if f.json {
			tellJSON(out, file, r)
		} else {
			tellCase(out, r, f.verbose)
		}
	})
	if err != nil {
		passed = false
		if r := (scripttest.Result{Err: err, Took: time.Since(began)}); f.json {
			tellJSON(out, file, r)
		} else {
			fmt.Fprintf(out, "    %v\n", err)
		}
	}
	if !f.json {
		word := "ok  "
		if !passed {
			word = "FAIL"
		}
		fmt.Fprintf(out, "%s\t%s\t%.3fs\n", word, file, time.Since(began).Seconds())
	}
	return passed
}

func tellCase(out io.Writer, r scripttest.Result, verbose bool) {
	if r.Err == nil && !verbose {
		return
	}
	word := "PASS"
	if r.Err != nil {
		word = "FAIL"
	}
	fmt.Fprintf(out, "--- %s: %s (%.2fs)\n", word, r.Name, r.Took.Seconds())
	lines := r.Log
	if r.Err != nil {
		lines = append(slices.Clone(lines), r.Err.Error())
	}
	for _, line := range lines {
		fmt.Fprintf(out, "    %s\n", strings.ReplaceAll(line, "\n", "\n    "))
	}
}

func tellJSON(out io.Writer, file string, r scripttest.Result) {
	line := struct {
		Script  string   `json:"script"`
		Case    string   `json:"case"`
		Passed  bool     `json:"passed"`
		Seconds float64  `json:"seconds"`
		Error   string   `json:"error,omitempty"`
		Log     []string `json:"log,omitempty"`
	}{file, r.Name, r.Err == nil, r.Took.Seconds(), "", r.Log}
	if r.Err != nil {
		line.Error = r.Err.Error()
	}
	_ = json.NewEncoder(out).Encode(line) // whoever closed the pipe does not ask
}
