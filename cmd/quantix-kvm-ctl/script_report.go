package main

import (
	"errors"
	"fmt"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/quantix-kvm/guest-agent/cmd/internal/scriptreport"
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
			scriptreport.Log(l.a.stderr, event.Log)
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
	if !isScreen(l.a.stderr) {
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
		scriptreport.Log(l.a.stderr, line)
	}
	if reply.LogDropped > 0 {
		l.a.note("%s more were logged than the reply holds", plural(int(reply.LogDropped), "line"))
	}
}

// scriptOutcome returns the exit code of a script, with its error.
func (a *app) scriptOutcome(reply *pb.RunScriptResponse) error {
	code := scriptreport.ExitCode(reply)
	if code == 0 {
		return nil
	}
	if reply.Error == nil {
		return &failure{code, errors.New("the script ended as " + reply.Status.String())}
	}
	if a.json {
		return &failure{code: code} // the error is in the reply
	}
	return &failure{code, errors.New(scriptreport.ErrorText(reply.Error))}
}

// isNull reports whether a script returned nothing.
func isNull(v *structpb.Value) bool {
	if v == nil || v.Kind == nil {
		return true
	}
	_, null := v.Kind.(*structpb.Value_NullValue)
	return null
}
