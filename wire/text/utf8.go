package text

import (
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

const lowerHex = "0123456789abcdef"

// ellipsis marks what Truncate cut.
const ellipsis = "…"

// ToValidUTF8 returns s with \xNN, in lower case, in place of each byte that is not part of valid UTF-8. Unlike
// strings.ToValidUTF8 it keeps the value of each byte.
func ToValidUTF8(s string) string {
	out, _ := ToValidUTF8Max(s, math.MaxInt)
	return out
}

// invalidGrowth is by how much a byte becomes longer that is written as \xNN.
const invalidGrowth = len(`\xNN`) - 1

// invalidBytes returns how many bytes of a text are not UTF-8.
func invalidBytes(s string) (count int) {
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && size == 1 {
			count++
		}
		i += size
	}
	return count
}

// ToValidUTF8Max is ToValidUTF8 with a result of at most limit bytes. It cuts neither within a rune nor within a \xNN;
// truncated reports whether it cut.
func ToValidUTF8Max(s string, limit int) (out string, truncated bool) {
	if len(s) <= limit && utf8.ValidString(s) {
		return s, false
	}
	var b strings.Builder
	b.Grow(min(len(s)+invalidGrowth*invalidBytes(s), max(limit, 0))) // exactly: of 15 MiB there are no copies
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		invalid := r == utf8.RuneError && size == 1
		width := size
		if invalid {
			width = 1 + invalidGrowth
		}
		if width > limit-b.Len() {
			return b.String(), true
		}
		if invalid {
			b.Write([]byte{'\\', 'x', lowerHex[s[i]>>4], lowerHex[s[i]&15]})
		} else {
			b.WriteString(s[i : i+size])
		}
		i += size
	}
	return b.String(), false
}

// TrimPartialRune returns s without the bytes at its end that begin a rune and do not complete it. It is for text that was cut
// at some byte, in which they are no sign of another encoding.
func TrimPartialRune(s string) string {
	for n := 1; n < utf8.UTFMax && n <= len(s); n++ {
		end := s[len(s)-n:]
		if !utf8.RuneStart(end[0]) {
			continue
		}
		if utf8.FullRuneInString(end) {
			return s
		}
		return s[:len(s)-n]
	}
	return s
}

// Truncate returns s, or what of it fits into limit bytes together with an ellipsis after it. It does not cut within a rune.
// A limit below the three bytes of an ellipsis leaves nothing.
func Truncate(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	end := limit - len(ellipsis)
	if end < 0 {
		return ""
	}
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + ellipsis
}

// EscapeFunc returns s with escapes of strconv.Quote, such as \n, \x1b and \u202e, in place of the runes that escape is true
// for, and of bytes that are not UTF-8.
func EscapeFunc(s string, escape func(rune) bool) string {
	if utf8.ValidString(s) && strings.IndexFunc(s, escape) < 0 {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		if r == utf8.RuneError && size == 1 || escape(r) {
			quoted := strconv.Quote(s[:size])
			b.WriteString(quoted[1 : len(quoted)-1])
		} else {
			b.WriteString(s[:size])
		}
		s = s[size:]
	}
	return b.String()
}
