// Package diff shows the differences of two texts.
//
//	old, new ──► unified diff, at most Max bytes, whole lines
//
// Not here: whether the reader may see the text.
package diff

import (
	"bytes"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/diff"
)

const (
	// Max is the maximum length of a diff in bytes: the protocol's bound for one change.
	Max = 64 << 10
	// MaxText is the maximum length of each text in bytes: it bounds time and memory.
	MaxText = 1 << 20
	// MaxLines is the maximum number of lines of each text: a comparison takes some 200 bytes for each.
	MaxLines = 20_000
)

// IsText reports whether content can be shown: it is UTF-8 without NUL bytes.
func IsText(content []byte) bool { return utf8.Valid(content) && bytes.IndexByte(content, 0) < 0 }

func tooLong(text []byte) bool {
	return len(text) > MaxText || bytes.Count(text, []byte("\n")) > MaxLines
}

// Unified returns the difference of two texts in the unified format, with name for both and no times in the header. A nil text
// stands for a file that does not exist. truncated: the diff is incomplete, or empty since a text exceeds MaxText or MaxLines.
func Unified(name string, old, new []byte) (text string, truncated bool) {
	if tooLong(old) || tooLong(new) {
		return "", true
	}
	from, to := "a"+name, "b"+name
	if old == nil {
		from = "/dev/null"
	}
	if new == nil {
		to = "/dev/null"
	}
	out := diff.Diff(from, old, to, new)
	if _, rest, ok := bytes.Cut(out, []byte("\n")); ok { // the first line repeats the two names
		out = rest
	}
	if len(out) <= Max {
		return string(out), false
	}
	out = out[:Max]
	return string(out[:bytes.LastIndexByte(out, '\n')+1]), true
}
