// Package pattern finds Lua patterns in text, as chapter 5.4.1 of the Lua 5.1 manual describes them, and %f.
//
//	"^(%a+)=%d-$" ── Compile ──► items: one byte, a repeated set, an end of a capture, …
//	                                │
//	New(pattern, text).Find(from) ──┴─► where it matches, and Capture(i)
//
// A pattern has no alternatives, so its items form a list, and each repeated item has at most one open choice: the matcher
// needs no recursion, and its choices take no memory that grows with the text. In a long search it records which repeated
// items lead to no match from which offsets and does not try them again, so that the time is in proportion to repeated
// items and text, where plain backtracking can take exponential time. A pattern that refers back to a capture (%1) cannot
// do that, nor can %b; there Matcher.Check ends a search that takes too long.
//
// As in Lua, a wrong pattern is an error only when a match comes to the wrong item.
//
// Not here: replacement, iteration, and Lua's values.
package pattern

import "errors"

// MaxCaptures is how many captures a pattern can have, as in Lua 5.1.
const MaxCaptures = 32

// Pattern is a compiled pattern. It does not change, and any number of matchers may use it at a time.
type Pattern struct {
	items      []item
	anchored   bool
	captures   int // how many there are
	open       [MaxCaptures]bool
	position   [MaxCaptures]bool
	repeats    int  // repeated items
	hasBackref bool // it refers back to a capture
	prefix     string
	first      *set // of the first byte; nil: any
}

type op uint8

const (
	opByte     op = iota // one byte, that is a
	opSet                // one byte of the set
	opStar               // as many bytes of the set as there are, or fewer
	opLazy               // as few bytes of the set as will do
	opOptional           // a byte of the set, or none
	opOpen               // capture n begins
	opClose              // capture n ends
	opPosition           // capture n is the position
	opEnd                // the end of the text
	opBalance            // from a to the b that belongs to it
	opFrontier           // from without the set to within
	opBackref            // what capture n is
	opError              // the pattern is wrong from here on
)

// item is one step of a match.
type item struct {
	op   op
	a, b byte
	n    int // the capture, or the number of the repeated item
	set  set
	err  error
}

// Compile compiles a pattern. It never fails: what is wrong with a pattern is an error of Find, once a match comes to
// it. A pattern for iteration has no anchor: its ^ is a byte.
func Compile(source string, iterate bool) *Pattern {
	c := compiler{in: source, p: &Pattern{}}
	if !iterate && source != "" && source[0] == '^' {
		c.p.anchored = true
		c.at = 1
	}
	for c.at < len(c.in) {
		if err := c.item(); err != nil {
			c.add(item{op: opError, err: err})
			break
		}
	}
	c.p.findPrefix()
	return c.p
}

// Plain reports whether a pattern matches only its own text.
func Plain(source string) bool {
	for i := range len(source) {
		switch source[i] {
		case '^', '$', '*', '+', '?', '.', '(', '[', '%', '-':
			return false
		}
	}
	return true
}

// findPrefix notes how a match must begin, so that a search can skip ahead.
func (p *Pattern) findPrefix() {
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

// peek returns the byte at a distance, and whether there is one.
func (c *compiler) peek(n int) (byte, bool) {
	if c.at+n < len(c.in) {
		return c.in[c.at+n], true
	}
	return 0, false
}

// item compiles the next item of the source.
func (c *compiler) item() error {
	switch b, _ := c.peek(0); b {
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
		switch b, _ := c.peek(1); {
		case b == 'b':
			return c.balance()
		case b == 'f':
			return c.frontier()
		case b >= '0' && b <= '9':
			return c.backref(int(b) - '1')
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
	if b, ok := c.peek(0); ok && b == ')' {
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
	a, _ := c.peek(2)
	b, ok := c.peek(3)
	if !ok {
		return errors.New("unbalanced pattern")
	}
	c.at += 4
	c.add(item{op: opBalance, a: a, b: b})
	return nil
}

func (c *compiler) frontier() error {
	if b, ok := c.peek(2); !ok || b != '[' {
		return errors.New("missing '[' after '%f' in pattern")
	}
	c.at += 2
	s, err := c.set()
	if err == nil {
		c.add(item{op: opFrontier, set: s})
	}
	return err
}

func (c *compiler) backref(n int) error {
	if n < 0 || n >= c.p.captures || c.p.open[n] {
		return errors.New("invalid capture index")
	}
	c.at += 2
	c.p.hasBackref = true
	c.add(item{op: opBackref, n: n})
	return nil
}

// single compiles an item that matches one byte, and how often.
func (c *compiler) single() error {
	it := item{op: opSet}
	switch b := c.in[c.at]; b {
	case '%':
		letter, ok := c.peek(1)
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
		it.set = anyByte
	default:
		c.at++
		it.op, it.a = opByte, b
	}
	c.addRepeated(it)
	return nil
}

// addRepeated adds an item, repeated as the sign after it says.
func (c *compiler) addRepeated(it item) {
	sign, _ := c.peek(0)
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
		again.op = opOptional
	default:
		c.add(it)
		return
	}
	c.at++
	if sign == '+' {
		c.add(it)
	}
	again.n = c.p.repeats
	c.p.repeats++
	c.add(again)
}
