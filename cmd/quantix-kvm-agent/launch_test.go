package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// launching is a launcher over scratch directories, with the program of a package in the second of them.
func launching(t *testing.T) (l launcher, other string, became *[]string) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("no unit starts the agent there; run on Linux")
	}
	first, second := t.TempDir(), t.TempDir()
	became = &[]string{}
	l = launcher{
		own: filepath.Join(second, "agent"), path: filepath.Join(first, "gone") + ":" + first + ":" + second, dir: t.TempDir(),
		become: func(program string) error { *became = append(*became, program); return fs.ErrPermission },
	}
	program(t, l.own, "of the package")
	return l, filepath.Join(first, "agent"), became
}

func program(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
		t.Fatal(err)
	}
}

// A program before the package's is started three times. Then the package's runs, restart after restart, until the other one is
// another file, or the unit was stopped, with which its directory goes.
func TestLaunchGivesUpAProgramThatNeverIsReady(t *testing.T) {
	l, other, became := launching(t)
	program(t, other, "broken")
	for i := range 8 {
		err := l.launch()
		if tried := i < launches; tried != (len(*became) == i+1) || err == nil {
			t.Fatalf("start %d: %q, %v", i, *became, err)
		}
		if text := err.Error(); !strings.Contains(text, other) || !strings.Contains(text, "the agent of the package") {
			t.Error(text)
		}
		if i >= launches { // the package's agent was ready
			os.Remove(filepath.Join(l.dir, countNote))
		}
	}
	program(t, other, "a new version")
	if err := os.Chtimes(other, time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		l.launch()
	}
	if len(*became) != 2*launches {
		t.Errorf("%q", *became)
	}
	l.dir = t.TempDir()
	if l.launch(); len(*became) != 2*launches+1 {
		t.Errorf("%q", *became)
	}
}

// One that becomes ready each time is started each time.
func TestLaunchGoesOnWithAProgramThatIsReady(t *testing.T) {
	l, other, became := launching(t)
	program(t, other, "fine")
	for range 9 {
		if err := l.launch(); !errors.Is(err, fs.ErrPermission) {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(l.dir, countNote)); err != nil { // as the unit does
			t.Fatal(err)
		}
	}
	if len(*became) != 9 {
		t.Errorf("%q", *became)
	}
}

// Without another program, or where it is this one by another name, or no program, there is nothing to give way to. Without a
// directory for notes the other one is always tried.
func TestLaunchWithoutAnother(t *testing.T) {
	l, other, became := launching(t)
	check := func(what string) {
		t.Helper()
		if err := l.launch(); err != nil || len(*became) > 0 {
			t.Errorf("%s: %q, %v", what, *became, err)
		}
	}
	check("none")
	if err := os.Symlink(l.own, other); err != nil {
		t.Fatal(err)
	}
	check("a link to this one")
	os.Remove(other)
	if err := os.WriteFile(other, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	check("no program")
	os.Remove(other)
	program(t, other, "x")
	l.dir = ""
	for range 5 {
		l.launch()
	}
	if len(*became) != 5 {
		t.Errorf("%q", *became)
	}
}
