package main

import (
	"strings"
	"testing"
)

// What failed is printed with all that it said, and each test counts once, whatever its subtests did.
func TestResults(t *testing.T) {
	var out strings.Builder
	r := results{out: &out}
	for _, e := range []event{
		{"output", "p", "TestA", "a said\n"},
		{"pass", "p", "TestA", ""},
		{"output", "p", "TestB", "=== RUN\n"},
		{"output", "p", "TestB", "    b_test.go:7: needs a bus\n"},
		{"skip", "p", "TestB", ""},
		{"output", "p", "TestC/one", "c_test.go:1: wrong\n"},
		{"fail", "p", "TestC/one", ""},
		{"fail", "p", "TestC", ""},
		{"skip", "p", "TestD/one", ""},
		{"pass", "p", "TestD", ""},
		{"output", "p", "", "PASS\n"},
		{"output", "p", "", "ok  p 1s\n"},
		{"output", "p", "TestE", "panic: test timed out\n"},
		{"fail", "p", "", ""},
		{"skip", "q", "", ""},
	} {
		r.add(e)
	}
	r.summary()
	want := `c_test.go:1: wrong
ok  p 1s
panic: test timed out
under Wine: 3 tests run, 2 passed, 1 failed; 1 skipped
  skipped: needs a bus: TestB
  skipped: no reason given: TestD/one
  no tests for Windows in: q
`
	if got := out.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}
