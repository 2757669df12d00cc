package lua

import (
	"bytes"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	glua "github.com/yuin/gopher-lua"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

var update = flag.Bool("update", false, "ask lua5.1 for the results of the cases, and write testdata/*.cases")

// TestAsLua51 compares the libraries with what Debian's lua5.1 returned for the same expressions: some written by hand, most
// generated. go test -update generates and records them again.
func TestAsLua51(t *testing.T) {
	for _, c := range []struct {
		name  string
		cases func() []string
		least int // so many different ones
	}{
		{"find", func() []string { return patternCases("string.find(%s, %s)", 1, byHandFind) }, 500},
		{"match", func() []string { return patternCases("string.match(%s, %s)", 2, nil) }, 500},
		{"gmatch", func() []string { return patternCases("collect(%s, %s)", 3, nil) }, 500},
		{"gsub", gsubCases, 500},
		{"format", formatCases, 300},
		{"table", tableCases, 200},
		{"number", numberCases, 300},
		{"string", stringCases, 200},
		{"words", wordCases, 1000},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join("testdata", c.name+".cases")
			if *update {
				record(t, path, c.cases())
			}
			recorded, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSuffix(string(recorded), "\n"), "\n")
			if len(lines) < c.least {
				t.Errorf("there are %d cases, want %d", len(lines), c.least)
			}
			m := prepared(t)
			for _, line := range lines {
				source, want, _ := strings.Cut(line, "\t=>\t")
				if got := m.evaluate(source); !same(got, want) {
					t.Errorf("%s gives\n%s, want\n%s", source, got, want)
				}
			}
		})
	}
}

// record writes the results of Lua 5.1.
func record(t *testing.T, path string, cases []string) {
	t.Helper()
	seen := map[string]bool{}
	var in, out, stderr bytes.Buffer
	for _, c := range cases {
		if !seen[c] {
			seen[c] = true
			fmt.Fprintln(&in, c)
		}
	}
	cmd := exec.Command("lua5.1", "testdata/record.lua", "testdata/prelude.lua")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = &in, &out, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s (apt-get install lua5.1)", err, &stderr)
	}
	if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// prepared returns a machine with the functions that the cases use.
func prepared(t testing.TB) *machine {
	t.Helper()
	m := newMachine(&pb.RunnerStart{Name: "case"}, nil, newStopper())
	t.Cleanup(m.L.Close)
	prelude, err := os.ReadFile("testdata/prelude.lua")
	if err != nil {
		t.Fatal(err)
	}
	f, _, err := m.compile("prelude", prelude)
	if err == nil {
		_, err = m.callProtected(f)
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// evaluate returns the values of an expression, formatted as in record.lua.
func (m *machine) evaluate(source string) string {
	f, _, err := m.compile("case", []byte("return "+source))
	if err != nil {
		return "syntax: " + err.Error()
	}
	top := m.L.GetTop()
	m.L.Push(f)
	if err := m.protect(0, glua.MultRet); err != nil {
		_, message := m.splitPosition(err.(*glua.ApiError).Object.String())
		return "error " + formatValue(glua.LString(message))
	}
	var parts []string
	for i := top + 1; i <= m.L.GetTop(); i++ {
		parts = append(parts, formatValue(m.L.Get(i)))
	}
	m.L.SetTop(top)
	return strings.Join(parts, "\t")
}

func formatValue(v glua.LValue) string {
	switch v := v.(type) {
	case glua.LString:
		var out strings.Builder
		for _, c := range []byte(v) {
			if c < ' ' || c > '~' {
				fmt.Fprintf(&out, `\%03d`, c)
			} else {
				out.WriteByte(c)
			}
		}
		return "s:" + out.String()
	case glua.LNumber:
		if v != v {
			return "n:nan"
		}
		return "n:" + strconv.FormatFloat(float64(v), 'g', -1, 64)
	case glua.LBool:
		return v.String()
	}
	return v.Type().String()
}

// same compares numbers as numbers. Texts of errors must be equal but for what those of libraries say of types.
func same(got, want string) bool {
	if strings.HasPrefix(want, "error s:bad argument") {
		return strings.HasPrefix(got, gist(want))
	}
	g, w := strings.Split(got, "\t"), strings.Split(want, "\t")
	if len(g) != len(w) {
		return false
	}
	for i := range g {
		if g[i] != w[i] && !(number(g[i]) == number(w[i])) {
			return false
		}
	}
	return true
}

// gist returns what an error must begin with.
func gist(want string) string {
	for _, end := range []string{" expected", "(no value)", "got "} {
		want, _, _ = strings.Cut(want, end)
	}
	return want
}

func number(s string) float64 {
	f, err := strconv.ParseFloat(strings.TrimPrefix(s, "n:"), 64)
	if err != nil || !strings.HasPrefix(s, "n:") {
		return math.NaN()
	}
	return f
}

// quoted returns a string as both read it in source.
func quoted(s string) string { return formatValue(glua.LString(s))[2:] }

func literal(s string) string {
	return `"` + strings.NewReplacer(`\\`, `\\`, `"`, `\"`).Replace(strings.ReplaceAll(quotedRaw(s), "\t", `\009`)) + `"`
}

// quotedRaw escapes backslashes and what cannot be printed.
func quotedRaw(s string) string {
	var parts []string
	for _, part := range strings.Split(s, `\`) {
		parts = append(parts, quoted(part))
	}
	return strings.Join(parts, `\\`)
}

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

func joined(r *rand.Rand, from []string, most int) string {
	var out strings.Builder
	for range r.IntN(most + 1) {
		out.WriteString(pick(r, from))
	}
	return out.String()
}

var (
	subjectParts = []string{"a", "b", "ab", "aab", "1", "12", " ", "_", ".", "-", "%", "(", ")", "((", "[", "]", "^", "$", "\n", "x=1", "\x00", "\xff", "A", "Zz"}
	patternParts = []string{"a", "b", "ab", "1", ".", "%a", "%d", "%s", "%w", "%p", "%l", "%u", "%x", "%c", "%z", "%A", "%D", "%W", "%S",
		"[ab]", "[^a]", "[a-z]", "[%d_]", "[^%s]", "[]]", "[^]]", "[a-]", "[-a]", "[%a-z]", "[a%-z]", "[0-9a-f]", "%b()", "%bab", "%f[%w]", "%f[%W]", "%f[a]",
		"(", ")", "()", "(a)", "(.-)", "(%w+)", "(%d*)", "%1", "%2", "*", "+", "-", "?", "a*", "a+", "a-", "a?", ".-", ".*", ".?", "%w*", "%d+", "%s*", "$", "^", "%%", "%.", "%(", "%]"}
	badParts = []string{"[", "[a", "[^", "[%", "%", "%b", "%b(", "%f", "%fa", "%9", "%0", ")", "("}
)

var byHand = [][2]string{
	{"", ""}, {"", "^$"}, {"", "a*"}, {"", "."}, {"abc", ""}, {"abc", "^b"}, {"abc", "c$"}, {"abc", "$"}, {"a$c", "a$c"}, {"a^c", "a^c"},
	{"^a", "^^a"}, {"THE (quick) fox", "%((%a+)%)"}, {"THE (quick) fox", "%f[%a]%a+%f[%A]"}, {"hello world", "o w"}, {"key = value", "^(%w+)%s*=%s*(%w+)$"},
	{"  trim  ", "^%s*(.-)%s*$"}, {"a,b,,c", "([^,]*)"}, {"x(a(b)c)y", "%b()"}, {"((", "%b()"}, {"abab", "(ab)%1"}, {"\"it's\"", "([\"'])(.-)%1"},
	{"aaa", "(a)(a)(a)"}, {"abc", "()b()"}, {"abc", "((a)(b))"}, {"abc", "(a(b)c)"}, {"2024-01-31", "(%d+)-(%d+)-(%d+)"}, {"a.b", "."}, {"a.b", "%."},
	{"aXb", "%u"}, {"tab\tnl\n", "%c"}, {"0x1F", "^0[xX](%x+)$"}, {"[section]", "^%[([^%]]+)%]$"}, {"a-z", "[a%-z]+"}, {"a]b", "[]]"}, {"a]b", "[^]]+"},
	{"a\x00b", "%z"}, {"a\x00b", "a.b"}, {"a\x00b", "[^%z]+"}, {"aaab", "a-b"}, {"aaab", "a*b"}, {"aaab", "a?b"}, {"aaab", "^a-$"}, {"abc", "[c-a]"}, {"abc", "[a-c]+"},
	{"abc", "(()"}, {"abc", "())"}, {"abc", "%"}, {"abc", "a%"}, {"abc", "[a"}, {"abc", "[]"}, {"abc", "[^]"}, {"abc", "[a%"}, {"abc", "%b"}, {"abc", "%bx"}, {"abc", "%f"},
	{"abc", "%1"}, {"abc", "(%1)"}, {"abc", "(a)%2"}, {"abc", "%0"}, {"abc", "(a"}, {"abc", "z["}, {"abc", "z%"}, {"abc", "z)"}, {"aa", "()%1"}, {"", "["},
	{"abc", strings.Repeat("()", 32)}, {"abc", strings.Repeat("()", 33)}, {"aaaa", "a**"}, {"a+", "a++"}, {"*", "*"}, {"+a", "+a"}, {"-", "-"}, {"?", "?"}, {"a?", "(a)?"},
	{"\xe4\xf6", "%a"}, {"\xe4\xf6", "[\x80-\xff]+"}, {"a\nb", "a.b"}, {"f(x)", "f%(x%)"}, {"a", "a$$"}, {"a$", "a$$"}, {"", "%f[%z]"}, {"ab", "%f[%z]"}, {"%", "%%"},
}

var byHandFind = []string{
	`string.find("abc", "b", 1, true)`, `string.find("a.c", ".", 1, true)`, `string.find("a.c", ".", 2, true)`, `string.find("abc", "", 10)`, `string.find("abc", "", 4)`,
	`string.find("abc", "", -10)`, `string.find("abc", "c", -1)`, `string.find("abc", "a", -1)`, `string.find("abc", "^b", 2)`, `string.find("abc", "b", 2.9)`, `string.find("abc", "b", "2")`,
	`string.find("abc")`, `string.find()`, `string.find(nil, "a")`, `string.find("a", {})`, `string.find(123, 2)`, `string.find("a+b", "+", 1, true)`, `string.find("a+b", "+")`,
	`string.find("abc", "b", 1, false)`, `string.find("abc", "b", nil, nil)`, `string.find("abc", "b", {})`, `("abc"):find("c")`, `string.find("abc", "$", 2)`, `string.find("", "", 2)`, `string.find("abc", "()", 3)`,
}

func patternCases(form string, seed uint64, more []string) []string {
	var cases []string
	for _, c := range byHand {
		cases = append(cases, fmt.Sprintf(form, literal(c[0]), literal(c[1])))
	}
	r := rand.New(rand.NewPCG(seed, 51))
	for i := range 900 {
		cases = append(cases, fmt.Sprintf(form, literal(joined(r, subjectParts, 9)), literal(somePattern(r, i))))
	}
	return append(cases, more...)
}

func somePattern(r *rand.Rand, i int) string {
	p := joined(r, patternParts, 6)
	if i%7 == 0 {
		p = "^" + p
	}
	if i%11 == 0 {
		p += "$"
	}
	if i%9 == 0 {
		p += pick(r, badParts)
	}
	return p
}

func gsubCases() []string {
	r := rand.New(rand.NewPCG(4, 51))
	replacements := []string{`""`, `"x"`, `"<%0>"`, `"%1"`, `"%2%1"`, `"%%"`, `"%a"`, `"[%1%1]"`, `"%9"`, "map", "swap", "some", "42", "tostring", "{}", "function() end", "function() return false end", "function() return {} end"}
	cases := []string{
		`string.gsub("abc", "%w", "%%%0")`, `string.gsub("hello world", "%w+", "%0 %0", 1)`, `string.gsub("abc", "", "-")`, `string.gsub("abc", "b*", "-")`, `string.gsub("abc", "%w*", "x")`,
		`string.gsub("abc", "^a", "x")`, `string.gsub("aaa", "^a", "x")`, `string.gsub("abc", "b", nil)`, `string.gsub("abc", "b")`, `string.gsub("abc", "b", true)`, `string.gsub("abc", "b", "x", 0)`,
		`string.gsub("abc", "b", "x", -1)`, `string.gsub("abcabc", "b", "x", 1)`, `string.gsub("abcabc", "b", "x", "1")`, `string.gsub("abc", "(b", "x")`, `string.gsub("abc", "(b", "%1")`, `string.gsub("abc", "(b", swap)`,
		`string.gsub("abc", "b", error)`, `string.gsub("abc", "()", "%1")`, `string.gsub("abc", "()b", map)`, `string.gsub("$name is", "%$(%w+)", {name = "web"})`, `string.gsub("abc", "%w", setmetatable({}, {__index = function(t, k) return k .. k end}))`,
		`string.gsub("", "", "x")`, `string.gsub("", "a", "x")`, `string.gsub("a\nb\n", "\n", "\r\n")`, `string.gsub()`, `string.gsub("x")`, `string.gsub(12, 1, 3)`, `string.gsub("abc", "$", "x")`, `string.gsub("abc", "c$", "%0%0")`,
		`string.gsub("abc", ".", {a = 1, b = true})`, `string.gsub("abc", ".", {a = 1.5, b = false})`,
	}
	for i := range 900 {
		most := ""
		if i%5 == 0 {
			most = ", " + strconv.Itoa(r.IntN(4))
		}
		cases = append(cases, fmt.Sprintf("string.gsub(%s, %s, %s%s)", literal(joined(r, subjectParts, 9)), literal(somePattern(r, i)), pick(r, replacements), most))
	}
	return cases
}

func formatCases() []string {
	cases := []string{
		`string.format("%s %s", "a", 1)`, `string.format("%5s|%-5s|%.2s|%5.1s", "abc", "abc", "abc", "abc")`, `string.format("%q", "a\nb\"c\\d\0e\rf")`, `string.format("%q", 1)`, `string.format("%5q", "a")`,
		`string.format("%c%c%c", 76, 117, 97)`, `string.format("%5c|%-5c|", 65, 66)`, `string.format("%%")`, `string.format("100%%")`, `string.format("%")`, `string.format("%y", 1)`, `string.format("%10")`, `string.format("%d")`,
		`string.format("%d", "x")`, `string.format("%d", "10")`, `string.format("%d", {})`, `string.format("%123d", 1)`, `string.format("%.123d", 1)`, `string.format("%------d", 1)`, `string.format("%0-+ #d", 1)`,
		`string.format("%d", 3.99)`, `string.format("%d", -3.99)`, `string.format("%x", 255)`, `string.format("%#x %#o %#X", 255, 8, 255)`, `string.format("%x", -1)`, `string.format("%u", -1)`, `string.format("%5.3d|%-8.3d|%08.3d", 5, 5, 5)`,
		`string.format("%.0d|%.0x", 0, 0)`, `string.format("%.3f %.0f %#.0f", 1/3, 2.5, 2.5)`, `string.format("%e %E", 12345.678, 0.00012)`, `string.format("%g %g %g %g", 1e20, 0.1, 100000, 1e6)`,
		`string.format("%G", 1e-10)`, `string.format("%#g %#.3g", 1, 1e10)`, `string.format("%f", 1e300)`, `string.format("%g", 1/0)`, `string.format("%5g|%-6g|%06g", 1/0, -1/0, 1/0)`, `string.format("%d", 2^31)`, `string.format("%d", 2^53)`, `string.format("%d", -2^53)`,
		`string.format("%x", 2^53)`, `string.format("%.14g", 0.1)`, `string.format("%.20g", 0.1)`, `string.format("%.17g", 1/3)`, `string.format("%99.99f", 1/3)`, `string.format("%.99g", 1/3)`, `string.format("%s", ("x"):rep(200)):len()`, `string.format("%s")`,
		`string.format()`, `string.format({})`, `string.format(12)`, `string.format("%a", 1)`, `string.format("%p", 1)`, `string.format("%v", 1)`, `string.format("%T", 1)`, `string.format("%i %i", 1, -1)`, `string.format("%+d % d %+d", 1, 1, -1)`, `string.format("%02d:%02d", 7, 5)`,
	}
	r := rand.New(rand.NewPCG(5, 51))
	values := []string{"0", "1", "-1", "7", "-42", "255", "65535", "2147483647", "123456789012", "0.5", "-0.5", "1.5", "2.5", "0.1", "99.995", "1e10", "1e15", "1e16", "1.7976931348623157e308", "5e-324", "1e-5", "0.0001", "123456.789", "-1e100", "1/3", "2^52"}
	flags := []string{"", "-", "+", " ", "#", "0", "-+", "+0", "# ", "#0", "-#", "0 "}
	for range 1200 {
		verb, width, precision := pick(r, []string{"d", "i", "u", "x", "X", "o", "e", "E", "f", "g", "G"}), "", ""
		if r.IntN(2) == 0 {
			width = strconv.Itoa(1 + r.IntN(30))
		}
		if r.IntN(2) == 0 {
			precision = "." + strconv.Itoa(r.IntN(20))
		}
		value := pick(r, values)
		if strings.Contains("diuxXo", verb) && (strings.Contains(value, "308") || strings.Contains(value, "100")) {
			continue // C does not say what it does with these
		}
		cases = append(cases, fmt.Sprintf("string.format(%q, %s)", "%"+pick(r, flags)+width+precision+verb, value))
	}
	return cases
}

func tableCases() []string {
	cases := []string{
		`table.concat({})`, `table.concat({1, 2, 3})`, `table.concat({1, 2, 3}, ", ")`, `table.concat({1, 2, 3}, ", ", 2)`, `table.concat({1, 2, 3}, ", ", 2, 3)`, `table.concat({1, 2, 3}, ", ", 3, 2)`, `table.concat({1, {}, 3})`, `table.concat({1, nil, 3}, "", 1, 3)`,
		`table.concat({"a", 1.5, "b"}, 0)`, `table.concat({1, 2}, "x", 1, 3)`, `table.concat()`, `table.concat(1)`, `table.concat({}, {})`, `table.concat({true})`, `table.concat({1, 2, 3}, nil, 2)`, `table.concat({[0] = "z", "a"}, ".", 0, 1)`, `table.concat({[-1] = "y", [0] = "z"}, ".", -1, 0)`,
		`with(table.insert, {1, 2, 3}, 4)`, `with(table.insert, {1, 2, 3}, 1, 0)`, `with(table.insert, {1, 2, 3}, 2, "x")`, `with(table.insert, {1, 2, 3}, 4, "x")`, `with(table.insert, {}, "x")`, `with(table.insert, {}, 1, "x")`, `table.insert({})`, `table.insert({}, 1, 2, 3)`, `table.insert()`, `table.insert(1, 2)`, `table.insert({}, "x", 2)`,
		`with(table.insert, {1, 2}, "2", "x")`, `with(table.remove, {1, 2, 3})`, `with(table.remove, {1, 2, 3}, 1)`, `with(table.remove, {1, 2, 3}, 2)`, `with(table.remove, {1, 2, 3}, 3)`, `with(table.remove, {1, 2, 3}, 4)`, `with(table.remove, {1, 2, 3}, 0)`, `with(table.remove, {1, 2, 3}, -1)`, `with(table.remove, {})`, `table.remove({1, 2, 3})`, `table.remove({1, 2, 3}, 1)`, `table.remove({})`, `table.remove()`,
		`table.maxn({})`, `table.maxn({1, 2, 3})`, `table.maxn({[10] = 1})`, `table.maxn({[1.5] = 1})`, `table.maxn({a = 1})`, `table.maxn({[-1] = 1})`, `table.getn({1, 2})`, `table.getn({})`,
		`sorted({3, 1, 2})`, `sorted({})`, `sorted({1})`, `sorted({"b", "a", "C"})`, `sorted({3, 1, 2}, down)`, `sorted({"b", "a", "c"}, down)`, `sorted({1, "a"})`, `sorted({1, {}})`, `sorted({{}, {}})`, `sorted({true, false})`, `sorted({3, 1, 2}, 1)`, `sorted({3, 1, 2}, nil)`, `sorted({2, 1}, function() error("mine") end)`, `sorted({1.5, -1, 1e10, -1/0, 1/0})`, `table.sort()`, `table.sort(1)`,
		`sorted({"a", "", "b", "a\0b", "a\0a"})`, `sorted({"\255", "a", "Z", "_"})`,
		`unpack({1, 2, 3})`, `unpack({1, 2, 3}, 2)`, `unpack({1, 2, 3}, 2, 3)`, `unpack({1, 2, 3}, 3, 2)`, `unpack({1, 2}, 1, 4)`, `unpack({}, 0, 1)`, `unpack({})`, `unpack()`, `unpack(1)`, `unpack({}, 1, 1e6)`, `unpack({}, 1, 1e9)`, `unpack({}, -5, -4)`, `unpack({1, 2}, "2")`, `select("#", unpack({}, 1, 7000))`,
		`select("#")`, `select("#", nil, nil)`, `select(2, "a", "b", "c")`, `select(-1, "a", "b", "c")`, `select(-2, "a", "b", "c")`, `select(4, "a", "b", "c")`, `select(0)`, `select(-4, "a")`, `next({})`, `next({5})`, `rawget({7}, 1)`, `rawequal("a", "a")`, `#{1, 2, 3}`, `#"abc"`,
	}
	r := rand.New(rand.NewPCG(6, 51))
	for range 150 {
		var numbers, words []string
		for i := range 1 + r.IntN(40) {
			numbers = append(numbers, strconv.Itoa(r.IntN(50)-25))
			words = append(words, fmt.Sprintf(`"%c%c%d"`, 'a'+r.IntN(3), 'A'+r.IntN(40), i%4))
		}
		list := strings.Join(numbers, ", ")
		cases = append(cases, fmt.Sprintf("sorted({%s}, %s)", list, pick(r, []string{"nil", "down"})), fmt.Sprintf("sorted({%s})", strings.Join(words, ", ")),
			fmt.Sprintf("with(table.insert, {%s}, %d, %d)", list, 1+r.IntN(len(numbers)+1), r.IntN(9)), fmt.Sprintf("with(table.remove, {%s}, %d)", list, r.IntN(len(numbers)+3)),
			fmt.Sprintf("table.concat({%s}, %q, %d, %d)", list, pick(r, []string{"", ", ", "\t;"}[:2]), 1+r.IntN(5), r.IntN(len(numbers)+2)))
	}
	return cases
}

func numberCases() []string {
	texts := []string{"10", " 10 ", "\t10\n", "\v10\f\r", "0x10", "0X1f", " 0xA ", "0x", "0xg", "x10", "1e5", "1E5", "1e+5", "1e-5", "1e", "1e+", "e5", ".5", "5.", ".", "", " ", "-5", "+5", "--5", "+-5", "- 5", "1 2", "1a", "a1", "010", "-010", "08", "0b11", "0o7", "1_000",
		"1,5", "1e400", "-1e400", "1e-400", "0.1", "123456789012345678", "9007199254740993", "1.7976931348623157e308", "-0", "ff", "zz", "1e5x", "0x1g", "-0x10", "+0x10", "1.5e3", "1..5", "1.5.5", "1e5.5", "00", "0x00", "0xffffffff"}
	var cases []string
	for _, s := range texts {
		q := literal(s)
		cases = append(cases, "tonumber("+q+")", "tonumber("+q+", 10)", q+" + 1", "2 * "+q, q+" - "+q, q+" / 4")
		if !strings.HasPrefix(strings.TrimSpace(s), "-") { // which C turns into a large number
			for _, base := range []string{"2", "8", "16", "36"} {
				if len(s) > 13 { // more than C has bits for
					continue
				}
				cases = append(cases, "tonumber("+q+", "+base+")")
			}
		}
	}
	for _, v := range []string{"0", "1", "-1", "0.1", "1/3", "100", "123456.789", "1e100", "-1e-10", "1/0", "-1/0", "2^31", "2^46", "3.0", "1e-5", "12345678901234", "0.5", "5e-324"} {
		if v != "0" {
			cases = append(cases, "tostring(-("+v+"))")
		}
		if f := number("n:" + v); math.Abs(f) > 1e-300 && math.Abs(f) < 1e15 {
			cases = append(cases, "("+v+") % 3", "("+v+") % -3")
		}
		cases = append(cases, "tostring("+v+")", "string.len("+v+")", "math.floor("+v+")", "math.ceil("+v+")", "math.abs("+v+")", "math.modf("+v+")", "math.frexp("+v+")",
			"math.fmod("+v+", 3)", "math.sqrt(math.abs("+v+"))", "math.max("+v+", 2)", "math.min("+v+", 2)")
	}
	return append(cases, `tostring()`, `tostring(nil)`, `tostring(true)`, `tonumber()`, `tonumber(nil)`, `tonumber({})`, `tonumber(true)`, `tonumber("10", 1)`, `tonumber("10", 37)`, `tonumber("10", "16")`, `tonumber(10, 16)`, `tonumber({}, 16)`, `tonumber("7", 2)`, `tonumber("1", nil)`,
		`"10" + 1`, `"10" * "2"`, `"3" ^ 2`, `"7" % 4`, `-"2"`, `-"010"`, `-"0x10"`, `10 .. ""`, `10 .. 20`, `1.5 .. ""`, `-1 .. "x"`, `"a" + 1`, `{} + 1`, `nil + 1`, `"a" .. {}`, `"a" .. nil`, `-"a"`, `-{}`, `"10" == 10`, `"a" < 1`, `"a" < "b"`, `"10" < "9"`,
		`math.huge`, `-math.huge`, `math.pi`, `math.floor("3.7")`, `math.floor("x")`, `math.floor()`, `math.floor({})`, `math.max()`, `math.max("10", 9)`, `math.ldexp(0.5, 3)`, `math.pow(2, 10)`, `math.log10(1000)`, `math.deg(math.pi)`, `math.rad(180)`, `math.mod(7, 3)`,
		`math.atan2(1, 1)`, `math.fmod(-7, 3)`, `-7 % 3`, `7 % -3`, `7 % 0 ~= 7 % 0`, `math.random(0)`, `math.random(2, 1)`, `math.random(1, 1)`, `math.random(5, 5)`, `type(math.random())`, `math.random("x")`)
}

func stringCases() []string {
	cases := []string{
		`string.byte("abc")`, `string.byte("abc", 2)`, `string.byte("abc", 1, -1)`, `string.byte("abc", -2, -1)`, `string.byte("abc", 10)`, `string.byte("", 1)`, `string.byte("abc", 0)`, `string.byte("abc", 3, 2)`, `string.byte("\0\255", 1, 2)`, `string.byte()`, `string.byte({})`,
		`string.char()`, `string.char(72, 105)`, `string.char(0, 255)`, `string.char(256)`, `string.char(-1)`, `string.char("65")`, `string.char({})`, `string.len("a\0b")`, `string.len()`, `string.len(12)`, `string.lower("AbC\196")`, `string.upper("aBc\228")`, `string.lower()`, `string.reverse("abc")`, `string.reverse("")`, `string.reverse(12)`,
		`string.rep("ab", 3)`, `string.rep("ab", 0)`, `string.rep("ab", -1)`, `string.rep("", 10)`, `string.rep("a", 2.9)`, `string.rep("a", "3")`, `string.rep("a")`, `string.rep("a", nil)`, `string.rep(nil, 3)`, `string.rep({}, 3)`, `string.rep("a", {})`, `string.rep("a", "x")`, `("x"):rep(3)`, `#("x"):rep(1000)`, `("abc"):upper():lower():len()`, `("x").y`, `("abc").len == string.len`,
	}
	r := rand.New(rand.NewPCG(8, 51))
	for range 300 {
		s := literal(joined(r, subjectParts, 6))
		i, j := r.IntN(30)-15, r.IntN(30)-15
		cases = append(cases, fmt.Sprintf("string.sub(%s, %d, %d)", s, i, j), fmt.Sprintf("string.sub(%s, %d)", s, i), fmt.Sprintf("string.byte(%s, %d, %d)", s, i, j), fmt.Sprintf("string.reverse(%s)", s), fmt.Sprintf("string.upper(%s)", s))
	}
	return append(cases, `string.sub("abc")`, `string.sub()`, `string.sub("abc", "x")`, `string.sub("abc", 1.9, 2.9)`, `string.sub(12345, 2, 3)`)
}

// wordCases fail by each instruction that can fail, with a value that comes from each place that has or has no name.
func wordCases() []string {
	values := []string{"nil", "true", "1", `"s"`, "{}", "swap", "setmetatable({}, {__index = 5})"}
	places := []string{
		"local x = %s USE", "(function(x) USE end)(%s)", "local x = %s (function() USE end)()", "gx = %s local function f() local y USE end f() gx = nil",
		"local t = {a = %s} USE", "local t = {a = {a = %s}} USE", "local t, k = {%s}, 1 USE", "local t = {[\"a b\"] = %s} USE", "local function f() return %s end USE",
		"local x, y = %s, {} USE", "for _, x in ipairs({{%s}}) do USE end", "do local x = 1 end local y do local z end local x = %s USE",
	}
	names := map[string][]string{
		"local t = {a = %s} USE": {"t.a"}, "local t = {a = {a = %s}} USE": {"t.a.a", "t.b.a"}, "local t, k = {%s}, 1 USE": {"t[k]", "t[1]", "(t[k])"},
		"local t = {[\"a b\"] = %s} USE": {`t["a b"]`}, "local function f() return %s end USE": {"f()", "(f())"}, "for _, x in ipairs({{%s}}) do USE end": {"x[1]"},
		"gx = %s local function f() local y USE end f() gx = nil": {"gx"},
	}
	uses := []string{
		"return X.y", "return X.y.z", "return X[1]", "return X[nil]", "X.y = 1", "X[1] = 1", "X[nil] = 1", "X.y.z = 1", "X.y, X.z = 1, 2", "local q = X()", "X()", "return X()", "X(1, X.y)", "X:m()",
		"return X:m()", "X.y()", "return X.y:m()", "X.y.z:m()", "return X + 1", "return 1 - X", "return X * X", "return 2 ^ X / 3", "return X % 2", "return -X", "return #X", "return #X.y", `return X .. "a"`, `return "a" .. X`, `return "a" .. X .. "b"`,
		"return X .. X", `return 1 .. X.y .. "b"`, "return X < 1", "return 1 > X", "return X <= X", `return X >= "a"`, "if X < {} then return 1 end", "while X <= nil do end", "for i = X, 1 do end", "for i = 1, X do end", "for i = 1, 2, X do end",
		"for k in X do end", "for k in X.y do end", "function X.f() end", "function X:f() end", "function X.f.g() end", "function X.f.g:h() end", "return (X or nil).y", "return (X and X)()", "return not X.y.z", "return {X.y.z}", "return {[X.y.z] = 1}",
		"return {a = X + 1}", "type(X + 1)", "return X.y and X.z.w", "local a, b = X.y.z", "local v = X + 1 return v", "repeat local v = X.y.z until v", "return X == X.y.z", "return X.y + X.z",
	}
	var cases []string
	for _, place := range places {
		for _, name := range append(names[place], []string{"x"}[:min(1, strings.Count(place, " x"))]...) {
			for i, use := range uses {
				if strings.HasPrefix(use, "function ") && strings.ContainsAny(name, "([") || strings.HasPrefix(place, "for") && name == "x" && i%3 > 0 {
					continue
				}
				for j, value := range values {
					if (i+j+len(place))%7 > 0 && (value != "nil" || i%2 > 0) {
						continue
					}
					body := fmt.Sprintf(strings.ReplaceAll(place, "USE", "\x00"), value)
					cases = append(cases, "(function() "+strings.ReplaceAll(body, "\x00", strings.ReplaceAll(use, "X", name))+" end)()")
				}
			}
		}
	}
	return append(cases, `sorted({{}, {}})`, `sorted({true, false})`, `(function(...) return (...).y end)()`, `(function(...) local a = ... return a.y end)()`, `setmetatable({}, {__newindex = 5}).x.y`, `(function() setmetatable({}, {__newindex = 5}).x = 1 end)()`,
		`(function(...) return arg.x.y end)()`, `("x"):nope()`, `("x").y.z`, `("x").y()`, `nil .. "a"`, `"a" .. {} .. "b"`, `"a" .. (nil .. "b")`, `(function() local a, b = nil, nil return a .. b end)()`,
		`(function() local a, b, c = 1, nil, {} return a .. b .. c end)()`, `(function() local a, b, c = 1, nil, 2 return a .. b .. c end)()`,
		`(function() local f = function() return f end return f() end)()`, `(function() local f = function(n) if n > 0 then return f(n - 1) end end return f(1) end)()`, `(function() local function f(n) if n > 0 then return f(n - 1) end return "end" end return f(3) end)()`,
		`(function() local t = setmetatable({}, {__index = function(t, k) return k.y.z end}) return t.a end)()`, `(function() local a = {} a.b.c, a.d = 1, 2 end)()`, `(function() local a a.b, a.c = a.d, 2 end)()`, `(function() local a = {} a[a.x.y], a.c = 1, 2 end)()`,
		`(function() local s = "x" return s % 5 end)()`, `(function() local s = {a = "x"} return 2 + s.a end)()`, `(function() local s = "x" return -s end)()`, `(function() return "10" + nil end)()`, `(function() local n return "10" + n end)()`, `(function() local n return "x" + n end)()`,
		`(function() local n return n + "x" end)()`, `(function() error("attempt to index a non-table object(nil) with key 'x'", 0) end)()`, `(function() error("attempt to call a non-function object") end)()`, `pcall(function() local x x() end)`, `pcall(nil)`, `pcall(error)`, `pcall(error, nil)`, `(function() error("x", 0) end)()`, `(function() error("x", "2") end)()`, `(function() error(12) end)()`,
		`assert()`, `assert(nil)`, `assert(false, "why")`, `assert(1, 2, 3)`, `assert(false, 12)`, `type()`, `type(nil)`, `pairs()`, `pairs(nil)`, `ipairs()`, `ipairs("x")`, `next()`, `next({})`, `next({}, nil)`, `next({5, 6}, 1)`, `rawget()`, `rawget({})`, `rawset({}, 1)`,
		`rawset({}, nil, 1)`, `rawset(1, 1, 1)`, `rawget(rawset({}, "a", 7), "a")`, `rawequal(1)`, `rawequal(1, 1)`, `rawequal({}, {})`, `getmetatable()`, `getmetatable({})`, `setmetatable()`, `setmetatable({})`, `setmetatable(1, {})`, `setmetatable({}, 1)`, `pcall()`,
		`(function() local function f() return {s = "a b c"} end local n = 0 for w in f().s:gmatch("%a") do n = n + 1 end return n end)()`, `(function() local function f() return function(t) return next, t end end local n = 0 for w in f()({1, 2}) do n = n + w end return n end)()`,
		`(function(...) local n = 0 for w in (...).s:gmatch("%a") do n = n + 1 end return n end)({s = "a b"})`, `(function() local r = {} local function f() return {{4, 5, 6}} end for i, v in ({ipairs(f()[1])})[1], f()[1], 0 do r[#r + 1] = function() v = v + 1 return v end end return r[1](), r[1](), r[2](), r[3]() end)()`,
		`(function() for a in (function() return {next} end)()[1], {x = 1} do return a end end)()`, `(function() for i, v in (function() return {f = function() return ipairs({7, 8}) end} end)().f() do if i == 2 then return v end end end)()`,
		`(function() local x = setmetatable({}, {}) return x < x end)()`, `(function() local x = setmetatable({}, {}) return x < 1 end)()`, `(function() local a = setmetatable({}, {__call = 5}) a() end)()`, `math.nope()`, `string.format.x.y`, `(function() string.nope("x") end)()`, `(function() nope.x() end)()`, `(function() nope(1)(2) end)()`)
}
