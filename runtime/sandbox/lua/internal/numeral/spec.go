package numeral

import (
	"math"
	"strconv"
	"strings"
)

// Spec is one conversion of string.format.
type Spec struct {
	// The flags -, +, space, # and 0.
	Left, Plus, Space, Alternate, Zero bool
	// Width is the least width, in bytes.
	Width int
	// Precision is negative where it is not given.
	Precision int
	// Verb is the letter, such as d; 0 where it is missing.
	Verb byte
}

// ParseSpec parses what follows a % up to and including the letter, and returns the rest. wrong is what violates the
// manual; a letter that no conversion has is left to the caller.
func ParseSpec(text string) (spec Spec, rest, wrong string) {
	spec.Precision = -1
	flags := len(text) - len(strings.TrimLeft(text, "-+ #0"))
	if flags > 5 {
		return spec, text, "invalid format (repeated flags)"
	}
	for _, flag := range []byte(text[:flags]) {
		switch flag {
		case '-':
			spec.Left = true
		case '+':
			spec.Plus = true
		case ' ':
			spec.Space = true
		case '#':
			spec.Alternate = true
		case '0':
			spec.Zero = true
		}
	}
	spec.Width, text = twoDigits(text[flags:])
	if strings.HasPrefix(text, ".") {
		spec.Precision, text = twoDigits(text[1:])
	}
	if countDigits(text) > 0 {
		return spec, text, "invalid format (width or precision too long)"
	}
	if text != "" {
		spec.Verb, text = text[0], text[1:]
	}
	return spec, text, ""
}

func twoDigits(text string) (int, string) {
	n := min(countDigits(text), 2)
	number, _ := strconv.Atoi(text[:n]) // none is 0
	return number, text[n:]
}

// Int formats a whole number for d and i, with all of its digits.
func (s Spec) Int(f float64) string {
	return s.padNumber(s.sign(f < 0), strconv.FormatFloat(math.Abs(f), 'f', 0, 64))
}

// Uint formats a whole number for u, o, x and X.
func (s Spec) Uint(n uint64) string {
	switch s.Verb {
	case 'o':
		digits := strconv.FormatUint(n, 8)
		if s.Alternate && n != 0 {
			digits = "0" + digits
		}
		return s.padNumber("", digits)
	case 'x', 'X':
		prefix := ""
		if s.Alternate && n != 0 {
			prefix = "0x"
		}
		if digits := strconv.FormatUint(n, 16); s.Verb == 'x' {
			return s.padNumber(prefix, digits)
		} else {
			return s.padNumber(strings.ToUpper(prefix), strings.ToUpper(digits))
		}
	}
	return s.padNumber("", strconv.FormatUint(n, 10))
}

func (s Spec) sign(negative bool) string {
	switch {
	case negative:
		return "-"
	case s.Plus:
		return "+"
	case s.Space:
		return " "
	}
	return ""
}

// padNumber extends digits to the precision and the width.
func (s Spec) padNumber(prefix, digits string) string {
	if s.Precision >= 0 {
		if s.Precision == 0 && digits == "0" {
			digits = ""
			if s.Verb == 'o' && s.Alternate {
				digits = "0"
			}
		}
		digits = zeros(s.Precision-len(digits)) + digits
		return s.Pad(prefix + digits)
	}
	return s.padZeros(prefix, digits)
}

// padZeros extends digits to the width with zeros after the prefix, where the flag says so.
func (s Spec) padZeros(prefix, digits string) string {
	if s.Zero && !s.Left {
		digits = zeros(s.Width-len(prefix)-len(digits)) + digits
	}
	return s.Pad(prefix + digits)
}

func zeros(n int) string { return strings.Repeat("0", max(n, 0)) }

// Pad extends text to the width, in bytes.
func (s Spec) Pad(text string) string {
	space := strings.Repeat(" ", max(s.Width-len(text), 0))
	if s.Left {
		return text + space
	}
	return space + text
}

// Float formats a number for e, E, f, g and G. NaN is nan, whatever its sign.
func (s Spec) Float(f float64) string {
	sign := s.sign(math.Signbit(f) && f == f)
	var digits string
	switch {
	case math.IsInf(f, 0):
		digits = "inf"
	case f != f:
		digits = "nan"
	default:
		digits = s.digits(math.Abs(f))
	}
	if s.Verb == 'E' || s.Verb == 'G' {
		digits = strings.ToUpper(digits)
	}
	if digits[0] > '9' {
		return s.Pad(sign + digits) // no zeros before words
	}
	return s.padZeros(sign, digits)
}

// digits formats a number that is neither negative nor infinite, in small letters.
func (s Spec) digits(f float64) string {
	precision := s.Precision
	if precision < 0 {
		precision = 6
	}
	switch verb := s.Verb | 0x20; {
	case verb != 'g':
		return s.addPoint(strconv.FormatFloat(f, verb, precision, 64))
	case !s.Alternate:
		return strconv.FormatFloat(f, 'g', max(precision, 1), 64)
	}
	// With # the zeros at the end stay, which FormatFloat's 'g' cannot do.
	precision = max(precision, 1)
	long := strconv.FormatFloat(f, 'e', precision-1, 64)
	_, power, _ := strings.Cut(long, "e")
	if exponent, _ := strconv.Atoi(power); exponent >= -4 && exponent < precision {
		long = strconv.FormatFloat(f, 'f', precision-1-exponent, 64)
	}
	return s.addPoint(long)
}

// addPoint adds the point that # asks for where there is none.
func (s Spec) addPoint(digits string) string {
	if !s.Alternate || strings.Contains(digits, ".") {
		return digits
	}
	head, power, found := strings.Cut(digits, "e")
	if found {
		return head + ".e" + power
	}
	return head + "."
}
