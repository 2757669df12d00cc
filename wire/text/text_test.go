package text

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestEscapePath(t *testing.T) {
	for raw, want := range map[string]string{
		"/etc/motd": "/etc/motd", "": "", "100%": "100%", "a%20b": "a%20b", "%": "%", "%25": "%25", "%7F": "%7F", "%ff": "%ff",
		"näme": "näme", "\uFFFD": "\uFFFD", "a\xffb": "a%FFb", "\x80": "%80", "\xc3": "%C3", "\xc3\xa4\xa4": "ä%A4",
		"%FF": "%25FF", "%25FF": "%2525FF", "%8": "%8", "%\xff": "%%FF", "%25\xff": "%25%FF", "a\x00\n": "a\x00\n",
	} {
		if got := EscapePath(raw); got != want {
			t.Errorf("EscapePath(%q) is %q, want %q", raw, got, want)
		}
		if got := UnescapePath(want); got != raw {
			t.Errorf("UnescapePath(%q) is %q, want %q", want, got, raw)
		}
	}
}

// Every name comes back, and every message can carry it.
func FuzzEscapePath(f *testing.F) {
	for _, raw := range []string{
		"", "/etc/hosts", "100%", "a%20b", "%80", "%2580", "%252580", "%FF\xff%", "\x80", "ä\xc3", "%25\x80", "%%80", "\xf0\x9f\x98",
	} {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		escaped := EscapePath(raw)
		if back := UnescapePath(escaped); back != raw {
			t.Errorf("%q came back from %q as %q", raw, escaped, back)
		}
		if !utf8.ValidString(escaped) {
			t.Errorf("%q became %q, which is not UTF-8", raw, escaped)
		}
		if !strings.Contains(raw, "%") && utf8.ValidString(raw) && escaped != raw {
			t.Errorf("%q became %q without need", raw, escaped)
		}
	})
}

func TestToValidUTF8(t *testing.T) {
	for _, c := range []struct {
		s         string
		limit     int
		want      string
		truncated bool
	}{
		{"plain ä €", 100, "plain ä €", false},
		{"a\xffb", 100, `a\xffb`, false},
		{"\uFFFD\x80", 100, "\uFFFD" + `\x80`, false},
		{"a\xffb", 6, `a\xffb`, false},
		{"a\xffb", 5, `a\xff`, true},
		{"a\xffb", 4, "a", true}, // not within an escape
		{"aäb", 2, "a", true},    // nor within a rune
		{"abc", 3, "abc", false},
		{"abc", 0, "", true},
		{"", 0, "", false},
	} {
		if got, truncated := ToValidUTF8Max(c.s, c.limit); got != c.want || truncated != c.truncated {
			t.Errorf("ToValidUTF8Max(%q, %d) is %q, %v; want %q, %v", c.s, c.limit, got, truncated, c.want, c.truncated)
		}
	}
}

func TestTrimPartialRune(t *testing.T) {
	for s, want := range map[string]string{
		"": "", "a": "a", "ä": "ä", "a\xc3": "a", "a\xe2\x82": "a", "a\xf0\x9f\x98": "a", "a\xff": "a\xff", "a\x80": "a\x80",
		"\x80\x80\x80": "\x80\x80\x80", "\xf0\x9f": "",
	} {
		if got := TrimPartialRune(s); got != want {
			t.Errorf("TrimPartialRune(%q) is %q, want %q", s, got, want)
		}
	}
}

func TestTruncate(t *testing.T) {
	for _, c := range []struct {
		s     string
		limit int
		want  string
	}{
		{"abcdef", 6, "abcdef"}, {"abcdef", 5, "ab…"}, {"ääää", 7, "ää…"}, {"ääää", 6, "ä…"}, {"abcdef", 3, "…"}, {"abcdef", 2, ""},
		{"abc", 0, ""},
	} {
		if got := Truncate(c.s, c.limit); got != c.want {
			t.Errorf("Truncate(%q, %d) is %q, want %q", c.s, c.limit, got, c.want)
		}
	}
}

// What comes out is UTF-8, within the limit, a beginning of what comes out without one, and the text itself where that is
// UTF-8.
func FuzzToValidUTF8(f *testing.F) {
	f.Add("a\xffb", 4)
	f.Add("ä€😀", 5)
	f.Add("\xf0\x9f\x98", 11)
	f.Fuzz(func(t *testing.T, s string, limit int) {
		all := ToValidUTF8(s)
		if !utf8.ValidString(all) || utf8.ValidString(s) && all != s {
			t.Errorf("%q became %q", s, all)
		}
		limit = max(limit, 0)
		part, truncated := ToValidUTF8Max(s, limit)
		if len(part) > limit || !utf8.ValidString(part) || !strings.HasPrefix(all, part) || truncated != (part != all) {
			t.Errorf("%q within %d bytes became %q, %v", s, limit, part, truncated)
		}
		if short := Truncate(all, limit); len(short) > limit || !utf8.ValidString(short) {
			t.Errorf("%q within %d bytes was truncated to %q", all, limit, short)
		}
	})
}
