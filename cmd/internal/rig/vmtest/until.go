package vmtest

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"
)

const (
	// untilVariable holds a Unix time in seconds. After it, Start skips the test instead of starting a machine. Optional.
	untilVariable = "VMTEST_UNTIL"
	// leftOutVariable holds the path of a file, to which Start appends the name of each test that it skips. Optional.
	leftOutVariable = "VMTEST_LEFT_OUT"
)

// skipAfterUntil skips the test and records its name if the time in VMTEST_UNTIL has passed.
func skipAfterUntil(t testing.TB) {
	t.Helper()
	text := os.Getenv(untilVariable)
	if text == "" {
		return
	}
	until, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", untilVariable, err)
	}
	if time.Now().Unix() < until {
		return
	}
	if path := os.Getenv(leftOutVariable); path != "" {
		if err := addLine(path, t.Name()); err != nil {
			t.Fatalf("%s: %v", leftOutVariable, err)
		}
	}
	t.Skipf("no time is left (%s)", untilVariable)
}

// addLine appends a line to a file, which it creates if there is none.
func addLine(path, line string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(f, line); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
