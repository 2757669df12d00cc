// Package numeral parses and formats numbers as chapters 2.2.1, 2.8 and 5.4 of the Lua 5.1 manual say, which leave
// formatting to C.
//
//	" 0x1F " ── Parse ──► 31        255 ── Spec{verb 'x', …}.Print ──► "ff"
//
// Not here: Lua's values.
package numeral

import (
	"math"
	"strconv"
	"strings"
)

const spaces = " \t\n\v\f\r"

// Parse reads a number as it is written in a script: decimal, or whole and hexadecimal after 0x; with spaces and a sign
// around it. It returns false for words such as inf and nan.
func Parse(s string) (float64, bool) {
	s = strings.Trim(s, spaces)
	digits, negative := cutSign(s)
	if digits == "" {
		return 0, false
	}
	if len(digits) > 1 && digits[0] == '0' && digits[1]|0x20 == 'x' {
		f, ok := parseDigits(digits[2:], 16)
		return applySign(f, negative), ok
	}
	if !isDecimal(digits) {
		return 0, false
	}
	f, _ := strconv.ParseFloat(digits, 64) // what is too large is infinite
	return applySign(f, negative), true
}

// ParseBase reads a whole number to a base from 2 to 36.
func ParseBase(s string, base int) (float64, bool) {
	digits, negative := cutSign(strings.Trim(s, spaces))
	if base == 16 && len(digits) > 2 && digits[0] == '0' && digits[1]|0x20 == 'x' {
		digits = digits[2:]
	}
	f, ok := parseDigits(digits, base)
	return applySign(f, negative), ok
}

func cutSign(s string) (digits string, negative bool) {
	if s != "" && (s[0] == '-' || s[0] == '+') {
		return s[1:], s[0] == '-'
	}
	return s, false
}

func applySign(f float64, negative bool) float64 {
	if negative {
		return -f
	}
	return f
}

func parseDigits(digits string, base int) (float64, bool) {
	var f float64
	for i := range len(digits) {
		d := 99
		switch c := digits[i]; {
		case c >= '0' && c <= '9':
			d = int(c - '0')
		case c|0x20 >= 'a' && c|0x20 <= 'z':
			d = int(c|0x20-'a') + 10
		}
		if d >= base {
			return 0, false
		}
		f = f*float64(base) + float64(d)
	}
	return f, digits != ""
}

// isDecimal reports whether text is digits[.digits][e[sign]digits], with digits on at least one side of the point.
func isDecimal(s string) bool {
	whole := countDigits(s)
	s = s[whole:]
	fraction := 0
	if s != "" && s[0] == '.' {
		fraction = countDigits(s[1:])
		s = s[1+fraction:]
	}
	if whole+fraction == 0 {
		return false
	}
	if s == "" {
		return true
	}
	if s[0]|0x20 != 'e' {
		return false
	}
	exponent, _ := cutSign(s[1:])
	return exponent != "" && countDigits(exponent) == len(exponent)
}

// countDigits returns how many digits text begins with.
func countDigits(s string) int { return len(s) - len(strings.TrimLeft(s, "0123456789")) }

// Text returns a number as tostring prints it: 14 digits, and all digits of one from 10^14 to 10^21, or a whole one below that.
func Text(f float64) string {
	switch a := math.Abs(f); {
	case f == 0:
		return "0" // also -0
	case a < 1e21 && f == math.Trunc(f):
		return strconv.FormatFloat(f, 'f', 0, 64)
	case a >= 1e14 && a < 1e21:
		return strconv.FormatFloat(f, 'f', -1, 64)
	}
	return Spec{Verb: 'g', Precision: 14}.Float(f)
}

// Int64 returns a number without its fraction. One that is too large is the largest there is, and NaN is 0.
func Int64(f float64) int64 {
	switch {
	case f >= 1<<63:
		return math.MaxInt64
	case f < -1<<63:
		return math.MinInt64
	case f != f:
		return 0
	}
	return int64(f)
}
