package lua

import (
	"errors"
	"slices"
	"strconv"
	"strings"

	glua "github.com/yuin/gopher-lua"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// failure is an error with a kind and a position.
type failure struct {
	kind, message string
	at            position
	column        int
}

func (f *failure) Error() string { return f.message }

// failure returns the message to the agent about an error that ended the script.
func (m *machine) failure(err error) *pb.RunnerFailure {
	out := m.describeError(err)
	if m.stopper.stopped() { // whatever the script made of the error
		out = &pb.RunnerFailure{
			Kind: m.stopper.kind, Message: m.stopper.message, Traceback: out.GetTraceback(), Script: out.GetScript(), Line: out.GetLine(),
		}
		if m.stopper.located {
			out.Script, out.Line = m.stopper.stoppedAt.script, uint32(max(m.stopper.stoppedAt.line, 0))
		}
	}
	out.Message, out.Script = toValidText(out.Message), toValidText(out.Script)
	out.Op, out.Code, out.Object, out.Hint = toValidText(out.Op), toValidText(out.Code), toValidText(out.Object), toValidText(out.Hint)
	out.Traceback = toValidText(out.Traceback)
	return out
}

func (m *machine) describeError(err error) *pb.RunnerFailure {
	var own *failure
	if errors.As(err, &own) {
		return &pb.RunnerFailure{
			Kind: own.kind, Message: own.message,
			Script: own.at.script, Line: uint32(max(own.at.line, 0)), Column: uint32(max(own.column, 0)),
		}
	}
	var raised *glua.ApiError
	if !errors.As(err, &raised) {
		return &pb.RunnerFailure{Kind: "internal", Message: err.Error(), Script: m.start.GetName()}
	}
	out := &pb.RunnerFailure{Kind: "runtime", Traceback: withoutGuard(raised.StackTrace)}
	switch object := raised.Object.(type) {
	case *glua.LTable:
		m.describeErrorTable(out, object)
	case glua.LString:
		at, message := m.splitPosition(string(object))
		out.Message, out.Script, out.Line = message, at.script, uint32(at.line)
		if strings.HasSuffix(message, "stack overflow") || strings.HasSuffix(message, "registry overflow") {
			out.Kind = "depth"
			out.Message = "functions call one another too deeply"
		}
	default:
		out.Message = m.uncaughtText(raised.Object)
	}
	if out.Script == "" {
		at := tracebackPosition(raised.StackTrace, m)
		out.Script, out.Line = at.script, uint32(at.line)
	}
	return out
}

// describeErrorTable takes over the fields of an error table: one of a builtin, or a script's own.
func (m *machine) describeErrorTable(out *pb.RunnerFailure, t *glua.LTable) {
	field := func(name string) string {
		if s, ok := t.RawGetString(name).(glua.LString); ok {
			return string(s)
		}
		return ""
	}
	out.Op, out.Code, out.Object, out.Hint = field("op"), field("code"), field("object"), field("hint")
	out.Message = m.uncaughtText(t)
	if t.Metatable == m.errorMetatable {
		out.Kind = "builtin"
		if out.Code == "unsupported" && field("kind") == "unsupported" {
			out.Kind = "unsupported"
		}
		out.Script = field("script")
		if n, ok := t.RawGetString("line").(glua.LNumber); ok && n > 0 {
			out.Line = uint32(n)
		}
	} else if said := field("message"); said != "" {
		out.Message = said
	}
}

// splitPosition cuts a prefix such as "motd.lua:3: " off a message.
func (m *machine) splitPosition(message string) (position, string) {
	for name := range m.sources {
		rest, ok := strings.CutPrefix(message, name+":")
		if !ok {
			continue
		}
		number, text, ok := strings.Cut(rest, ":")
		if line, err := strconv.Atoi(number); ok && err == nil {
			return position{name, line}, strings.TrimPrefix(text, " ")
		}
	}
	return position{}, message
}

// withoutGuard returns a traceback as it were if the outermost function had not been called by the guard.
func withoutGuard(trace string) string {
	lines := strings.Split(strings.TrimPrefix(trace, "stack traceback:\n"), "\n")
	guard := slices.Index(lines, "\t[G]: in main chunk")
	for i := guard - 1; i >= 0; i-- {
		if called := strings.LastIndex(lines[i], " in function "); called >= 0 {
			lines[i] = lines[i][:called] + " in main chunk"
			return strings.Join(slices.Delete(lines, guard, guard+1), "\n")
		}
	}
	return strings.Join(lines, "\n")
}

// tracebackPosition returns the innermost line of a traceback that belongs to a script.
func tracebackPosition(trace string, m *machine) position {
	for _, line := range strings.Split(trace, "\n") {
		if at, rest := m.splitPosition(strings.TrimSpace(line)); rest != strings.TrimSpace(line) {
			return at
		}
	}
	return position{script: m.start.GetName()}
}

// newError returns an error table that a script can catch: op, code, object, message, hint, and where it was raised.
func (m *machine) newError(e *pb.RunnerError) *glua.LTable {
	t := m.L.NewTable()
	for _, f := range []struct{ name, value string }{
		{"op", e.GetOp()}, {"code", e.GetCode()}, {"object", e.GetObject()}, {"message", e.GetMessage()}, {"hint", e.GetHint()},
	} {
		if f.value != "" {
			t.RawSetString(f.name, glua.LString(f.value))
		}
	}
	at := m.currentPosition()
	t.RawSetString("script", glua.LString(at.script))
	t.RawSetString("line", glua.LNumber(at.line))
	t.Metatable = m.errorMetatable
	return t
}

// raise ends the running function with an error table. It does not return.
func (m *machine) raise(e *pb.RunnerError) {
	m.L.Error(m.newError(e), 1)
}

// raiseError raises the error of a library function, such as json.decode. It does not return.
func (m *machine) raiseError(op, code, message string) {
	m.raise(&pb.RunnerError{Op: op, Code: code, Message: message})
}

// errorText returns an error table as text: "file.write /etc/motd: read-only file system".
func (m *machine) errorText(t *glua.LTable) string {
	field := func(name string) string {
		if v := t.RawGetString(name); v != glua.LNil {
			if s, ok := v.(glua.LString); ok {
				return string(s)
			}
			return m.rawTostring(v)
		}
		return ""
	}
	head, message := field("op"), field("message")
	if object := field("object"); object != "" {
		head = strings.TrimSpace(head + " " + object)
	}
	if head == "" || strings.HasPrefix(message, head+": ") {
		return message
	}
	return head + ": " + message
}

// maxTextBytes is how much is sent of a text for people, in bytes; the agent keeps less.
const maxTextBytes = 32 << 10

// toValidText returns text for a message field that must be UTF-8 and short. The agent escapes what must stay readable.
func toValidText(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), maxTextBytes)], "\uFFFD")
}
