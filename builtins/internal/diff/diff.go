// Package diff shows a person what became of a text.
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
	// Max is the length of a diff in bytes: the protocol's bound for one change.
	Max = 64 << 10
	// MaxText is the length of a text in bytes up to which it is compared at all: it bounds time and memory.
	MaxText = 1 << 20
)

// IsText says whether content is something to show: UTF-8 without zero bytes.
func IsText(content []byte) bool { return utf8.Valid(content) && bytes.IndexByte(content, 0) < 0 }

// Unified gives the difference of two texts in the unified format, without a time in its head, and whether something
// was left out of it. The name stands for both texts; one that is nil was not there, or is not any more.
func Unified(name string, old, new []byte) (text string, truncated bool) {
	if len(old) > MaxText || len(new) > MaxText {
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
