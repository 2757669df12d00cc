package file

import (
	"context"
	"regexp"
	"testing"

	"github.com/quantix-kvm/guest-agent/wire/pb"
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
				got, err := (&replacer{old: []byte(text), text: []byte(text), by: []byte(by), find: p.find, expand: p.expand}).all(context.Background())
				if want := want.ReplaceAll([]byte(text), []byte(by)); err != nil || string(got) != string(want) {
					t.Errorf("%q in %q by %q: %q, %v; want %q", pattern, text, by, got, err, want)
				}
			}
		}
	}
}

// TestReplaceKeepsEndsOfLines: $ and \n are in front of CR LF, ends of lines stay, and new lines end as the others.
func TestReplaceKeepsEndsOfLines(t *testing.T) {
	for _, c := range []struct{ old, pattern, by, want string }{
		{"x=1\r\ny=1\r\n", "^x=.*$", "x=2", "x=2\r\ny=1\r\n"},
		{"a\r\nb\r\nc", "^b$", "B", "a\r\nB\r\nc"},
		{"a\r\nb\nc\r\n", "(?m)^(.)$", "<$1>", "<a>\r\n<b>\n<c>\r\n"},
		{"a\r\nb\r\n", "$", ";", "a;\r\nb;\r\n;"},
		{"a  \r\nb\t\r\n", `[ \t]+$`, "", "a\r\nb\r\n"},
		{"a\r\nb\r\n", `a\nb`, "a b", "a b\r\n"},
		{"a\r\nb\r\nc\r\n", `(a\n)(b\n)`, "$2$1", "b\r\na\r\nc\r\n"},
		{"a\r\nb\r\n", "^b$", "b\nc", "a\r\nb\r\nc\r\n"},
		{"a\r\nb\r\n", `\r$`, "", "a\nb\n"},
		{"a\r\nb\r\n", `\r\n`, "\n", "a\nb\n"},
		{"a\r\nb\r\n", `\x0D`, "", "a\nb\n"},
		{"a\nb\r\n", `\n`, "\r\n", "a\r\nb\r\n"},
		{"a\nb\n", `^b$`, "b\nc", "a\nb\nc\n"},
		{"a\rb\r\n", "^a.b$", "x", "x\r\n"},
		{"\r\n\r\n", "^$", "-", "-\r\n-\r\n-"},
		{"", "^$", "-", "-"},
	} {
		transform, err := replacing(&pb.ReplaceArgs{Pattern: c.pattern, Replacement: c.by, Again: true})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := transform(context.Background(), []byte(c.old)); err != nil || string(got) != c.want {
			t.Errorf("%q by %q in %q: %q, %v, want %q", c.pattern, c.by, c.old, got, err, c.want)
		}
	}
	for _, c := range []struct{ old, text, by, want string }{
		{"a\r\nb\r\n", "a\nb", "x\ny", "x\r\ny\r\n"}, {"a\r\n", "a", "b\nc", "b\r\nc\r\n"}, {"a\r\nb\n", "\r\n", "\n", "a\nb\n"},
		{"a\nb", "a\nb", "x\ny", "x\ny"}, {"aaa", "aa", "$1", "$1a"},
	} {
		transform, err := replacing(&pb.ReplaceArgs{Pattern: c.text, Replacement: c.by, Again: true, Literal: true})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := transform(context.Background(), []byte(c.old)); err != nil || string(got) != c.want {
			t.Errorf("%q by %q in %q: %q, %v, want %q", c.text, c.by, c.old, got, err, c.want)
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
		"%1": false, `\2 x`: false, `\g<name>`: false, "%1 $1": true, "100%": true, "%d": true,
		"$1_name": false, "$3": false, "${3}": false, "$names": false, "$USER": false, "$01x": false,
	} {
		if err := p.checkReferences(by); (err == nil) != good {
			t.Errorf("%q: %v", by, err)
		}
	}
}
