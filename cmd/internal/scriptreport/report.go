// Package scriptreport is what the command lines that run scripts have in common: parameters and secrets are read, and what
// became of a script is printed.
package scriptreport

import (
	"fmt"
	"io"
	"strings"

	"github.com/quantix-kvm/guest-agent/cmd/internal/human"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Log prints a line that a script logged.
func Log(w io.Writer, line *pb.LogLine) {
	for text := range strings.Lines(human.Printable(line.Message)) {
		fmt.Fprintf(w, "%-5s %s\n", line.Level, strings.TrimSuffix(text, "\n"))
	}
}

// Changes lists what a script did, with diffs.
func Changes(w io.Writer, reply *pb.RunScriptResponse) {
	for _, c := range reply.Changes {
		fmt.Fprintln(w, ChangeLine(reply.Status, c))
		Diff(w, c.Diff)
		if c.DiffTruncated {
			fmt.Fprintln(w, "    (the difference is longer)")
		}
	}
	for _, c := range reply.AfterCommit {
		fmt.Fprintln(w, AfterLine(c))
	}
	for _, c := range reply.RollbackRan {
		fmt.Fprintln(w, RanLine(c))
	}
	if reply.ChangesDropped > 0 {
		fmt.Fprintf(w, "%s more than the reply holds\n", human.Plural(int(reply.ChangesDropped), "change"))
	}
}

// Diff prints a difference, four columns in; in colours where w is a terminal, unless NO_COLOR is set.
func Diff(w io.Writer, diff string) {
	colours := human.Colours(w)
	for text := range strings.Lines(human.Printable(diff)) {
		text = strings.TrimSuffix(text, "\n")
		if on := lineColours[text[:min(len(text), 1)]]; colours && on != "" {
			text = on + text + "\x1b[0m"
		}
		fmt.Fprintf(w, "    %s\n", text)
	}
}

// lineColours are the colours of the lines of a difference, by their first character: green, red and cyan.
var lineColours = map[string]string{"+": "\x1b[32m", "-": "\x1b[31m", "@": "\x1b[36m"}

// ChangeLine describes a change in one line; status is that of the script.
func ChangeLine(status pb.ScriptStatus, c *pb.Change) string {
	words := c.Action + " " + c.Target
	switch c.State {
	case pb.ChangeState_CHANGE_STATE_UNDONE:
		words = "undone: " + words
	case pb.ChangeState_CHANGE_STATE_NOT_UNDONE:
		words = "NOT UNDONE: " + words
	case pb.ChangeState_CHANGE_STATE_WOULD:
		words = "would be " + words
		if c.Action == "ran" {
			words = "would run " + c.Target
		}
	case pb.ChangeState_CHANGE_STATE_UNKNOWN:
		switch status {
		case pb.ScriptStatus_SCRIPT_STATUS_DRY_RUN:
			words = "cannot be foretold: " + words
		case pb.ScriptStatus_SCRIPT_STATUS_COMMITTED, pb.ScriptStatus_SCRIPT_STATUS_AWAITING_CONFIRM: // its failure was caught
			words = "UNKNOWN whether it is done: " + words
		default:
			words = "UNKNOWN whether it is undone: " + words
		}
	}
	return described(words, c)
}

// described is a line about a change that begins with words.
func described(words string, c *pb.Change) string {
	words += " (" + c.Op
	if c.ContentHidden {
		words += ", content hidden"
	}
	if c.KeptBytes > 0 {
		words += ", keeps a copy of " + human.Size(c.KeptBytes)
	}
	return strings.ReplaceAll(human.Printable(words+")"), "\n", " ")
}

// AfterLine describes in one line what ran once a script had committed, or, in a dry run, would.
func AfterLine(c *pb.Change) string {
	words := "ran after the commit: "
	switch c.State {
	case pb.ChangeState_CHANGE_STATE_WOULD:
		words = "would run after the commit: "
	case pb.ChangeState_CHANGE_STATE_UNKNOWN:
		words = "FAILED after the commit: "
	}
	return described(words+c.Target, c)
}

// RanLine describes in one line what a rollback ran, with when and how long.
func RanLine(c *pb.Change) string {
	words := map[string]string{"failed": "FAILED in the rollback: ", "not needed": "not needed in the rollback: "}[c.Action]
	if words == "" {
		words = "ran in the rollback: "
	}
	words += fmt.Sprintf("%s (%s, at %s, %d ms)", c.Target, c.Op, human.Time(c.At), c.DurationMs)
	return strings.ReplaceAll(human.Printable(words), "\n", " ")
}

// statusText describes the outcomes of a script.
var statusText = map[pb.ScriptStatus]string{
	pb.ScriptStatus_SCRIPT_STATUS_COMMITTED:        "committed",
	pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK:      "rolled back, everything is as it was",
	pb.ScriptStatus_SCRIPT_STATUS_DRY_RUN:          "dry run, nothing was changed",
	pb.ScriptStatus_SCRIPT_STATUS_REFUSED:          "refused, nothing ran",
	pb.ScriptStatus_SCRIPT_STATUS_AWAITING_CONFIRM: "applied, undone again unless it is confirmed",
	pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED:  "ROLLBACK FAILED, something that should have been restored was not",
	pb.ScriptStatus_SCRIPT_STATUS_PARTIAL:          "PARTIAL, something could not be undone",
}

// StatusText describes the outcome of a script.
func StatusText(status pb.ScriptStatus) string {
	if words := statusText[status]; words != "" {
		return words
	}
	return status.String()
}

// Status prints how a script ended, in one line, after what was not undone.
func Status(w io.Writer, reply *pb.RunScriptResponse) {
	for _, c := range reply.NotUndone {
		if c.State != pb.ChangeState_CHANGE_STATE_NOT_UNDONE {
			fmt.Fprintf(w, "NOT UNDONE: %s\n", ChangeLine(reply.Status, c))
		} else if !listed(c, reply.Changes) {
			fmt.Fprintln(w, ChangeLine(reply.Status, c))
		}
	}
	words := StatusText(reply.Status)
	details := []string{human.Plural(len(reply.Changes), "change")}
	switch {
	case len(reply.Changes) > 0:
	case reply.Status == pb.ScriptStatus_SCRIPT_STATUS_COMMITTED, reply.Status == pb.ScriptStatus_SCRIPT_STATUS_DRY_RUN:
		details[0] = "nothing to change"
	}
	if reply.Stats.GetDurationMs() > 0 {
		details = append(details, fmt.Sprintf("%d ms", reply.Stats.GetDurationMs()))
	}
	if reply.TransactionId != "" {
		details = append(details, "transaction "+reply.TransactionId)
	}
	if reply.ConfirmUntil != nil {
		details = append(details, "until "+human.Time(reply.ConfirmUntil))
	}
	if reply.Replayed {
		details = append(details, "the stored reply")
	}
	if reply.Shortened {
		details = append(details, "its result, log and changes are not stored any more")
	}
	fmt.Fprintf(w, "%s: %s\n", words, human.Printable(strings.Join(details, ", ")))
}

// ExitCode returns the exit status of a command that ran a script: 0 for committed, for a dry run without error and for what
// awaits a confirmation, 4 where nothing ran, 5 where all is undone, 6 where not everything is, and 1 for what is none of
// these.
func ExitCode(reply *pb.RunScriptResponse) int {
	switch reply.Status {
	case pb.ScriptStatus_SCRIPT_STATUS_COMMITTED, pb.ScriptStatus_SCRIPT_STATUS_AWAITING_CONFIRM:
		return 0
	case pb.ScriptStatus_SCRIPT_STATUS_DRY_RUN:
		if reply.Error == nil {
			return 0
		}
		return 5
	case pb.ScriptStatus_SCRIPT_STATUS_REFUSED:
		return 4
	case pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK:
		return 5
	case pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED, pb.ScriptStatus_SCRIPT_STATUS_PARTIAL:
		return 6
	}
	return 1
}

// listed reports whether a change was printed with the others.
func listed(c *pb.Change, changes []*pb.Change) bool {
	for _, other := range changes {
		if other.Op == c.Op && other.Target == c.Target && other.Action == c.Action && other.State == c.State {
			return true
		}
	}
	return false
}

// ErrorText returns the error of a script as compilers print theirs, with the traceback and the hint in lines of their own.
func ErrorText(e *pb.ScriptError) string {
	var b strings.Builder
	position := e.Script
	if e.Line > 0 {
		position += fmt.Sprintf(":%d", e.Line)
	}
	if position != "" && !strings.HasPrefix(e.Message, position+":") {
		b.WriteString(position + ": ")
	}
	if e.Kind != "" && e.Kind != "runtime" && e.Kind != "builtin" && !strings.HasPrefix(e.Message, e.Kind+": ") {
		b.WriteString(e.Kind + ": ")
	}
	b.WriteString(e.Message)
	if e.Limit != "" && !strings.Contains(e.Message, e.Limit) {
		b.WriteString(" (limit " + e.Limit + ")")
	}
	if trace := strings.TrimSpace(e.Traceback); trace != "" {
		for line := range strings.Lines(trace) {
			b.WriteString("\n  " + strings.TrimSpace(line))
		}
	}
	if e.Hint != "" {
		b.WriteString("\nhint: " + e.Hint)
	}
	return b.String()
}
