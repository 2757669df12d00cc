package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Memory is locked while something is frozen, and also where a freeze follows a thaw at once; some time after the last thaw it
// is not.
func TestMemoryLock(t *testing.T) {
	if err := unix.Mlockall(unix.MCL_CURRENT); err != nil {
		t.Skip("may not lock memory: ", err)
	}
	if err := unix.Munlockall(); err != nil {
		t.Fatal(err)
	}
	locked := func() bool {
		text, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		_, line, _ := strings.Cut(string(text), "VmLck:")
		line, _, _ = strings.Cut(line, "\n")
		return strings.TrimSpace(line) != "0 kB"
	}
	eventually := func(want bool) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); locked() != want; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("locked: %v", !want)
			}
		}
	}
	l := &memoryLock{}
	l.set(true)
	eventually(true)
	l.set(false)
	l.set(true)
	time.Sleep(unlockTime + 500*time.Millisecond)
	if !locked() {
		t.Error("the timer of the first thaw has unlocked the memory of the second freeze")
	}
	l.set(false)
	eventually(false)
}
