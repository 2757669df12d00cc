package process

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/quantix-kvm/guest-agent/wire/text"
)

func TestCommandLine(t *testing.T) {
	for _, c := range []struct {
		raw       string
		cut, bare bool
		limit     int
		want      string
	}{
		{raw: "", want: ""},
		{raw: "/sbin/init\x00", want: "/sbin/init"},
		{raw: "sh\x00-c\x00a b\x00", want: "sh -c 'a b'"},
		{raw: "sh\x00\x00", want: "sh ''"},
		{raw: "sh\x00\x00x\x00", want: "sh '' x"},
		{raw: "a\x00it's\x00$x\x00", want: `a 'it'\''s' '$x'`},
		{raw: "a\x00\x1b]0;'\\\u202e\xff\x00", want: `a $'\x1b]0;\'\\\u202e\xff'`},
		{raw: "a\x00ä\x00", want: "a ä"},
		{raw: "nginx: worker process\x00\x00\x00\x00\x00", want: "nginx: worker process"},
		{raw: "sshd: root\n", want: `sshd: root\n`},
		{raw: "postgres\x00\x00\x00\x00", want: "postgres"},
		{raw: "nginx: worker process\x00", bare: true, want: "nginx:"},
		{raw: "mysql\x00-psecret\x00", bare: true, want: "mysql"},
		{raw: "abc\x00def", cut: true, want: "abc def…"},
		{raw: "abc\x00d\xc3", cut: true, want: "abc d…"},
		{raw: "abc\x00def\x00", limit: 7, want: "abc def"},
		{raw: "abc\x00defg\x00", limit: 7, want: "abc …"},
		{raw: "abc\x00defg", limit: 7, cut: true, want: "abc …"},
	} {
		if c.limit == 0 {
			c.limit = maxText
		}
		if got := commandLine([]byte(c.raw), c.cut, c.bare, c.limit); got != c.want {
			t.Errorf("%q: %s, not %s", c.raw, got, c.want)
		}
	}
}

// However many processes there are, and whatever their texts, those of a list have one bound; few of them, or short ones, are
// whole.
func TestTextsOfAList(t *testing.T) {
	long := strings.Repeat("x", 2*maxText)
	for _, n := range []int{0, 1, 300, 2500, 10_000, 30_000, 1 << 17, 1 << 22} {
		b, total, least := newBudget(n), 0, maxText
		for range n {
			b.next()
			for range 4 {
				got := len(b.take(long))
				total += got
				least = min(least, got)
			}
		}
		if total > maxTexts || n <= 300 && least < maxText || n >= 2500 && total < maxTexts/2 && n < maxTexts/4 {
			t.Errorf("%d processes: %d bytes in all, %d at least", n, total, least)
		}
	}
	b := newBudget(30_000)
	for range 29_990 {
		b.next()
		b.take("sleep 300")
	}
	if b.next(); b.take(long) != text.Truncate(long, maxText) {
		t.Error("what the others left is not used")
	}
}

// Whatever a process wrote there, a command line is printable, within its limit, and safe for a field of text.
func FuzzCommandLine(f *testing.F) {
	for _, raw := range []string{
		"", "sh\x00-c\x00a b\x00", "\x00", "\xff\x00\n", "nginx: x\x00\x00\x00", "a\x00'\\\x1b", "\u202e",
		strings.Repeat("…", 30),
	} {
		f.Add([]byte(raw), true, false, 64)
		f.Add([]byte(raw), false, true, 70)
	}
	f.Fuzz(func(t *testing.T, raw []byte, cut, bare bool, limit int) {
		limit = 64 + int(uint(limit)%maxText)
		got := commandLine(raw, cut, bare, limit)
		if len(got) > limit || !utf8.ValidString(got) || strings.IndexFunc(got, special) >= 0 {
			t.Errorf("%q in %d bytes: %q", raw, limit, got)
		}
	})
}
