package main

import (
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// eventPrinter prints the events of a running script to stderr.
type eventPrinter struct {
	a           *app
	events      *events
	quit        chan struct{}
	done        chan struct{}
	printed     []*pb.LogLine
	partialLine bool // a line of progress has no newline yet
}

func (a *app) printEvents(e *events) *eventPrinter {
	l := &eventPrinter{a: a, events: e, quit: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(l.done)
		for {
			select {
			case <-e.more:
				l.show()
			case <-l.quit:
				l.show()
				return
			}
		}
	}()
	return l
}

// stop prints the events that are left, and waits until that is done.
func (l *eventPrinter) stop() {
	close(l.quit)
	<-l.done
	l.clear()
}

func (l *eventPrinter) show() {
	for _, m := range l.events.take() {
		event, ok := m.(*pb.ScriptEvent)
		switch {
		case !ok || l.a.quiet:
		case event.Log != nil:
			l.clear()
			l.a.printLog(event.Log)
			l.printed = append(l.printed, event.Log)
		default:
			l.printProgress(event)
		}
	}
}

// printProgress prints progress: on a terminal in one line that is overwritten, elsewhere in a line each.
func (l *eventPrinter) printProgress(event *pb.ScriptEvent) {
	text := strings.ReplaceAll(printable(event.Step), "\n", " ")
	if event.Progress != nil {
		text = fmt.Sprintf("%3.0f %%  %s", 100**event.Progress, text)
	}
	text = strings.TrimSpace(text)
	if !isTerminal(l.a.stderr) {
		fmt.Fprintln(l.a.stderr, text)
		return
	}
	l.clear()
	fmt.Fprint(l.a.stderr, text)
	l.partialLine = true
}

// eraseLine is the control sequence that erases the current line of a terminal.
const eraseLine = "\r\x1b[K"

func (l *eventPrinter) clear() {
	if l.partialLine {
		fmt.Fprint(l.a.stderr, eraseLine)
		l.partialLine = false
	}
}

// printMissedLog prints the lines of the log that came in no event: events may be dropped, the reply has all.
func (l *eventPrinter) printMissedLog(reply *pb.RunScriptResponse) {
	next := 0
	for _, line := range reply.Log {
		if next < len(l.printed) && l.printed[next].Level == line.Level && l.printed[next].Message == line.Message {
			next++
			continue
		}
		l.a.printLog(line)
	}
	if reply.LogDropped > 0 {
		l.a.note("%s more were logged than the reply holds", plural(int(reply.LogDropped), "line"))
	}
}

func (a *app) printLog(line *pb.LogLine) {
	for text := range strings.Lines(printable(line.Message)) {
		fmt.Fprintf(a.stderr, "%-5s %s\n", line.Level, strings.TrimSuffix(text, "\n"))
	}
}

// printChanges lists what a script did, with diffs.
func (a *app) printChanges(reply *pb.RunScriptResponse) {
	for _, c := range reply.Changes {
		fmt.Fprintf(a.stderr, "%s\n", changeLine(c))
		for text := range strings.Lines(printable(c.Diff)) {
			fmt.Fprintf(a.stderr, "    %s\n", strings.TrimSuffix(text, "\n"))
		}
		if c.DiffTruncated {
			fmt.Fprintln(a.stderr, "    (the difference is longer)")
		}
	}
	for _, c := range reply.AfterCommit {
		fmt.Fprintf(a.stderr, "after the commit: %s\n", changeLine(c))
	}
	if reply.ChangesDropped > 0 {
		a.note("%s more than the reply holds", plural(int(reply.ChangesDropped), "change"))
	}
}

func changeLine(c *pb.Change) string {
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
		words = "cannot be foretold: " + words
	}
	words += " (" + c.Op
	if c.ContentHidden {
		words += ", content hidden"
	}
	if c.KeptBytes > 0 {
		words += ", keeps a copy of " + size(c.KeptBytes)
	}
	return strings.ReplaceAll(printable(words+")"), "\n", " ")
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

func (a *app) printStatus(reply *pb.RunScriptResponse) {
	for _, c := range reply.NotUndone {
		if c.State != pb.ChangeState_CHANGE_STATE_NOT_UNDONE {
			fmt.Fprintf(a.stderr, "NOT UNDONE: %s\n", changeLine(c))
		} else if !listed(c, reply.Changes) {
			fmt.Fprintln(a.stderr, changeLine(c))
		}
	}
	words := statusText[reply.Status]
	if words == "" {
		words = reply.Status.String()
	}
	details := []string{plural(len(reply.Changes), "change")}
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
		details = append(details, "until "+at(reply.ConfirmUntil))
	}
	if reply.Replayed {
		details = append(details, "the stored reply")
	}
	if reply.Shortened {
		details = append(details, "its result, log and changes are not stored any more")
	}
	fmt.Fprintf(a.stderr, "%s: %s\n", words, printable(strings.Join(details, ", ")))
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

// scriptOutcome returns the exit code of a script, with its error.
func (a *app) scriptOutcome(reply *pb.RunScriptResponse) error {
	code := exitFailed
	switch reply.Status {
	case pb.ScriptStatus_SCRIPT_STATUS_COMMITTED, pb.ScriptStatus_SCRIPT_STATUS_AWAITING_CONFIRM:
		return nil
	case pb.ScriptStatus_SCRIPT_STATUS_DRY_RUN:
		if reply.Error == nil {
			return nil
		}
		code = exitRolledBack
	case pb.ScriptStatus_SCRIPT_STATUS_REFUSED:
		code = exitRefused
	case pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK:
		code = exitRolledBack
	case pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED, pb.ScriptStatus_SCRIPT_STATUS_PARTIAL:
		code = exitPartial
	}
	if reply.Error == nil {
		return &failure{code, errors.New("the script ended as " + reply.Status.String())}
	}
	if a.json {
		return &failure{code: code} // the error is in the reply
	}
	return &failure{code, errors.New(scriptErrorText(reply.Error))}
}

// scriptErrorText returns the error of a script as compilers print theirs, with the traceback and the hint in lines of their own.
func scriptErrorText(e *pb.ScriptError) string {
	var b strings.Builder
	position := e.Script
	if e.Line > 0 {
		position += fmt.Sprintf(":%d", e.Line)
	}
	if position != "" && !strings.HasPrefix(e.Message, position+":") {
		b.WriteString(position + ": ")
	}
	if e.Kind != "" && e.Kind != "runtime" && e.Kind != "builtin" {
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

// isNull reports whether a script returned nothing.
func isNull(v *structpb.Value) bool {
	if v == nil || v.Kind == nil {
		return true
	}
	_, null := v.Kind.(*structpb.Value_NullValue)
	return null
}
