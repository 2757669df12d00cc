package file

import (
	"context"
	"regexp"
	"testing"
)

// What is replaced is what package regexp replaces, in lines.
func TestReplaceAllIsThatOfRegexp(t *testing.T) {
	patterns := []string{
		"a", "^a$", "^", "$", `\b`, "a*", "(a)|(b)", `(?P<x>a+)(b?)`, `\Aa`, `a\z`, `(?i)A`, "(?s)a.b", "(?U)a+", `\Qa.`, "a|", "x*?", `[^a]`,
		`(?-m)^a`, `\n`, "é", `\pL+`, "(?:a(?:.*b)?)", `a{2,3}`, `\x{ff}|.`, "()", `\B`,
	}
	texts := []string{"", "a", "aaab\nab a.b\n", "b\na\r\na", "\xff\xfea\xe2\x82\na", "éaé\nxaab", "a.a.\n\n", "ABab\n"}
	for _, pattern := range patterns {
		p, err := compile(pattern, true)
		if err != nil {
			t.Fatal(pattern, err)
		}
		want := regexp.MustCompile("(?m)" + pattern)
		for _, text := range texts {
			for _, by := range []string{"", "-", "<$0>", "$1$$", "${x}y$", "$2x$1 $$$0"} {
				got, err := p.replaceAll(context.Background(), []byte(text), []byte(by))
				if want := want.ReplaceAll([]byte(text), []byte(by)); err != nil || string(got) != string(want) {
					t.Errorf("%q in %q by %q: %q, %v; want %q", pattern, text, by, got, err, want)
				}
			}
		}
	}
}

// TestReferencesToGroups: a replacement refers to groups that the pattern has.
func TestReferencesToGroups(t *testing.T) {
	p, err := compile(`(user) (?P<name>\w+)`, true)
	if err != nil {
		t.Fatal(err)
	}
	for by, good := range map[string]bool{
		"$1": true, "${1}_name": true, "$0 $2": true, "$name": true, "${name}s": true, "$$1_x": true, "5 $": true, "a$ b": true, "": true,
		"$1_name": false, "$3": false, "${3}": false, "$names": false, "$USER": false, "$01x": false,
	} {
		if err := p.checkReferences(by); (err == nil) != good {
			t.Errorf("%q: %v", by, err)
		}
	}
}

// TestGlobOfShells: what a shell knows and a pattern here does not is refused.
func TestGlobOfShells(t *testing.T) {
	for pattern, good := range map[string]bool{
		"/a/*.conf": true, "/[!a]*": true, "/[a-z]?": true, "/[.]x": true, `/\{a\}`: true, `/\[:x`: true,
		"/*.{conf,cfg}": false, "/[[:digit:]]": false, "/[![:space:]]*": false, "/[[.a.]]": false, "/[[=a=]]": false,
	} {
		if got := negatedClass.Replace(pattern); pattern == "/[!a]*" && got != "/[^a]*" || pattern[1] == '\\' && got != pattern {
			t.Errorf("%s becomes %s", pattern, got)
		}
		if why := unknownInGlob(pattern); (why == "") != good {
			t.Errorf("%s: %s", pattern, why)
		}
	}
}
