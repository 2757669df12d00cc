// Package text writes what need not be UTF-8 into the string fields of messages, which must be, and reads patterns of names.
//
//	a path or a name ──EscapePath──► %NN ──UnescapePath──► the same bytes
//	any other text ──ToValidUTF8──► \xNN, for people: there is no way back
//
// Not here: quoting for a shell or a terminal.
package text

import (
	"strings"
	"unicode/utf8"
)

const upperHex = "0123456789ABCDEF"

// EscapePath returns a path or a name as messages carry it. Each byte that is not part of valid UTF-8 becomes %80 to %FF. What
// looks like such an escape already gets 25 after its percent sign (%FF becomes %25FF, and that %2525FF), so that UnescapePath
// restores every name. All other text stays as it is, "100%" and "a%20b" too.
func EscapePath(raw string) string {
	if utf8.ValidString(raw) && !strings.Contains(raw, "%") {
		return raw
	}
	var b strings.Builder
	for i := 0; i < len(raw); {
		if _, size := utf8.DecodeRuneInString(raw[i:]); size > 1 {
			b.WriteString(raw[i : i+size])
			i += size
			continue
		}
		switch c := raw[i]; {
		case c >= utf8.RuneSelf:
			b.Write([]byte{'%', upperHex[c>>4], upperHex[c&15]})
		case c == '%' && escapeLen(raw[i:]) > 0:
			b.WriteString("%25")
		default:
			b.WriteByte(c)
		}
		i++
	}
	return b.String()
}

// UnescapePath returns the path or the name that EscapePath was given. Every text stands for one.
func UnescapePath(escaped string) string {
	if !strings.Contains(escaped, "%") {
		return escaped
	}
	var b strings.Builder
	for i := 0; i < len(escaped); {
		switch n := escapeLen(escaped[i:]); {
		case n == 3:
			b.WriteByte(unhex(escaped[i+1])<<4 | unhex(escaped[i+2]))
			i += n
		case n > 3:
			b.WriteByte('%')
			b.WriteString(escaped[i+3 : i+n])
			i += n
		default:
			b.WriteByte(escaped[i])
			i++
		}
	}
	return b.String()
}

// escapeLen returns the length of the escape that s begins with: a percent sign, any number of 25, and 80 to FF; 0 if none.
func escapeLen(s string) int {
	if s[0] != '%' {
		return 0
	}
	i := 1
	for strings.HasPrefix(s[i:], "25") {
		i += 2
	}
	if len(s) < i+2 || !strings.Contains(upperHex[8:], s[i:i+1]) || !strings.Contains(upperHex, s[i+1:i+2]) {
		return 0
	}
	return i + 2
}

func unhex(c byte) byte {
	if c >= 'A' {
		return c - 'A' + 10
	}
	return c - '0'
}
