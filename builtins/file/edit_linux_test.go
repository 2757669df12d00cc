package file_test

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins/file"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Each edit gives its result, and a second run changes nothing.
func TestLines(t *testing.T) {
	const sshd = "Port 22\n#PermitRootLogin yes\nUseDNS no\n"
	for name, c := range map[string]struct {
		old, want string
		in        *pb.LineArgs
	}{
		"a new line comes at the end":            {sshd, sshd + "X11Forwarding no\n", &pb.LineArgs{Line: "X11Forwarding no"}},
		"a line that stands there":               {sshd, sshd, &pb.LineArgs{Line: "UseDNS no"}},
		"the line that matches is replaced":      {sshd, "Port 22\nPermitRootLogin no\nUseDNS no\n", &pb.LineArgs{Line: "PermitRootLogin no", Match: `^#?PermitRootLogin\b`}},
		"the last of those that match":           {"a=1\nb=1\na=2\n", "a=1\nb=1\na=3\n", &pb.LineArgs{Line: "a=3", Match: "^a="}},
		"none matches, and the line is there":    {"x\na=3\n", "x\na=3\n", &pb.LineArgs{Line: "a=3", Match: "^b="}},
		"one of two became it":                   {"#a\na\n", "#a\na\n", &pb.LineArgs{Line: "a", Match: "^#a"}},
		"two that it does not match itself":      {"#a\n#a\n", "#a\na\n", &pb.LineArgs{Line: "a", Match: "^#a"}},
		"none matches":                           {"x\n", "x\na=3\n", &pb.LineArgs{Line: "a=3", Match: "^a="}},
		"the last line has no end":               {"x", "x\ny\n", &pb.LineArgs{Line: "y"}},
		"the last line has no end and matches":   {"x=1", "x=2", &pb.LineArgs{Line: "x=2", Match: "^x="}},
		"behind a section":                       {"[a]\n[b]\n", "[a]\nk=1\n[b]\n", &pb.LineArgs{Line: "k=1", After: `^\[a\]`}},
		"behind what is not there":               {"[b]\n", "[b]\nk=1\n", &pb.LineArgs{Line: "k=1", After: `^\[a\]`}},
		"before a line":                          {"a\nb\nb\n", "a\nx\nb\nb\n", &pb.LineArgs{Line: "x", Before: "^b"}},
		"ends of lines as another system has it": {"a\r\nb\r\n", "a\r\nb\r\nc\r\n", &pb.LineArgs{Line: "c"}},
		"and in a line that is replaced":         {"a=1\r\nb\r\n", "a=2\r\nb\r\n", &pb.LineArgs{Line: "a=2", Match: "^a="}},
		"an empty file":                          {"", "x\n", &pb.LineArgs{Line: "x"}},
		"a line goes":                            {"a\nb\na\n", "b\n", &pb.LineArgs{Line: "a", State: "absent"}},
		"lines that match go":                    {"a=1\nb\na=2", "b\n", &pb.LineArgs{Match: "^a=", State: "absent"}},
		"what is not there goes":                 {"b\n", "b\n", &pb.LineArgs{Line: "a", State: "absent"}},
		"all lines go":                           {"a\n", "", &pb.LineArgs{Line: "a", State: "absent"}},
		"behind a byte order mark":               {"\ufeffa=1\nb=1\n", "\ufeffa=2\nb=1\n", &pb.LineArgs{Line: "a=2", Match: "^a="}},
		"and it stands there":                    {"\ufeffa=1\n", "\ufeffa=1\n", &pb.LineArgs{Line: "a=1"}},
		"before what is behind the mark":         {"\ufeffa=1\r\n", "\ufeffx\r\na=1\r\n", &pb.LineArgs{Line: "x", Before: "^a"}},
		"the mark alone stays":                   {"\ufeffa=1\n", "\ufeff", &pb.LineArgs{Line: "a=1", State: "absent"}},
		"a line with the mark":                   {"\ufeffa=1\n", "a=1\n", &pb.LineArgs{Line: "a=1", Match: `^\x{FEFF}`}},
		"bytes that are no text":                 {"\xff\xfe\na\n", "\xff\xfe\nb\n", &pb.LineArgs{Line: "b", Match: "^a$"}},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, file.Config{})
			g.write("/f", c.old)
			c.in.Path = "/f"
			if did := g.changed("file.line", c.in); did != (c.old != c.want) {
				t.Errorf("changed: %v", did)
			}
			g.has("/f", c.want)
			if g.changed("file.line", c.in) {
				t.Error("a second run changes it")
			}
			g.has("/f", c.want)
		})
	}
}

// TestTextThatIsNotEdited: what is put into a file of UTF-16 would be no text there.
func TestTextThatIsNotEdited(t *testing.T) {
	g := newGuest(t, file.Config{})
	for _, old := range []string{"\xff\xfea\x00\r\x00\n\x00", "\xfe\xff\x00a\x00\r\x00\n"} {
		g.write("/f", old)
		for op, in := range map[string]proto.Message{
			"file.line":    &pb.LineArgs{Path: "/f", Line: "b"},
			"file.block":   &pb.BlockArgs{Path: "/f", Marker: "web", Text: "b"},
			"file.replace": &pb.ReplaceArgs{Path: "/f", Pattern: "a", Replacement: "b"},
		} {
			if got := g.refused("refused", op, in); !strings.Contains(got, "UTF-16") {
				t.Errorf("%s of %q: %s", op, old, got)
			}
		}
		g.has("/f", old)
	}
}

// TestReplaceBehindAMark: a byte order mark is no part of the first line, unless the pattern is about it.
func TestReplaceBehindAMark(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.write("/f", "\ufeffa\nb\n")
	g.changed("file.replace", &pb.ReplaceArgs{Path: "/f", Pattern: "^a", Replacement: "c"})
	g.has("/f", "\ufeffc\nb\n")
	g.changed("file.replace", &pb.ReplaceArgs{Path: "/f", Pattern: `\A\x{feff}`})
	g.has("/f", "c\nb\n")
	g.write("/f", "\ufeffa\n")
	g.changed("file.replace", &pb.ReplaceArgs{Path: "/f", Pattern: "\ufeff", Literal: true})
	g.has("/f", "a\n")
}

func TestLinesOfAFileThatIsNotThere(t *testing.T) {
	g := newGuest(t, file.Config{})
	if g.changed("file.line", &pb.LineArgs{Path: "/none", Line: "x", State: "absent"}) {
		t.Error("something changed")
	}
	g.names("/")
	if !g.changed("file.line", &pb.LineArgs{Path: "/d/new", Line: "x", Parents: true, Mode: "0600"}) {
		t.Error("nothing changed")
	}
	g.has("/d/new", "x\n")
	g.told("created /d", "created /d/new")
	g.refused("not_found", "file.replace", &pb.ReplaceArgs{Path: "/none", Pattern: "a", Replacement: "b"})
	g.refused("is_directory", "file.line", &pb.LineArgs{Path: "/d", Line: "x"})
}

func TestLinesThatMakeNoSense(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.write("/f", "a\n")
	for want, in := range map[string]*pb.LineArgs{
		"neither line nor match":       {},
		"line is not said":             {Match: "a"},
		"neither \"present\" nor":      {Line: "a", State: "gone"},
		"end of a line":                {Line: "a\nb"},
		"both after and before":        {Line: "b", After: "a", Before: "a"},
		"not by both":                  {Line: "b", Match: "a", State: "absent"},
		"missing closing ): `(`":       {Line: "b", Match: "("},
		"where a new line comes":       {Line: "b", After: "a", State: "absent"},
		"invalid or unsupported Perl ": {Line: "b", Match: "(?=a)"},
	} {
		in.Path = "/f"
		if got := g.refused("invalid", "file.line", in); !strings.Contains(got, want) {
			t.Errorf("%v: %s, want %s", in, got, want)
		}
	}
	g.has("/f", "a\n")
}

func TestReplace(t *testing.T) {
	for name, c := range map[string]struct {
		old, want string
		in        *pb.ReplaceArgs
	}{
		"each place":             {"a b a\n", "c b c\n", &pb.ReplaceArgs{Pattern: "a", Replacement: "c"}},
		"groups":                 {"k = 1\nj = 2\n", "k: 1\nj: 2\n", &pb.ReplaceArgs{Pattern: `(\w+) = (\d+)`, Replacement: "$1: $2"}},
		"lines":                  {"a\nba\n", "x\nba\n", &pb.ReplaceArgs{Pattern: "^a$", Replacement: "x"}},
		"plain text":             {"a.b axb $1\n", "z axb $1\n", &pb.ReplaceArgs{Pattern: "a.b", Replacement: "z", Literal: true}},
		"a dollar":               {"price\n", "$1\n", &pb.ReplaceArgs{Pattern: "price", Replacement: "$$1"}},
		"nothing matches":        {"a\n", "a\n", &pb.ReplaceArgs{Pattern: "b", Replacement: "c"}},
		"what is there already":  {"c\n", "c\n", &pb.ReplaceArgs{Pattern: "c", Replacement: "c"}},
		"over the ends of lines": {"a\nb\n", "ab\n", &pb.ReplaceArgs{Pattern: `a\nb`, Replacement: "ab"}},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuest(t, file.Config{})
			g.write("/f", c.old)
			c.in.Path = "/f"
			if did := g.changed("file.replace", c.in); did != (c.old != c.want) {
				t.Errorf("changed: %v", did)
			}
			g.has("/f", c.want)
			if g.changed("file.replace", c.in) {
				t.Error("a second run changes it")
			}
		})
	}
}

func TestAReplacementThatWouldGoOnForEver(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.write("/f", "a\n")
	in := &pb.ReplaceArgs{Path: "/f", Pattern: "a", Replacement: "aa"}
	if got := g.refused("invalid", "file.replace", in); !strings.Contains(got, "a second run") {
		t.Error(got)
	}
	in.Again = true
	g.changed("file.replace", in)
	g.has("/f", "aa\n")
	g.refused("invalid", "file.replace", &pb.ReplaceArgs{Path: "/f", Pattern: "", Replacement: "b"})
	g.write("/big", strings.Repeat("a", 1<<20))
	for _, in := range []*pb.ReplaceArgs{
		{Pattern: "a", Replacement: strings.Repeat("b", 100)},
		{Pattern: "a", Replacement: strings.Repeat("b", 100), Literal: true},
		{Pattern: "(?s).*", Replacement: strings.Repeat("$0", 1000)},
		{Pattern: strings.Repeat("(a)", 21), Replacement: ""},
	} {
		in.Path = "/big"
		g.refused("too_large", "file.replace", in)
	}
}

// Values stay what they are in the language of the file, and no value becomes a line of its own.
func TestTemplatesEscape(t *testing.T) {
	g := newGuest(t, file.Config{})
	vars := map[string]string{"v": "it's <\"a\">\nb: $(c)"}
	text := "{{v|shell}}\n{{ v | json }}\n{{v|yaml}}\n{{v|xml}}\n{{v|raw}}\n"
	g.changed("file.template", &pb.TemplateArgs{Path: "/t", Text: text, Vars: vars})
	json := `"it's <\"a\">\nb: $(c)"` + "\n"
	g.has("/t", "'it'\\''s <\"a\">\nb: $(c)'\n"+json+json+"it&#39;s &lt;&#34;a&#34;&gt;&#xA;b: $(c)\nit's <\"a\">\nb: $(c)\n")
	for text, want := range map[string]string{"{{v}}": "more than one line", "{{v|sql}}": "there is no filter sql"} {
		if got := g.refused("invalid", "file.template", &pb.TemplateArgs{Path: "/t", Text: text, Vars: vars}); !strings.Contains(got, want) {
			t.Error(got)
		}
	}
}

// What ends a line to some reader, or is not printable to it, is escaped where that can be, and refused where not.
func TestTemplatesEscapeControlCharacters(t *testing.T) {
	g := newGuest(t, file.Config{})
	for value, want := range map[string]string{
		"a\u0085b": `"a\u0085b" "a\u0085b" a&#x85;b`, "a\x7fb": `"a\u007fb" "a\u007fb" a&#x7F;b`, "a\u2028\u2029": `"a\u2028\u2029" "a\u2028\u2029" a&#x2028;&#x2029;`,
		"\ufeffa\u009f": `"\ufeffa\u009f" "\ufeffa\u009f" &#xFEFF;a&#x9F;`, "é😀\u00a0": "\"é😀\u00a0\" \"é😀\u00a0\" é😀\u00a0",
	} {
		vars := map[string]string{"v": value}
		g.changed("file.template", &pb.TemplateArgs{Path: "/t", Text: "{{v|json}} {{v|yaml}} {{v|xml}}", Vars: vars})
		g.has("/t", want)
		if strings.ContainsAny(value, "\u0085\x7f\u2028\u009f") {
			g.refused("invalid", "file.template", &pb.TemplateArgs{Path: "/t", Text: "{{v}}", Vars: vars})
		}
	}
	for _, value := range []string{"\x00", "a\x1b", "\xff"} {
		g.refused("invalid", "file.template", &pb.TemplateArgs{Path: "/t", Text: "{{v|xml}}", Vars: map[string]string{"v": value}})
	}
}
