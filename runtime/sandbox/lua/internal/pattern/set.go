package pattern

import "errors"

// set is a set of bytes.
type set [4]uint64

func (s *set) add(b byte)      { s[b>>6] |= 1 << (b & 63) }
func (s *set) has(b byte) bool { return s[b>>6]>>(b&63)&1 != 0 }

func (s *set) union(other set) {
	for i := range s {
		s[i] |= other[i]
	}
}

func (s set) complement() set {
	for i := range s {
		s[i] = ^s[i]
	}
	return s
}

// anyByte is the set of the dot.
var anyByte = set{}.complement()

// classes are the sets that letters after % stand for. They do not depend on the guest's locale.
var classes = func() map[byte]set {
	all := map[byte]set{}
	for letter, member := range map[byte]func(b byte) bool{
		'a': letterByte,
		'c': func(b byte) bool { return b < ' ' || b == 127 },
		'd': func(b byte) bool { return between(b, '0', '9') },
		'l': func(b byte) bool { return between(b, 'a', 'z') },
		'p': func(b byte) bool { return between(b, '!', '~') && !letterByte(b) && !between(b, '0', '9') },
		's': func(b byte) bool { return b == ' ' || between(b, '\t', '\r') },
		'u': func(b byte) bool { return between(b, 'A', 'Z') },
		'w': func(b byte) bool { return letterByte(b) || between(b, '0', '9') },
		'x': func(b byte) bool { return between(b, '0', '9') || between(b, 'a', 'f') || between(b, 'A', 'F') },
		'z': func(b byte) bool { return b == 0 },
	} {
		var s set
		for b := range 256 {
			if member(byte(b)) {
				s.add(byte(b))
			}
		}
		all[letter], all[letter-'a'+'A'] = s, s.complement()
	}
	return all
}()

func between(b, low, high byte) bool { return b >= low && b <= high }

func letterByte(b byte) bool { return between(b, 'a', 'z') || between(b, 'A', 'Z') }

// set compiles a set in brackets. A ] that comes first is itself, and so is a - that is not between two bytes.
func (c *compiler) set() (set, error) {
	c.at++
	b, ok := c.peek(0)
	exclude := ok && b == '^'
	if exclude {
		c.at++
	}
	end, ok := c.setEnd()
	if !ok {
		return set{}, errors.New("malformed pattern (missing ']')")
	}
	var s set
	for c.at < end {
		b := c.in[c.at]
		switch {
		case b == '%' && c.at+1 < end:
			c.at += 2
			s.union(classOrByte(c.in[c.at-1]))
		case c.at+2 < end && c.in[c.at+1] == '-':
			for member := int(b); member <= int(c.in[c.at+2]); member++ {
				s.add(byte(member))
			}
			c.at += 3
		default:
			s.add(b)
			c.at++
		}
	}
	c.at++ // the bracket
	if exclude {
		s = s.complement()
	}
	return s, nil
}

// setEnd returns the offset of the set's closing bracket.
func (c *compiler) setEnd() (int, bool) {
	for i := c.at; i < len(c.in); i++ {
		switch {
		case c.in[i] == '%':
			i++
		case c.in[i] == ']' && i > c.at:
			return i, true
		}
	}
	return 0, false
}

func classOrByte(letter byte) set {
	s, ok := classes[letter]
	if !ok {
		s.add(letter)
	}
	return s
}
