package main

import (
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// event is one line of go test -json.
type event struct{ Action, Package, Test, Output string }

// results counts tests and remembers what those that failed or were skipped have said. Subtests count with their test.
type results struct {
	out     io.Writer
	verbose bool

	passed, failed int
	skipped        map[string][]string // the reason, and the tests
	noTests        []string
	said           map[string][]string // a test's output so far, by package and name
}

var logLine = regexp.MustCompile(`^\s*\S+\.go:\d+: (.*)$`)

func (r *results) add(e event) {
	id := e.Package + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		if r.verbose || e.Action == "build-output" || e.Test == "" && !strings.HasPrefix(e.Output, "PASS") {
			fmt.Fprint(r.out, e.Output)
		}
		if e.Test != "" {
			if r.said == nil {
				r.said = map[string][]string{}
			}
			r.said[id] = append(r.said[id], e.Output)
		}
	case "pass", "fail", "skip":
		r.end(id, e)
		delete(r.said, id)
	}
}

func (r *results) end(id string, e event) {
	if e.Test == "" {
		switch e.Action {
		case "skip":
			r.noTests = append(r.noTests, e.Package)
		case "fail":
			r.unfinished(e.Package)
		}
		return
	}
	sub := strings.Contains(e.Test, "/")
	switch e.Action {
	case "pass":
		if !sub {
			r.passed++
		}
	case "fail":
		if !sub {
			r.failed++
		}
		if !r.verbose {
			fmt.Fprint(r.out, strings.Join(r.said[id], ""))
		}
	case "skip":
		reason := "no reason given"
		for _, line := range r.said[id] {
			if m := logLine.FindStringSubmatch(strings.TrimRight(line, "\r\n")); m != nil {
				reason = m[1]
			}
		}
		if r.skipped == nil {
			r.skipped = map[string][]string{}
		}
		r.skipped[reason] = append(r.skipped[reason], e.Test)
	}
}

// unfinished prints what the tests have said that were running when their package failed.
func (r *results) unfinished(pkg string) {
	for _, id := range slices.Sorted(maps.Keys(r.said)) {
		if !strings.HasPrefix(id, pkg+" ") {
			continue
		}
		if !r.verbose {
			fmt.Fprint(r.out, strings.Join(r.said[id], ""))
		}
		delete(r.said, id)
	}
}

// summary prints the counts, and each reason of skipped tests with their names.
func (r *results) summary() {
	skipped := 0
	for _, tests := range r.skipped {
		for _, t := range tests {
			if !strings.Contains(t, "/") {
				skipped++
			}
		}
	}
	fmt.Fprintf(r.out, "under Wine: %d tests run, %d passed, %d failed; %d skipped\n",
		r.passed+r.failed, r.passed, r.failed, skipped)
	for _, reason := range slices.Sorted(maps.Keys(r.skipped)) {
		fmt.Fprintf(r.out, "  skipped: %s: %s\n", reason, strings.Join(r.skipped[reason], " "))
	}
	if len(r.noTests) > 0 {
		fmt.Fprintf(r.out, "  no tests for Windows in: %s\n", strings.Join(r.noTests, " "))
	}
}
