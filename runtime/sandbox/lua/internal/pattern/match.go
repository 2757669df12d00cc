package pattern

import (
	"errors"
	"strings"
)

// Matcher searches one text for one pattern. It is for one goroutine.
type Matcher struct {
	// Check, where it is not nil, is called every checkEvery steps; its error ends the search.
	Check func() error

	p               *Pattern
	text            string
	from, to        int // of the match
	start, end      [MaxCaptures]int
	choices         []choice
	stepsSinceCheck int
	// Which repeated items are known to lead to no match: a bit for each of them and each offset. They are recorded once a
	// search has taken so many steps that it pays.
	failed      []uint64
	recording   bool
	steps       int
	recordAfter int
}

// choice is an item that can be matched in another way.
type choice struct {
	item    int
	low, at int // offsets from low on; at was tried last
	high    int
}

const (
	// checkEvery is how many steps pass between two calls of Check: some tenths of a millisecond.
	checkEvery = 1 << 16
	// maxFailed bounds the memory for recorded failures, in bits: 8 MiB. Longer texts are searched without.
	maxFailed = 64 << 20
)

// New returns a matcher.
func New(p *Pattern, text string) *Matcher {
	return &Matcher{p: p, text: text, recordAfter: 16 * (len(text) + 64)}
}

// Find finds the first match that begins at from or later; at from only where the pattern is anchored. The error is
// that of a wrong pattern, or of Check.
func (m *Matcher) Find(from int) (found bool, err error) {
	for at := from; ; at++ {
		if !m.p.anchored {
			if at = m.skip(at); at < 0 {
				return false, nil
			}
		}
		end, err := m.match(at)
		if err != nil {
			return false, err
		}
		if end >= 0 {
			m.from, m.to = at, end
			return true, nil
		}
		if m.p.anchored || at >= len(m.text) {
			return false, nil
		}
	}
}

// skip returns the first offset from at on at which a match may begin; negative where there is none.
func (m *Matcher) skip(at int) int {
	switch {
	case m.p.prefix != "":
		n := strings.Index(m.text[at:], m.p.prefix)
		if n < 0 {
			return -1
		}
		return at + n
	case m.p.first != nil:
		for ; at < len(m.text); at++ {
			if m.p.first.has(m.text[at]) {
				return at
			}
		}
		return -1
	}
	return at
}

// Range returns the match as bytes from … to-1.
func (m *Matcher) Range() (from, to int) { return m.from, m.to }

// Whole returns the text of the match.
func (m *Matcher) Whole() string { return m.text[m.from:m.to] }

// Captures returns how many captures the pattern has.
func (m *Matcher) Captures() int { return m.p.captures }

// Capture returns capture i of the match, counted from 0: its text, or for a position capture its position, counted
// from 1. Where the pattern has none, capture 0 is the whole match.
func (m *Matcher) Capture(i int) (text string, position int, err error) {
	switch {
	case i == 0 && m.p.captures == 0:
		return m.Whole(), 0, nil
	case i >= m.p.captures:
		return "", 0, errors.New("invalid capture index")
	case m.p.position[i]:
		return "", m.start[i] + 1, nil
	case m.p.open[i]:
		return "", 0, errors.New("unfinished capture")
	}
	return m.text[m.start[i]:m.end[i]], 0, nil
}

// match returns the end of the match that begins at an offset; negative where there is none. Captures are not restored
// on backtracking: the items that set them set them again before they are read.
func (m *Matcher) match(at int) (int, error) {
	m.choices = m.choices[:0]
	items, text := m.p.items, m.text
	for i := 0; i < len(items); {
		if m.stepsSinceCheck++; m.stepsSinceCheck >= checkEvery {
			if err := m.check(); err != nil {
				return 0, err
			}
		}
		it := &items[i]
		ok := false
		switch it.op {
		case opByte:
			if ok = at < len(text) && text[at] == it.a; ok {
				at++
			}
		case opSet:
			if ok = at < len(text) && it.set.has(text[at]); ok {
				at++
			}
		case opStar, opLazy, opOptional:
			if ok = !m.knownFailure(it.n, at); ok {
				at = m.takeRepeated(i, at)
			}
		case opError:
			return 0, it.err
		default:
			at, ok = m.matchRare(it, at)
		}
		if ok {
			i++
		} else if i, at = m.backtrack(); i < 0 {
			return -1, nil
		}
	}
	return at, nil
}

// matchRare matches the kinds of items that are rare.
func (m *Matcher) matchRare(it *item, at int) (int, bool) {
	switch it.op {
	case opOpen, opPosition:
		m.start[it.n] = at
		return at, true
	case opClose:
		m.end[it.n] = at
		return at, true
	case opEnd:
		return at, at == len(m.text)
	case opBalance:
		return m.balance(it, at)
	case opFrontier:
		var before, here byte
		if at > 0 {
			before = m.text[at-1]
		}
		if at < len(m.text) {
			here = m.text[at]
		}
		return at, !it.set.has(before) && it.set.has(here)
	default: // opRefer
		if m.p.position[it.n] {
			return at, false
		}
		said := m.text[m.start[it.n]:m.end[it.n]]
		m.addSteps(len(said) / 8)
		return at + len(said), strings.HasPrefix(m.text[at:], said)
	}
}

func (m *Matcher) balance(it *item, at int) (int, bool) {
	if at >= len(m.text) || m.text[at] != it.a {
		return at, false
	}
	depth := 1
	for i := at + 1; i < len(m.text); i++ {
		switch m.text[i] {
		case it.b:
			if depth--; depth == 0 {
				m.addSteps(i - at)
				return i + 1, true
			}
		case it.a:
			depth++
		}
	}
	m.addSteps(len(m.text) - at)
	return at, false
}

// takeRepeated matches a repeated item and notes the choice.
func (m *Matcher) takeRepeated(i, at int) int {
	it := &m.p.items[i]
	high := at
	switch it.op {
	case opStar:
		for high < len(m.text) && it.set.has(m.text[high]) && !(m.recording && m.knownFailure(it.n, high+1)) {
			high++
		}
		m.addSteps((high - at) / 8)
	case opOptional:
		if at < len(m.text) && it.set.has(m.text[at]) {
			high++
		}
	}
	m.choices = append(m.choices, choice{item: i, low: at, at: high, high: high})
	return high
}

// backtrack goes back to the last choice that has something left to try. It returns the item after it, and the offset;
// negative: there is none.
func (m *Matcher) backtrack() (next, at int) {
	for len(m.choices) > 0 {
		m.addSteps(1)
		c := &m.choices[len(m.choices)-1]
		it := &m.p.items[c.item]
		switch {
		case it.op != opLazy && c.at > c.low:
			c.at--
			return c.item + 1, c.at
		case it.op == opLazy && c.at < len(m.text) && it.set.has(m.text[c.at]) && !m.knownFailure(it.n, c.at+1):
			c.at++
			c.high = c.at
			return c.item + 1, c.at
		}
		if it.op == opOptional {
			c.high = c.low // from the offset after it nothing was optional
		}
		m.recordFailure(it.n, c.low, c.high)
		m.choices = m.choices[:len(m.choices)-1]
	}
	return -1, 0
}

// addSteps counts work that is more than one step.
func (m *Matcher) addSteps(steps int) { m.stepsSinceCheck += steps }

// check calls Check, and begins to record failures once the search has taken many steps.
func (m *Matcher) check() error {
	m.steps += m.stepsSinceCheck
	m.stepsSinceCheck = 0
	if size := m.p.repeats * (len(m.text) + 1); !m.recording && m.steps > m.recordAfter && !m.p.hasBackref && size <= maxFailed {
		m.recording, m.failed = true, make([]uint64, (size+63)/64)
	}
	if m.Check == nil {
		return nil
	}
	return m.Check()
}

// knownFailure reports whether a repeated item is known to lead to no match from an offset on.
func (m *Matcher) knownFailure(row, at int) bool {
	if !m.recording {
		return false
	}
	bit := row*(len(m.text)+1) + at
	return m.failed[bit>>6]>>(bit&63)&1 != 0
}

// recordFailure notes that a repeated item leads to no match from these offsets on: a search that comes to it at one of
// them can only continue in ways that were tried from the lowest.
func (m *Matcher) recordFailure(row, low, high int) {
	if !m.recording {
		return
	}
	for bit := row*(len(m.text)+1) + low; low <= high; low++ {
		m.failed[bit>>6] |= 1 << (bit & 63)
		bit++
	}
}
