package pattern

import (
	"errors"
	"strings"
)

// Matcher looks for one pattern in one text. It is for one goroutine.
type Matcher struct {
	// Check, where it is not nil, is called every so often; its error ends the search.
	Check func() error

	p          *Pattern
	text       string
	from, to   int // of the match
	start, end [MaxCaptures]int
	choices    []choice
	work       int // since Check was asked
	// What is known to lead nowhere: a bit for each row and place. It is kept once a search has cost so much that it pays.
	failed  []uint64
	keep    bool
	cost    int
	costing int
}

// choice is where a match can be continued in another way.
type choice struct {
	item    int
	low, at int // places from low on; at was tried last
	high    int
}

const (
	// checkEvery is how many steps pass between two calls of Check: some tenths of a millisecond.
	checkEvery = 1 << 16
	// maxFailed bounds the memory for what is known, in bits: 8 MiB. Longer texts are searched without.
	maxFailed = 64 << 20
)

// New makes a matcher.
func New(p *Pattern, text string) *Matcher {
	return &Matcher{p: p, text: text, costing: 16 * (len(text) + 64)}
}

// Find looks for the first match that begins at from or later; at from alone where the pattern is anchored.
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

// skip is the first place from at on where a match may begin; negative where there is none.
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

// Range is where the match lies: bytes from … to-1.
func (m *Matcher) Range() (from, to int) { return m.from, m.to }

// Whole is the match.
func (m *Matcher) Whole() string { return m.text[m.from:m.to] }

// Captures is how many there are.
func (m *Matcher) Captures() int { return m.p.captures }

// Capture gives one of the match, counted from 0: its text, or its place counted from 1. Where the pattern has none,
// capture 0 is the whole match.
func (m *Matcher) Capture(i int) (text string, place int, err error) {
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

// match gives the end of the match that begins at a place; negative where there is none. What an item of the pattern
// sets of the captures needs no undoing: whoever goes back to an earlier item sets it again before it is looked at.
func (m *Matcher) match(at int) (int, error) {
	m.choices = m.choices[:0]
	items, text := m.p.items, m.text
	for i := 0; i < len(items); {
		if m.work++; m.work >= checkEvery {
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
		case opStar, opLazy, opOption:
			if ok = !m.hopeless(it.n, at); ok {
				at = m.choose(i, at)
			}
		case opWrong:
			return 0, it.err
		default:
			at, ok = m.rare(it, at)
		}
		if ok {
			i++
		} else if i, at = m.back(); i < 0 {
			return -1, nil
		}
	}
	return at, nil
}

// rare matches items that are not met often.
func (m *Matcher) rare(it *item, at int) (int, bool) {
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
		m.spend(len(said) / 8)
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
				m.spend(i - at)
				return i + 1, true
			}
		case it.a:
			depth++
		}
	}
	m.spend(len(m.text) - at)
	return at, false
}

// choose takes a repeated item and notes what else could be taken.
func (m *Matcher) choose(i, at int) int {
	it := &m.p.items[i]
	high := at
	switch it.op {
	case opStar:
		for high < len(m.text) && it.set.has(m.text[high]) && !(m.keep && m.hopeless(it.n, high+1)) {
			high++
		}
		m.spend((high - at) / 8)
	case opOption:
		if at < len(m.text) && it.set.has(m.text[at]) {
			high++
		}
	}
	m.choices = append(m.choices, choice{item: i, low: at, at: high, high: high})
	return high
}

// back goes to the last choice that leaves something to try: the item after it, and the place. Negative: there is none.
func (m *Matcher) back() (next, at int) {
	for len(m.choices) > 0 {
		m.spend(1)
		c := &m.choices[len(m.choices)-1]
		it := &m.p.items[c.item]
		switch {
		case it.op != opLazy && c.at > c.low:
			c.at--
			return c.item + 1, c.at
		case it.op == opLazy && c.at < len(m.text) && it.set.has(m.text[c.at]) && !m.hopeless(it.n, c.at+1):
			c.at++
			c.high = c.at
			return c.item + 1, c.at
		}
		if it.op == opOption {
			c.high = c.low // from the place after it nothing was optional
		}
		m.giveUp(it.n, c.low, c.high)
		m.choices = m.choices[:len(m.choices)-1]
	}
	return -1, 0
}

// spend counts work that is more than one step.
func (m *Matcher) spend(steps int) { m.work += steps }

// check asks whether to go on, and begins to keep what is hopeless once the search has become dear.
func (m *Matcher) check() error {
	m.cost += m.work
	m.work = 0
	if size := m.p.rows * (len(m.text) + 1); !m.keep && m.cost > m.costing && !m.p.refers && size <= maxFailed {
		m.keep, m.failed = true, make([]uint64, (size+63)/64)
	}
	if m.Check == nil {
		return nil
	}
	return m.Check()
}

// hopeless says whether a repeated item is known to lead nowhere from a place on.
func (m *Matcher) hopeless(row, at int) bool {
	if !m.keep {
		return false
	}
	bit := row*(len(m.text)+1) + at
	return m.failed[bit>>6]>>(bit&63)&1 != 0
}

// giveUp notes that a repeated item leads nowhere from these places on: whoever comes to it at one of them has no other
// ways to go on than the one who came to it at the lowest.
func (m *Matcher) giveUp(row, low, high int) {
	if !m.keep {
		return
	}
	for bit := row*(len(m.text)+1) + low; low <= high; low++ {
		m.failed[bit>>6] |= 1 << (bit & 63)
		bit++
	}
}
