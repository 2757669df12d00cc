package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/quantix-kvm/guest-agent/cmd/internal/scriptreport"
	"github.com/quantix-kvm/guest-agent/cmd/internal/usagetext"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// The exit codes; the help of the program explains them.
const (
	exitFailed        = 1
	exitUsage         = 2
	exitNoAnswer      = 3
	exitRefused       = 4
	exitRolledBack    = 5
	exitPartial       = 6
	exitDrift         = scriptreport.DriftExit // of drift
	exitTimeout       = 124
	exitExecFailed    = 125 // of exec
	exitCannotExecute = 126 // of exec
	exitNoProgram     = 127 // of exec
	exitInterrupted   = 130
)

// failure is an error with its exit code. The error is nil where nothing is to be printed: it was printed already, or the code
// is the command's own.
type failure struct {
	code int
	err  error
}

func (f *failure) Error() string {
	if f.err == nil {
		return fmt.Sprintf("exit code %d", f.code)
	}
	return f.err.Error()
}

func (f *failure) Unwrap() error { return f.err }

// usage returns an error of the command line.
func usage(format string, args ...any) error {
	return &failure{exitUsage, fmt.Errorf(format, args...)}
}

// classify adds the exit code to an error.
func (a *app) classify(cmd *cobra.Command, err error, interrupted bool) *failure {
	f := &failure{exitUsage, err}
	if a.started {
		f = withExitCode(err)
	} else {
		f.err = usagetext.Of(cmd, err)
	}
	if cmd.Name() == "exec" {
		f = execFailure(f)
	}
	if interrupted && f.code != exitInterrupted {
		if f.err != nil {
			f = &failure{exitInterrupted, errors.New("interrupted")}
		}
		f.code = exitInterrupted
	}
	return f
}

func withExitCode(err error) *failure {
	var known *failure
	var mistake *scriptreport.UsageError
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &mistake):
		return &failure{exitUsage, err}
	case client.Gone(err):
		return &failure{exitNoAnswer, err}
	case errors.Is(err, context.DeadlineExceeded):
		return &failure{exitTimeout, err}
	case errors.Is(err, errors.ErrUnsupported), errors.Is(err, fault.ErrRefused), errors.Is(err, fault.ErrBusy), errors.Is(err, fault.ErrStale):
		return &failure{exitRefused, err}
	}
	return &failure{exitFailed, err}
}

// execFailure keeps the codes of the command and those of quantix-kvm-ctl apart: the latter always come with an error.
func execFailure(f *failure) *failure {
	if f.err == nil || f.code >= exitTimeout {
		return f
	}
	return &failure{exitExecFailed, &execError{f.err, codeWord(f)}}
}

// execError is an error of exec whose exit code no longer says what it is.
type execError struct {
	error
	word string // for codeWord
}

func (e *execError) Unwrap() error { return e.error }

// errorLine is the form of an error with --json.
type errorLine struct {
	Error struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Op      string `json:"op,omitempty"`
		Object  string `json:"object,omitempty"`
		Hint    string `json:"hint,omitempty"`
	} `json:"error"`
	ExitCode int `json:"exit_code"`
}

// printError prints an error.
func (a *app) printError(f *failure) {
	if f.err == nil {
		return
	}
	line := errorLine{ExitCode: f.code}
	line.Error.Message = f.err.Error()
	line.Error.Code = codeWord(f)
	var remote *fault.Remote
	if errors.As(f.err, &remote) {
		line.Error.Op, line.Error.Object, line.Error.Hint = remote.Detail.Op, remote.Detail.Object, remote.Detail.Details["hint"]
	}
	if a.json {
		text, err := json.Marshal(line)
		if err == nil {
			fmt.Fprintf(a.stderr, "%s\n", text)
			return
		}
	}
	for text := range strings.Lines(printable(line.Error.Message)) {
		fmt.Fprintf(a.stderr, "quantix-kvm-ctl: %s\n", strings.TrimSuffix(text, "\n"))
	}
	if line.Error.Hint != "" {
		fmt.Fprintf(a.stderr, "hint: %s\n", printable(line.Error.Hint))
	}
	if f.code == exitUsage {
		fmt.Fprintf(a.stderr, "See quantix-kvm-ctl --help.\n")
	}
}

// codeWord returns the code of an error for programs: the agent's, or one of this program for what did not reach it.
func codeWord(f *failure) string {
	switch f.code {
	case exitUsage:
		return "usage"
	case exitNoAnswer:
		return "no_answer"
	case exitTimeout:
		return "timeout"
	case exitInterrupted:
		return "cancelled"
	}
	var exec *execError
	if errors.As(f.err, &exec) {
		return exec.word
	}
	var remote *fault.Remote
	if word := fault.Code(f.err); word != fault.Code(fault.ErrInternal) || errors.As(f.err, &remote) {
		return word
	}
	return "failed" // internal is a fault of the agent, and this is none
}
