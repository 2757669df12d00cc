package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/builtins/update"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// The unit starts the program of the package, which gives way to one that a host has put before it in PATH, unless that one
// never becomes ready:
//
//	launch ─┬─► no other program, or one that was given up or is not root's ─► run
//	        └─► another: count the start ─┬─► fewer than launches so far ─► become it
//	            ▲                         └─► note that it is given up ───► run, and say so
//	            └ the unit removes the count when the program is ready
//
// Both notes are in the unit's runtime directory, which outlives a restart and not a stop. They are of one file in one state: a
// new version has its own starts.
type launcher struct {
	own  string // the program of the package
	path string // a list of directories, as in PATH
	dir  string // where the notes are; empty: there is no such place, and nothing is given up
	// become replaces this process by a program, and returns only where it cannot.
	become func(program string) error
}

// launches is how often a program is started that never becomes ready.
const launches = update.MaxStarts

// Names of the notes. The unit knows the first one.
const (
	countNote = "starts"
	givenUp   = "given-up"
)

// launchCommand makes the unit's command.
func launchCommand(f *flags) *cobra.Command {
	return &cobra.Command{
		Use:   "launch",
		Short: "run the agent that is first in PATH, or this one where that does not start",
		Long: `launch is what the unit runs. Where a host has put another agent before this one in PATH, as into /usr/local/bin, that
one runs, if it and the directories above it are root's. If it has not become ready three times in a row, this one runs in its
place, until the other one is replaced or the unit is stopped. Where this one runs in place of another, it says so in the log and to the
host.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			f, err := f.absolute()
			if err != nil {
				return err
			}
			f.tryUpdate()
			dir, _, _ := strings.Cut(os.Getenv("RUNTIME_DIRECTORY"), ":") // the unit may have more of them
			l := launcher{own: executable(), path: os.Getenv("PATH"), dir: dir}
			l.become = func(program string) error { return become(program, program) }
			f.instead = l.launch()
			return runAgain(c.Context(), f)
		},
	}
}

// launch returns where this program is to run, with the reason where that is not for want of another one.
func (l launcher) launch() (why error) {
	other, state := l.other()
	if other == "" {
		return nil
	}
	if err := safeToRun(other); err != nil {
		return fmt.Errorf("%s is not run: %w; this is the agent of the package", other, err)
	}
	switch starts := l.starts(state); {
	case l.read(givenUp) == state:
	case starts < launches:
		l.write(countNote, fmt.Sprintf("%s %d", state, starts+1))
		return fmt.Errorf("%s cannot be run: %w; this is the agent of the package", other, l.become(other))
	default:
		l.write(givenUp, state)
	}
	return fmt.Errorf("%s was started %d times and did not become ready; this is the agent of the package", other, launches)
}

// other returns the program before this one in PATH, and what identifies its present state.
func (l launcher) other() (path, state string) {
	own, err := os.Stat(l.own)
	if err != nil {
		return "", ""
	}
	for _, dir := range filepath.SplitList(l.path) {
		path := filepath.Join(dir, filepath.Base(l.own))
		info, err := os.Stat(path)
		switch {
		case err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 || !filepath.IsAbs(path):
		case os.SameFile(info, own):
			return "", ""
		default:
			return path, fmt.Sprintf("%s:%d:%d", strconv.Quote(path), info.Size(), info.ModTime().UnixNano())
		}
	}
	return "", ""
}

// starts returns how often a program in a state was started and did not become ready. Where that cannot be noted it is none.
func (l launcher) starts(state string) int {
	count, found := strings.CutPrefix(l.read(countNote), state+" ")
	if n, err := strconv.Atoi(count); found && err == nil {
		return n
	}
	return 0
}

func (l launcher) read(name string) string {
	if l.dir == "" {
		return ""
	}
	text, err := os.ReadFile(filepath.Join(l.dir, name))
	if err != nil {
		return ""
	}
	return string(text)
}

// write writes a note. One that cannot be written gives nothing up.
func (l launcher) write(name, text string) {
	if l.dir == "" {
		return
	}
	path := filepath.Join(l.dir, name)
	if err := os.Remove(path); err == nil || errors.Is(err, fs.ErrNotExist) {
		_ = os.WriteFile(path, []byte(text), 0o600)
	}
}

// insteadNotice returns the event for hosts that this program runs in place of another; none where it does not.
func insteadNotice(why error) []*pb.ErrorEvent {
	if why == nil {
		return nil
	}
	return []*pb.ErrorEvent{{Severity: pb.ErrorSeverity_ERROR_SEVERITY_ERROR, Code: "agent_replaced", Message: why.Error()}}
}
