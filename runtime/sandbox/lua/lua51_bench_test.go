package lua

import (
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	glua "github.com/yuin/gopher-lua"
)

// BenchmarkAgainstLua51 does the same work with this package and with Debian's lua5.1, in turns. times-lua51 is how much
// longer this package takes.
func BenchmarkAgainstLua51(b *testing.B) {
	if _, err := exec.LookPath("lua5.1"); err != nil {
		b.Skip("needs Debian's lua5.1: apt-get install lua5.1")
	}
	const text = "local s = string.rep('key = value # a comment\\n', 47663):sub(1, 1048576) "
	const values = "local v = {} local x = 1 for i = 1, 100000 do x = x * 16807 % 2147483647 v[i] = x end "
	for _, c := range []struct{ name, prepare, work string }{
		{"gsub-word", text, `string.gsub(s, "%w+", "x")`},
		{"gsub-byte", text, `string.gsub(s, "e", "xy")`},
		{"gsub-capture", text, `string.gsub(s, "(%w+) = (%w+)", "%2 = %1")`},
		{"gsub-function", text, `string.gsub(s, "%w+", function(w) return w end)`},
		{"gsub-lines", text, `string.gsub(s, "[^\n]*\n", "")`},
		{"find-plain", text, `string.find(s, "nowhere", 1, true)`},
		{"find-set", text, `string.find(s, "[0-9]+")`},
		{"find-late", text, `string.find(s, "%w+%s*=%s*%d+")`},
		{"gmatch-lines", text, `for line in string.gmatch(s, "[^\n]+") do end`},
		{"sort-numbers", values, `local t = {} for i = 1, #v do t[i] = v[i] end table.sort(t)`},
		{"sort-function", values, `local t = {} for i = 1, #v do t[i] = v[i] end table.sort(t, function(a, b) return a < b end)`},
		{"concat", values + "for i = 1, #v do v[i] = tostring(v[i]) end ", `table.concat(v, ",")`},
		{"upper", text, `string.upper(s)`},
		{"format", "", `for i = 1, 10000 do string.format("%-10s %5d %g", "name", i, i / 3) end`},
	} {
		b.Run(c.name, func(b *testing.B) {
			m := prepared(b)
			f, _, err := m.compile("work", []byte(c.prepare+" return function() "+c.work+" end"))
			if err != nil {
				b.Fatal(err)
			}
			work, err := m.callProtected(f)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if _, err := m.callProtected(work.(*glua.LFunction)); err != nil {
					b.Fatal(err)
				}
			}
			ours := b.Elapsed().Seconds() / float64(b.N)
			theirs := lua51(b, c.prepare, c.work, b.N)
			b.ReportMetric(ours/theirs, "times-lua51")
		})
	}
}

// lua51 returns how many seconds of processor time the work takes in lua5.1.
func lua51(b *testing.B, prepare, work string, n int) float64 {
	b.Helper()
	source := fmt.Sprintf("%s local function work() %s end local c = os.clock() for _ = 1, %d do work() end print((os.clock() - c) / %d)", prepare, work, n, n)
	out, err := exec.Command("lua5.1", "-e", source).Output()
	if err != nil {
		b.Fatal(err)
	}
	seconds, err := strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	if err != nil {
		b.Fatal(err)
	}
	return max(seconds, 1e-9)
}
