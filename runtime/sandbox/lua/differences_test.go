package lua

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// intendedDifferences are where this package differs from Lua 5.1, on purpose or because the interpreter's core does.
var intendedDifferences = []struct{ source, ours, why string }{
	{`tonumber("inf")`, "nil", "words are no numbers"},
	{`tonumber("nan")`, "nil", "words are no numbers"},
	{`tonumber("0x1p4")`, "nil", "the manual has whole hexadecimal numbers only"},
	{`tonumber("-1", 16)`, "n:-1", "C would wrap it around"},
	{`tonumber("123456789012345678", 16)`, "n:3.358127276249173e+20", "C stops at its largest"},
	{`tonumber("1\0")`, "nil", "a zero byte does not end a string"},
	{`tostring(1e14)`, "s:100000000000000", "sizes in bytes are whole numbers"},
	{`tostring(-0)`, "s:0", "nobody asks for -0"},
	{`tostring(0/0)`, "s:nan", "its sign depends on the processor"},
	{`string.format("%c", 0)`, `s:\000`, "a zero byte does not end a string"},
	{`string.format("%s", "a\0b")`, `s:a\000b`, "a zero byte does not end a string"},
	{`string.format("%s", nil)`, "s:nil", "as tostring"},
	{`string.format("%s %s", true, {1} ~= nil)`, "s:true true", "as tostring"},
	{`string.format("%d", 1/0)`, "error s:bad argument #2 to 'format' (number has no integer representation)", "C prints another number"},
	{`string.format("%d", 0/0)`, "error s:bad argument #2 to 'format' (number has no integer representation)", "C prints another number"},
	{`string.format("%d", 2^63)`, "s:9223372036854775808", "C prints another number"},
	{`string.format("%x", 2^64)`, "error s:bad argument #2 to 'format' (number has no representation of 64 bits)", "C prints another number"},
	{`tostring(1e15 + 0.5)`, "s:1000000000000000.5", "from 10^14 on all digits are printed"},
	{`string.sub("abc", 1, 1/0)`, "s:abc", "what is too large is as large as can be"},
	{`string.match("a\0b", "a\0.")`, `s:a\000b`, "a pattern can have zero bytes"},
	{`string.gsub("abc", "b", "%")`, "error s:invalid use of '%' at the end of a replacement string", "instead of a byte from behind the string"},
	{`("x"):rep({})`, "error s:bad argument #2 to 'rep' (number expected, got table)", "an object before a colon counts"},
	{`sorted({3, 1, 2, 1}, function(a, b) return a <= b end)`, "error s:invalid order function for sorting: it must be true only where the first value comes before the second", "found every time, not by chance"},
	{`string.byte(("x"):rep(8001), 1, -1)`, "error s:string slice too long", "its words"},
	{`1e15 .. ""`, "s:1000000000000000", "whole numbers are printed whole"},
	{`tostring(1e20)`, "s:100000000000000000000", "whole numbers are printed whole"},
	{`string.len(1e16)`, "n:17", "whole numbers are printed whole"},
	{`1/3 .. ""`, "s:0.3333333333333333", "the interpreter's: .. prints all digits, tostring 14"},
	{`1e20 % 3`, "n:1", "exact, where C rounds"},
	{`5 % math.huge`, "n:5", "exact, where C gives nan"},
	{`string.gfind == string.gmatch`, "false", "each is a function of its own"},
	{`table.foreach`, "nil", "out of use since Lua 5.1"},
	{`string.dump`, "nil", "a script is text"},
	{`loadstring`, "nil", "what runs is what was sent"},
	{`select(2, pcall(assert, false, {7}))[1]`, "n:7", "an error that is a table stays the same"},
	{`(function() for i = "1", 2 do return i end end)()`, "error s:'for' initial value must be a number", "a number, as the manual says"},
	{`math.random(1, 2^60)`, "error s:bad argument #2 to 'random' (interval is too large)", "beyond 2^53 numbers have gaps"},
}

func TestDifferencesFromLua51(t *testing.T) {
	m := prepared(t)
	for _, d := range intendedDifferences {
		if got := m.evaluate(d.source); got != d.ours {
			t.Errorf("%s gives %s, want %s", d.source, got, d.ours)
		}
	}
}

// TestDifferencesDiffer: Lua 5.1 does differ in each case.
func TestDifferencesDiffer(t *testing.T) {
	if _, err := exec.LookPath("lua5.1"); err != nil {
		t.Skip("needs Debian's lua5.1: apt-get install lua5.1")
	}
	path := filepath.Join(t.TempDir(), "cases")
	var sources []string
	for _, d := range intendedDifferences {
		sources = append(sources, d.source)
	}
	record(t, path, sources)
	recorded, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range strings.Split(strings.TrimSuffix(string(recorded), "\n"), "\n") {
		if _, theirs, _ := strings.Cut(line, "\t=>\t"); theirs == intendedDifferences[i].ours {
			t.Errorf("%s gives %s in Lua 5.1 as well", intendedDifferences[i].source, theirs)
		} else {
			t.Logf("%s: %s, Lua 5.1: %s", intendedDifferences[i].source, intendedDifferences[i].ours, theirs)
		}
	}
}
