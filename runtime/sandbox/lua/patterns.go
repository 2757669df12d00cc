package lua

import (
	"strings"

	glua "github.com/yuin/gopher-lua"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/lua/internal/pattern"
)

// matcher returns a matcher of a pattern in text that ends with an error when the script is stopped.
func (a args) matcher(text, source string, iterate bool) *pattern.Matcher {
	a.m.reserve(len(source) * patternCost)
	p := pattern.New(pattern.Compile(source, iterate), text)
	p.Check = a.m.stopError
	return p
}

// patternCost is how much memory a byte of a pattern takes at most, with the spare capacity of its slice.
const patternCost = 3 * 64

// findNext finds the next match; an error ends the call.
func (a args) findNext(p *pattern.Matcher, from int) bool {
	found, err := p.Find(from)
	a.raise(err)
	return found
}

// raise ends the call with an error that is not nil.
func (a args) raise(err error) {
	if err != nil {
		a.L.RaiseError("%s", err.Error())
	}
}

// capture returns one capture of a match.
func (a args) capture(p *pattern.Matcher, i int) glua.LValue {
	text, position, err := p.Capture(i)
	a.raise(err)
	if position > 0 {
		return glua.LNumber(position)
	}
	return glua.LString(text)
}

// pushCaptures pushes all captures, and at least so many: where there is none the whole match is the first. It returns
// how many.
func (a args) pushCaptures(p *pattern.Matcher, least int) int {
	n := max(p.Captures(), least)
	for i := range n {
		a.L.Push(a.capture(p, i))
	}
	return n
}

// searchStart returns the offset of the third argument, where a search begins.
func (a args) searchStart(text string) int {
	return min(max(absoluteIndex(a.optInt(3, 1), len(text))-1, 0), len(text))
}

func find(a args) int {
	text, source := a.text(1), a.text(2)
	from := a.searchStart(text)
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
	if !a.findNext(p, from) {
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
	if !a.findNext(p, a.searchStart(text)) {
		a.L.Push(glua.LNil)
		return 1
	}
	return a.pushCaptures(p, 1)
}

func gmatch(a args) int {
	text := a.text(1)
	p := a.matcher(text, a.text(2), true)
	from := 0
	a.L.Push(a.m.function(a.m.wrap(a.name, func(a args) int {
		if from > len(text) || !a.findNext(p, from) {
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
	most := a.optInt(4, len(text)+1)
	p := a.matcher(text, source, false)
	out := builder{m: a.m}
	count, copied := 0, 0
	for from := 0; count < most && from <= len(text) && a.findNext(p, from); {
		begin, end := p.Range()
		out.append(text[copied:begin])
		replace(&out, p)
		count++
		if copied, from = end, end; begin == end {
			from++
		}
		if strings.HasPrefix(source, "^") {
			break
		}
		if count%checkInterval == 0 {
			a.m.checkStopped()
		}
	}
	if count == 0 {
		a.L.Push(glua.LString(text))
	} else {
		out.append(text[copied:])
		a.L.Push(out.value())
	}
	a.L.Push(glua.LNumber(count))
	return 2
}

// replacement returns what gsub does with a match, by its third argument.
func (a args) replacement() func(out *builder, p *pattern.Matcher) {
	switch v := a.L.Get(3).(type) {
	case *glua.LTable:
		return func(out *builder, p *pattern.Matcher) { a.appendReplacement(out, p, a.L.GetTable(v, a.capture(p, 0))) }
	case *glua.LFunction:
		return func(out *builder, p *pattern.Matcher) {
			a.L.Push(v)
			a.L.Call(a.pushCaptures(p, 1), 1)
			value := a.L.Get(-1)
			a.L.Pop(1)
			a.appendReplacement(out, p, value)
		}
	}
	text, ok := toText(a.L.Get(3))
	if !ok {
		a.typeError(3, "string/function/table")
	}
	return a.replacementTemplate(text)
}

// appendReplacement appends what a function or a table returned for a match.
func (a args) appendReplacement(out *builder, p *pattern.Matcher, v glua.LValue) {
	text, ok := toText(v)
	switch {
	case ok:
		out.append(text)
	case v == glua.LNil || v == glua.LFalse:
		out.append(p.Whole())
	default:
		a.L.RaiseError("invalid replacement value (a %s)", v.Type())
	}
}

// replacementTemplate returns the replacement by a text in which %1 is a capture, %0 the match, and % before any other
// character that character.
func (a args) replacementTemplate(text string) func(out *builder, p *pattern.Matcher) {
	if !strings.Contains(text, "%") {
		return func(out *builder, _ *pattern.Matcher) { out.append(text) }
	}
	return func(out *builder, p *pattern.Matcher) {
		for rest := text; ; {
			before, after, found := strings.Cut(rest, "%")
			out.append(before)
			if !found {
				return
			}
			if after == "" {
				a.L.RaiseError("%s", "invalid use of '%' at the end of a replacement string")
			}
			switch c := after[0]; {
			case c == '0':
				out.append(p.Whole())
			case c >= '1' && c <= '9':
				captured, _ := toText(a.capture(p, int(c-'1')))
				out.append(captured)
			default:
				out.append(after[:1])
			}
			rest = after[1:]
		}
	}
}
