package fsys_test

import (
	"testing"
	"unicode/utf8"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
)

func TestAnEscapedNameIsUTF8AndComesBack(t *testing.T) {
	for raw, escaped := range map[string]string{
		"plain":         "plain",
		"grüße":         "grüße",
		"100%":          "100%",
		"a%20b%25%7F":   "a%20b%25%7F",
		"\xff":          "%FF",
		"a\xe9b":        "a%E9b",
		"%FF":           "%25FF",
		"%25FF":         "%2525FF",
		"%2525":         "%2525",
		"%ff":           "%ff",
		"%":             "%",
		"%2":            "%2",
		"\xed\xa0\x80x": "%ED%A0%80x",
		"%\xff":         "%%FF",
		"%25\xff":       "%25%FF",
		"\uFFFD":        "\uFFFD",
	} {
		if got := fsys.Escape(raw); got != escaped {
			t.Errorf("Escape(%q) is %q, want %q", raw, got, escaped)
		}
		if got := fsys.Unescape(escaped); got != raw {
			t.Errorf("Unescape(%q) is %q, want %q", escaped, got, raw)
		}
	}
}

func FuzzEveryNameComesBackFromItsEscapedForm(f *testing.F) {
	for _, seed := range []string{"%25%FF", "%2525%25FF\xff", "ä%C3%A4", "%25\xff%", "%%25FF"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		escaped := fsys.Escape(raw)
		if !utf8.ValidString(escaped) {
			t.Errorf("Escape(%q) is not UTF-8: %q", raw, escaped)
		}
		if back := fsys.Unescape(escaped); back != raw {
			t.Errorf("%q became %q and came back as %q", raw, escaped, back)
		}
	})
}

func TestWithinComparesElements(t *testing.T) {
	for _, c := range []struct {
		path, dir string
		want      bool
	}{
		{"/tmp/a", "/tmp", true}, {"/tmp", "/tmp", true}, {"/tmpfoo", "/tmp", false},
		{"/tmp", "/tmp/a", false}, {"/etc", "/", true}, {"/", "/", true}, {"/", "/etc", false},
	} {
		if got := fsys.Within(c.path, c.dir); got != c.want {
			t.Errorf("Within(%s, %s) is %v", c.path, c.dir, got)
		}
	}
}
