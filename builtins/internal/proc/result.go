package proc

import (
	"context"
	"fmt"
	"io/fs"
	"strings"
	"syscall"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Result is the outcome of a command that was started.
type Result struct {
	// Code is the exit code; 128+n if signal n ended the command, as in a shell.
	Code int
	// Signal is the signal that ended the command; 0 if it exited.
	Signal syscall.Signal
	// Stdout and Stderr are the first MaxOutput bytes of each stream.
	Stdout, Stderr []byte
	// Tail is the end of stderr, at most 512 bytes, also beyond MaxOutput.
	Tail []byte
	// Truncated says that output is missing: beyond MaxOutput, or of processes that the command left running and that were
	// still writing when it was not waited for any more.
	Truncated bool
	// LeftOpen says that processes which the command left running still hold its output open.
	LeftOpen bool
	// TimedOut says that Timeout, which is in Limit then, ended the command.
	TimedOut bool
	Limit    time.Duration
	// Exceeded says that the command used up the processor time of its Limits, which ended it.
	Exceeded bool
	// Duration is the time from the start to the end of the command.
	Duration time.Duration
}

// StartError is the error of a command that was not started.
type StartError struct {
	// Stage is what failed: "program", "directory", "user", "confinement", "limits" or "process".
	Stage string
	// Object is its name; may be empty.
	Object string
	// Err is the cause.
	Err error
}

// Error returns stage, object and cause.
func (e *StartError) Error() string {
	if e.Object == "" {
		return e.Stage + ": " + e.Err.Error()
	}
	return e.Stage + " " + e.Object + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *StartError) Unwrap() error { return e.Err }

// notInPath returns why a program is not found by its name.
func notInPath(program string) error {
	if strings.ContainsAny(program, " \t") {
		return fault.Wrapf(fs.ErrNotExist, "no program in PATH is called that, spaces and all: its arguments are given one by one")
	}
	return fault.Wrapf(fs.ErrNotExist, "there is no such program in PATH")
}

// Err returns nil for exit code 0, else an error of cause fault.ErrOutput, or context.DeadlineExceeded for a timeout. Its
// text is that of How and the end of stderr.
func (res *Result) Err() error {
	words := res.How()
	if tail := tailText(res.Tail); tail != "" {
		words += ": " + tail
	}
	switch {
	case res.TimedOut:
		return fault.Wrapf(context.DeadlineExceeded, "%s", words)
	case res.Code != 0:
		return fault.Wrapf(fault.ErrOutput, "%s", words)
	}
	return nil
}

// How returns a text that describes how the command ended.
func (res *Result) How() string {
	end := fmt.Sprintf("exit code %d", res.Code)
	if res.Signal != 0 {
		end = fmt.Sprintf("ended by signal %d (%s)", int(res.Signal), res.Signal)
	}
	if res.Exceeded {
		return "used up its processor time, then " + end
	}
	if res.TimedOut {
		return fmt.Sprintf("timed out after %v, then %s", res.Limit, end)
	}
	return end
}
