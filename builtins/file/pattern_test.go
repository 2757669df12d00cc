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
