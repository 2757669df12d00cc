package process

import (
	"bytes"
	"strings"
	"unicode"

	"github.com/quantix-kvm/guest-agent/wire/text"
)

// maxText bounds what a list has of one text, such as a command line or a path, and maxTexts what it has of all texts, in
// bytes, so that the reply fits into a frame.
const (
	maxText  = 4096
	maxTexts = 8 << 20
)

// budget is what is left of maxTexts for the texts of a list. An entry may use its even share of it; what it leaves is shared
// by those that come after it.
type budget struct{ left, entries, share int }

func newBudget(entries int) *budget { return &budget{left: maxTexts, entries: entries} }

// next begins the next entry.
func (b *budget) next() {
	b.share = b.left / max(b.entries, 1)
	b.entries--
}

// limit is how many bytes the next text of the entry may have.
func (b *budget) limit() int { return min(maxText, b.share) }

// take cuts a text of the entry to what it may have, and counts it.
func (b *budget) take(s string) string {
	s = text.Truncate(s, b.limit())
	b.share -= len(s)
	b.left -= len(s)
	return s
}

// special reports whether a rune is escaped: what is not printable could move the cursor, or look like other text.
func special(r rune) bool { return !unicode.IsPrint(r) }

// printable returns text of a process with escapes in place of what is not printable.
func printable(s string) string { return text.EscapeFunc(s, special) }

// commandLine returns a /proc/PID/cmdline, in which a NUL is after each argument, as a shell would read it, in at most limit
// bytes. cut says that it goes on after raw. bare leaves out the arguments.
func commandLine(raw []byte, cut, bare bool, limit int) string {
	if len(raw) == 0 {
		return ""
	}
	if cut {
		raw = []byte(text.TrimPartialRune(string(raw)))
	}
	title, ok := titleOf(raw)
	switch {
	case ok && bare:
		title, _, _ = strings.Cut(title, " ")
		return text.Truncate(printable(title), limit)
	case ok:
		return ending(printable(title), cut, limit)
	case bare:
		program, _, _ := bytes.Cut(raw, []byte{0})
		return text.Truncate(quote(string(program)), limit)
	}
	var b strings.Builder
	for arg := range strings.SplitSeq(strings.TrimSuffix(string(raw), "\x00"), "\x00") {
		if b.Len() > limit {
			break
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(quote(arg))
	}
	return ending(b.String(), cut, limit)
}

// ending returns a line in at most limit bytes, with … at its end where it goes on.
func ending(line string, more bool, limit int) string {
	if more {
		line += "…"
	}
	return text.Truncate(line, limit)
}

// titleOf recognizes a process that has written a title over its arguments, such as "nginx: worker process": it is one text
// with a blank, or with more than an empty argument after it, since what remains of the arguments is zeroed.
func titleOf(raw []byte) (title string, ok bool) {
	first, rest, _ := bytes.Cut(raw, []byte{0})
	if len(first) == 0 || len(bytes.Trim(rest, "\x00")) > 0 {
		return "", false
	}
	return string(first), bytes.IndexByte(first, ' ') >= 0 || len(rest) > 1
}

// quote returns an argument as a shell would read it. What is not printable makes it $'…', which bash and zsh read.
func quote(arg string) string {
	switch escaped := printable(arg); {
	case escaped != arg:
		return "$'" + strings.ReplaceAll(printable(strings.ReplaceAll(arg, `\`, `\\`)), "'", `\'`) + "'"
	case arg == "" || strings.ContainsFunc(arg, shellSpecial):
		return "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
	}
	return arg
}

// shellSpecial reports whether a character means more than itself to a shell.
func shellSpecial(r rune) bool {
	plain := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r > 0x7f
	return !plain && !strings.ContainsRune("-_./:=,+@%", r)
}
