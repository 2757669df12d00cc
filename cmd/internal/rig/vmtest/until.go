package vmtest

import (
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"
)

const (
	// untilVariable holds the time, in seconds since 1970, after which Start skips a test instead of starting a machine. A run
	// whose time is bounded sets it; by default there is no such time.
	untilVariable = "VMTEST_UNTIL"
	// leftOutVariable holds the path of a file. Start adds a line to it for each test that it skips so.
	leftOutVariable = "VMTEST_LEFT_OUT"
)

// skipAfterUntil skips a test where the time for tests is over, and has it named.
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
