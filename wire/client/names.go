package client

import (
	"regexp"
	"strings"
	"unicode/utf8"
)

// escapes matches %80 to %FF, which stand for a byte that is not part of UTF-8 text, and the same with any number of 25
// behind the percent sign, which stand for one 25 less.
var escapes = regexp.MustCompile(`%(25)*[89A-F][0-9A-F]`)

// EscapePath writes a path of the guest as messages carry it, where texts are UTF-8. Requests of this package that take a
// path do it themselves, but for Push and Pull.
func EscapePath(path string) string {
	path = escapes.ReplaceAllStringFunc(path, func(s string) string { return "%25" + s[1:] })
	if utf8.ValidString(path) {
		return path
	}
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for len(path) > 0 {
		r, n := utf8.DecodeRuneInString(path)
		if r == utf8.RuneError && n == 1 {
			b.WriteString("%" + hex[path[0]>>4:path[0]>>4+1] + hex[path[0]&15:path[0]&15+1])
		} else {
			b.WriteString(path[:n])
		}
		path = path[n:]
	}
	return b.String()
}

// UnescapePath gives the path, or the name, that a message means.
func UnescapePath(text string) string {
	return escapes.ReplaceAllStringFunc(text, func(s string) string {
		if rest, again := strings.CutPrefix(s, "%25"); again {
			return "%" + rest
		}
		return string([]byte{unhex(s[1])<<4 | unhex(s[2])})
	})
}

func unhex(c byte) byte { return byte(strings.IndexByte("0123456789ABCDEF", c)) }
