package lua

import (
	"errors"
	"strconv"
	"strings"

	glua "github.com/yuin/gopher-lua"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// failure is an error that knows what it is.
type failure struct {
	kind, message string
	at            place
	column        int
}

func (f *failure) Error() string { return f.message }

// failure makes the last word of an error, whatever it is.
func (m *machine) failure(err error) *pb.RunnerFailure {
	out := m.described(err)
	if m.stop.over() { // whatever the script made of it
		out = &pb.RunnerFailure{
			Kind: m.stop.kind, Message: m.stop.message, Traceback: out.GetTraceback(), Script: out.GetScript(), Line: out.GetLine(),
		}
		if m.stop.seen {
			out.Script, out.Line = m.stop.at.script, uint32(max(m.stop.at.line, 0))
		}
	}
	out.Message, out.Script = valid(out.Message), valid(out.Script)
	out.Op, out.Code, out.Object, out.Hint = valid(out.Op), valid(out.Code), valid(out.Object), valid(out.Hint)
	out.Traceback = valid(out.Traceback)
	return out
}

func (m *machine) described(err error) *pb.RunnerFailure {
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
	out := &pb.RunnerFailure{Kind: "runtime", Traceback: strings.TrimPrefix(raised.StackTrace, "stack traceback:\n")}
	switch object := raised.Object.(type) {
	case *glua.LTable:
		m.describeTable(out, object)
	case glua.LString:
		at, message := m.splitPlace(string(object))
		out.Message, out.Script, out.Line = message, at.script, uint32(at.line)
		if strings.HasSuffix(message, "stack overflow") || strings.HasSuffix(message, "registry overflow") {
			out.Kind = "depth"
			out.Message = "functions call one another too deeply"
		}
	default:
		out.Message = m.lastWords(raised.Object)
	}
	if out.Script == "" {
		at := placeOfTrace(raised.StackTrace, m)
		out.Script, out.Line = at.script, uint32(at.line)
	}
	return out
}

// describeTable takes what an error table says. Ours says all; a script's own says what it likes.
func (m *machine) describeTable(out *pb.RunnerFailure, t *glua.LTable) {
	field := func(name string) string {
		if s, ok := t.RawGetString(name).(glua.LString); ok {
			return string(s)
		}
		return ""
	}
	out.Op, out.Code, out.Object, out.Hint = field("op"), field("code"), field("object"), field("hint")
	out.Message = m.lastWords(t)
	if t.Metatable == m.errors {
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

// splitPlace takes "motd.lua:3: " off a message.
func (m *machine) splitPlace(message string) (place, string) {
	for name := range m.chunks {
		rest, ok := strings.CutPrefix(message, name+":")
		if !ok {
			continue
		}
		number, text, ok := strings.Cut(rest, ":")
		if line, err := strconv.Atoi(number); ok && err == nil {
			return place{name, line}, strings.TrimPrefix(text, " ")
		}
	}
	return place{}, message
}

// placeOfTrace is the innermost line of a traceback that belongs to a script.
func placeOfTrace(trace string, m *machine) place {
	for _, line := range strings.Split(trace, "\n") {
		if at, rest := m.splitPlace(strings.TrimSpace(line)); rest != strings.TrimSpace(line) {
			return at
		}
	}
	return place{script: m.start.GetName()}
}

// newError makes the error table that a script can catch: op, code, object, message, hint, and where it was raised.
func (m *machine) newError(e *pb.RunnerError) *glua.LTable {
	t := m.L.NewTable()
	for _, f := range []struct{ name, value string }{
		{"op", e.GetOp()}, {"code", e.GetCode()}, {"object", e.GetObject()}, {"message", e.GetMessage()}, {"hint", e.GetHint()},
	} {
		if f.value != "" {
			t.RawSetString(f.name, glua.LString(f.value))
		}
	}
	at := m.here()
	t.RawSetString("script", glua.LString(at.script))
	t.RawSetString("line", glua.LNumber(at.line))
	t.Metatable = m.errors
	return t
}

// raise ends the running function with an error table. It does not return.
func (m *machine) raise(e *pb.RunnerError) {
	m.L.Error(m.newError(e), 1)
}

// fail raises the error of one of our own functions, such as json.decode.
func (m *machine) fail(op, code, message string) {
	m.raise(&pb.RunnerError{Op: op, Code: code, Message: message})
}

// errorText prints an error table: "file.write /etc/motd: read-only file system".
func (m *machine) errorText(t *glua.LTable) string {
	field := func(name string) string {
		if v := t.RawGetString(name); v != glua.LNil {
			if s, ok := v.(glua.LString); ok {
				return string(s)
			}
			return m.plain(v)
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

// maxText is what is kept of a text that goes to the agent, in bytes; the agent keeps less.
const maxText = 32 << 10

// valid makes text fit for a message field that must be UTF-8 and short; the agent makes it readable where that matters.
func valid(s string) string { return strings.ToValidUTF8(s[:min(len(s), maxText)], "\uFFFD") }
