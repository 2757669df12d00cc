package text

import (
	"path"
	"strings"
	"testing"
)

// TestGlob: a pattern matches what a shell has it match, or is none.
func TestGlob(t *testing.T) {
	for pattern, c := range map[string]struct{ matches, others string }{
		"*.conf": {"a.conf .conf", "a.confx a"}, "[!a]*": {"b ba ! ^", "a ab"}, "[^a]": {"b", "a ^a"}, "[a-c]?": {"ax", "dx a"},
		"[]]": {"]", "a []]"}, "[!]x]": {"a -", "] x"}, "[-a]": {"- a", "b"}, "[a-]": {"- a", "b"}, "[.-]": {". -", "/ a"},
		"[!-]": {"a", "-"}, "[a-c-e]": {"a c - e", "d"}, "[[]x": {"[x", "x"}, "[!!]": {"a ^", "!"}, "[a^]": {"a ^", "b"},
		`[\]a]`: {"] a", "b"}, `[\-a]`: {"- a", "b"}, `\[!a]`: {"[!a]", "b"}, `\{a\}`: {"{a}", "a"}, `a\*`: {"a*", "ab"},
		`\[:x`: {"[:x", "x"}, "a}": {"a}", "a"}, "[à-ü]": {"é", "e"}, "[%--]": {"% - &", "a"}, "]": {"]", "a"}, "a[^!]": {"ab", "a!"},
	} {
		got, err := Glob(pattern)
		if err != nil {
			t.Errorf("%s: %v", pattern, err)
		}
		for want, names := range map[bool]string{true: c.matches, false: c.others} {
			for _, name := range strings.Fields(names) {
				if is, err := path.Match(got, name); err != nil || is != want {
					t.Errorf("%s, which is %s, with %s: %v, %v", pattern, got, name, is, err)
				}
			}
		}
	}
	for _, pattern := range []string{"[[]x", "[a^]", "[^^]", "a[bc]*?"} { // and one of both is the same, without a backslash
		if got, err := Glob(pattern); err != nil || got != pattern {
			t.Errorf("%s is %s, %v", pattern, got, err)
		}
	}
	for pattern, want := range map[string]string{
		"a**": "** is not known", "**/x": "** is not known", "*.{a,b}": "braces", "[[:digit:]]": "named classes",
		"[![:space:]]*": "named classes", "[a[.b.]]": "named classes", "[[=a=]]": "named classes",
		"[": "no pattern", "[!": "no pattern", "[]": "no pattern", "[a": "no pattern", "[a-": "no pattern", `\`: "no pattern",
		`[\`: "no pattern", `[a-\`: "no pattern", "[a/b]": "no pattern", "[!]": "no pattern",
	} {
		if got, err := Glob(pattern); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %s, %v", pattern, got, err)
		}
	}
}
