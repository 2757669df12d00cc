package lua

import (
	"strings"

	glua "github.com/yuin/gopher-lua"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/lua/internal/pattern"
)

// matcher looks for a pattern in text, until the script is stopped.
func (a args) matcher(text, source string, iterate bool) *pattern.Matcher {
	a.m.reserve(len(source) * patternCost)
	p := pattern.New(pattern.Compile(source, iterate), text)
	p.Check = a.m.interrupted
	return p
}

// patternCost is how much memory a byte of a pattern takes at most, with what its slice has to spare.
const patternCost = 3 * 64

// next looks for the next match; an error ends the call.
func (a args) next(p *pattern.Matcher, from int) bool {
	found, err := p.Find(from)
	a.raise(err)
	return found
}

func (a args) raise(err error) {
	if err != nil {
		a.L.RaiseError("%s", err.Error())
	}
}

// capture is one of a match as a value.
func (a args) capture(p *pattern.Matcher, i int) glua.LValue {
	text, place, err := p.Capture(i)
	a.raise(err)
	if place > 0 {
		return glua.LNumber(place)
	}
	return glua.LString(text)
}

// pushCaptures gives all captures, at least so many: the whole match stands for the first where there is none.
func (a args) pushCaptures(p *pattern.Matcher, least int) int {
	n := max(p.Captures(), least)
	for i := range n {
		a.L.Push(a.capture(p, i))
	}
	return n
}

// start is where a search begins that the third argument may put off.
func (a args) start(text string) int {
	return min(max(fromEnd(a.intOr(3, 1), len(text))-1, 0), len(text))
}

func find(a args) int {
	text, source := a.text(1), a.text(2)
	from := a.start(text)
	if glua.LVAsBool(a.L.Get(4)) || pattern.Plain(source) {
		at := strings.Index(text[from:], source)
		if at < 0 {
			a.L.Push(glua.LNil)
			return 1
		}
		a.L.Push(glua.LNumber(from + at + 1))
		a.L.Push(glua.LNumber(from + at + len(source)))
		return 2
	}
	p := a.matcher(text, source, false)
	if !a.next(p, from) {
		a.L.Push(glua.LNil)
		return 1
	}
	begin, end := p.Range()
	a.L.Push(glua.LNumber(begin + 1))
	a.L.Push(glua.LNumber(end))
	return 2 + a.pushCaptures(p, 0)
}

func match(a args) int {
	text, source := a.text(1), a.text(2)
	p := a.matcher(text, source, false)
	if !a.next(p, a.start(text)) {
		a.L.Push(glua.LNil)
		return 1
	}
	return a.pushCaptures(p, 1)
}

func gmatch(a args) int {
	text := a.text(1)
	p := a.matcher(text, a.text(2), true)
	from := 0
	a.L.Push(a.m.function(a.m.wrapped(a.name, func(a args) int {
		if from > len(text) || !a.next(p, from) {
			from = len(text) + 1
			return 0
		}
		begin, end := p.Range()
		if from = end; begin == end {
			from++
		}
		return a.pushCaptures(p, 1)
	})))
	return 1
}

func gsub(a args) int {
	text, source := a.text(1), a.text(2)
	replace := a.replacement()
	most := a.intOr(4, len(text)+1)
	p := a.matcher(text, source, false)
	out := builder{m: a.m}
	count, copied := 0, 0
	for from := 0; count < most && from <= len(text) && a.next(p, from); {
		begin, end := p.Range()
		out.add(text[copied:begin])
		replace(&out, p)
		count++
		if copied, from = end, end; begin == end {
			from++
		}
		if strings.HasPrefix(source, "^") {
			break
		}
		if count%every == 0 {
			a.m.goOn()
		}
	}
	if count == 0 {
		a.L.Push(glua.LString(text))
	} else {
		out.add(text[copied:])
		a.L.Push(out.value())
	}
	a.L.Push(glua.LNumber(count))
	return 2
}

// replacement is what gsub's third argument makes of a match.
func (a args) replacement() func(out *builder, p *pattern.Matcher) {
	switch v := a.L.Get(3).(type) {
	case *glua.LTable:
		return func(out *builder, p *pattern.Matcher) { a.replaceBy(out, p, a.L.GetTable(v, a.capture(p, 0))) }
	case *glua.LFunction:
		return func(out *builder, p *pattern.Matcher) {
			a.L.Push(v)
			a.L.Call(a.pushCaptures(p, 1), 1)
			value := a.L.Get(-1)
			a.L.Pop(1)
			a.replaceBy(out, p, value)
		}
	}
	text, ok := textOf(a.L.Get(3))
	if !ok {
		a.wanted(3, "string/function/table")
	}
	return a.template(text)
}

// replaceBy takes what a function or a table gave for a match.
func (a args) replaceBy(out *builder, p *pattern.Matcher, v glua.LValue) {
	text, ok := textOf(v)
	switch {
	case ok:
		out.add(text)
	case v == glua.LNil || v == glua.LFalse:
		out.add(p.Whole())
	default:
		a.L.RaiseError("invalid replacement value (a %s)", v.Type())
	}
}

// template replaces by text in which %1 stands for a capture, %0 for the match, and % before anything else for that.
func (a args) template(text string) func(out *builder, p *pattern.Matcher) {
	if !strings.Contains(text, "%") {
		return func(out *builder, _ *pattern.Matcher) { out.add(text) }
	}
	return func(out *builder, p *pattern.Matcher) {
		for rest := text; ; {
			before, after, found := strings.Cut(rest, "%")
			out.add(before)
			if !found {
				return
			}
			if after == "" {
				a.L.RaiseError("%s", "invalid use of '%' at the end of a replacement string")
			}
			switch c := after[0]; {
			case c == '0':
				out.add(p.Whole())
			case c >= '1' && c <= '9':
				captured, _ := textOf(a.capture(p, int(c-'1')))
				out.add(captured)
			default:
				out.add(after[:1])
			}
			rest = after[1:]
		}
	}
}
