// Package pattern finds Lua patterns in text, as chapter 5.4.1 of the Lua 5.1 manual describes them, and %f.
//
//	"^(%a+)=%d-$" ── Compile ──► items: one byte, a set with how often, a capture's ends, …
//	                                │
//	New(pattern, text).Find(from) ──┴─► where it matches, and Capture(i)
//
// A pattern has no alternatives, so its items stand in a row, and there is at most one open choice for each item that
// repeats: the matcher needs no recursion and no memory that grows with the text. What it has found not to lead to a
// match it does not try again, so that a search takes time in proportion to items and text, where the usual way of
// trying them all takes their product or worse. Patterns that refer back to a capture (%1) cannot have that, nor has
// %b; for them Matcher.Check ends a search that takes too long.
//
// As in Lua, what is wrong with a pattern is an error only when the match comes to it.
//
// Not here: replacement, iteration, and Lua's values.
package pattern

import "errors"

// MaxCaptures is how many captures a pattern can have, as in Lua 5.1.
const MaxCaptures = 32

// Pattern is a compiled pattern. It does not change, and any number of matchers may use it.
type Pattern struct {
	items    []item
	anchored bool
	captures int // how many are opened
	open     [MaxCaptures]bool
	position [MaxCaptures]bool
	rows     int  // items that repeat
	refers   bool // a capture is referred back to
	prefix   string
	first    *set // what the first byte must be one of; nil: no matter
}

type op uint8

const (
	opByte     op = iota // one byte, that is a
	opSet                // one byte of the set
	opStar               // as many bytes of the set as there are, or fewer
	opLazy               // as few bytes of the set as will do
	opOption             // a byte of the set, or none
	opOpen               // capture n begins
	opClose              // capture n ends
	opPosition           // capture n is the position
	opEnd                // the end of the text
	opBalance            // from a to the b that belongs to it
	opFrontier           // from without the set to within
	opRefer              // what capture n is
	opWrong              // the pattern is wrong from here on
)

// item is one step of a match.
type item struct {
	op   op
	a, b byte
	n    int // a capture; for what repeats, its row
	set  set
	err  error
}

// Compile never fails: what is wrong comes up in a match. A pattern for iteration has no anchor: its ^ is a byte.
func Compile(source string, iterate bool) *Pattern {
	c := compiler{in: source, p: &Pattern{}}
	if !iterate && source != "" && source[0] == '^' {
		c.p.anchored = true
		c.at = 1
	}
	for c.at < len(c.in) {
		if err := c.item(); err != nil {
			c.add(item{op: opWrong, err: err})
			break
		}
	}
	c.p.lookAhead()
	return c.p
}

// Plain says whether a pattern means just itself.
func Plain(source string) bool {
	for i := range len(source) {
		switch source[i] {
		case '^', '$', '*', '+', '?', '.', '(', '[', '%', '-':
			return false
		}
	}
	return true
}

// Anchored says whether the pattern begins with ^: it is then to be looked for at one place only.
func (p *Pattern) Anchored() bool { return p.anchored }

// lookAhead notes how a match must begin, so that a search can skip what does not.
func (p *Pattern) lookAhead() {
	var prefix []byte
	for i := range p.items {
		switch it := &p.items[i]; it.op {
		case opOpen, opClose, opPosition:
			continue
		case opByte:
			prefix = append(prefix, it.a)
			continue
		case opSet:
			if prefix == nil {
				p.first = &it.set
			}
		}
		break
	}
	p.prefix = string(prefix)
}

type compiler struct {
	in string
	at int
	p  *Pattern
}

func (c *compiler) add(it item) { c.p.items = append(c.p.items, it) }

// next is the byte at a distance, and whether there is one.
func (c *compiler) next(n int) (byte, bool) {
	if c.at+n < len(c.in) {
		return c.in[c.at+n], true
	}
	return 0, false
}

// item takes the next one from the source.
func (c *compiler) item() error {
	switch b, _ := c.next(0); b {
	case '(':
		return c.openCapture()
	case ')':
		return c.closeCapture()
	case '$':
		if c.at+1 == len(c.in) {
			c.at++
			c.add(item{op: opEnd})
			return nil
		}
	case '%':
		switch b, _ := c.next(1); {
		case b == 'b':
			return c.balance()
		case b == 'f':
			return c.frontier()
		case b >= '0' && b <= '9':
			return c.refer(int(b) - '1')
		}
	}
	return c.single()
}

func (c *compiler) openCapture() error {
	n := c.p.captures
	if n == MaxCaptures {
		return errors.New("too many captures")
	}
	c.p.captures++
	c.at++
	if b, ok := c.next(0); ok && b == ')' {
		c.at++
		c.p.position[n] = true
		c.add(item{op: opPosition, n: n})
		return nil
	}
	c.p.open[n] = true
	c.add(item{op: opOpen, n: n})
	return nil
}

func (c *compiler) closeCapture() error {
	for n := c.p.captures - 1; n >= 0; n-- {
		if c.p.open[n] {
			c.p.open[n] = false
			c.at++
			c.add(item{op: opClose, n: n})
			return nil
		}
	}
	return errors.New("invalid pattern capture")
}

func (c *compiler) balance() error {
	a, _ := c.next(2)
	b, ok := c.next(3)
	if !ok {
		return errors.New("unbalanced pattern")
	}
	c.at += 4
	c.add(item{op: opBalance, a: a, b: b})
	return nil
}

func (c *compiler) frontier() error {
	if b, ok := c.next(2); !ok || b != '[' {
		return errors.New("missing '[' after '%f' in pattern")
	}
	c.at += 2
	s, err := c.set()
	if err == nil {
		c.add(item{op: opFrontier, set: s})
	}
	return err
}

func (c *compiler) refer(n int) error {
	if n < 0 || n >= c.p.captures || c.p.open[n] {
		return errors.New("invalid capture index")
	}
	c.at += 2
	c.p.refers = true
	c.add(item{op: opRefer, n: n})
	return nil
}

// single is what stands for one byte, and how often.
func (c *compiler) single() error {
	it := item{op: opSet}
	switch b := c.in[c.at]; b {
	case '%':
		letter, ok := c.next(1)
		if !ok {
			return errors.New("malformed pattern (ends with '%')")
		}
		c.at += 2
		if class, ok := classes[letter]; ok {
			it.set = class
		} else {
			it.op, it.a = opByte, letter
		}
	case '[':
		s, err := c.set()
		if err != nil {
			return err
		}
		it.set = s
	case '.':
		c.at++
		it.set = anything
	default:
		c.at++
		it.op, it.a = opByte, b
	}
	c.repeated(it)
	return nil
}

// repeated adds an item as often as the sign after it says.
func (c *compiler) repeated(it item) {
	sign, _ := c.next(0)
	again := it
	if it.op == opByte {
		again.set = set{}
		again.set.add(it.a)
	}
	switch sign {
	case '*', '+':
		again.op = opStar
	case '-':
		again.op = opLazy
	case '?':
		again.op = opOption
	default:
		c.add(it)
		return
	}
	c.at++
	if sign == '+' {
		c.add(it)
	}
	again.n = c.p.rows
	c.p.rows++
	c.add(again)
}
