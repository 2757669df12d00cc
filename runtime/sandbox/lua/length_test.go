package lua

import (
	"os"
	"strconv"
	"strings"
	"testing"

	glua "github.com/yuin/gopher-lua"
)

func TestMain(m *testing.M) {
	boundLists(64 << 20)
	os.Exit(m.Run())
}

// TestLongLists: a list that is longer than what is kept as one is a list for all that a script can do with it.
func TestLongLists(t *testing.T) {
	was := glua.MaxArrayIndex
	defer func() { glua.MaxArrayIndex = was }()
	const n = 1000 // what is longer is as with the true bound
	glua.MaxArrayIndex = n
	for _, size := range []int{n - 2, n - 1, n, n + 1, 2*n + 7} {
		for source, want := range map[string]string{
			`return #t`:                           "N",
			`return #h.t`:                         "N",
			`return #(t)`:                         "N",
			`return #(function() return t end)()`: "N",
			`t[#t + 1] = 7 t[#t + 1] = 8 return #t .. " " .. t[#t]`:                      "N+2 8",
			`t[#t] = nil return #t`:                                                      "N-1",
			`table.insert(t, 5) return #t .. " " .. t[#t]`:                               "N+1 5",
			`table.insert(t, 2, 5) return #t .. " " .. t[2] .. " " .. t[#t]`:             "N+1 5 N",
			`local v = table.remove(t) return v .. " " .. #t`:                            "N N-1",
			`local v = table.remove(t, 1) return v .. " " .. #t .. " " .. t[#t]`:         "1 N-1 N",
			`return table.getn(t) .. " " .. table.maxn(t)`:                               "N N",
			`local s = 0 for i, v in ipairs(t) do s = s + 1 assert(i == v) end return s`: "N",
			`local s = 0 for k, v in pairs(t) do s = s + 1 assert(k == v) end return s`:  "N",
			`local s, k = 0, next(t) while k do s, k = s + 1, next(t, k) end return s`:   "N",
			`table.sort(t, function(a, b) return a > b end) return t[1] .. " " .. t[#t]`: "N 1",
			`return select(3, unpack(t, #t - 2))`:                                        "N",
			`return #table.concat(t, "")`:                                                "",
			`setmetatable(t, {__len = function() return 5 end}) return #t`:               "5",
			`setmetatable(t, {}) return #t`:                                              "N",
			`rawset(t, #t + 1, 3) return #t .. rawget(t, #t)`:                            "N+13",
		} {
			if want == "" {
				var all strings.Builder
				for i := range size {
					all.WriteString(strconv.Itoa(i + 1))
				}
				want = strconv.Itoa(all.Len())
			}
			for _, word := range []string{"N+2", "N+1", "N-1", "N"} {
				off, _ := strconv.Atoi(strings.TrimPrefix(word, "N"))
				want = strings.ReplaceAll(want, word, strconv.Itoa(size+off))
			}
			if got := runSource("local t = {} for i = 1, " + strconv.Itoa(size) + " do t[i] = i end local h = {t = t} return tostring((function() " + source + " end)())"); got != want {
				t.Errorf("%d elements, %s: %s, want %s", size, source, got, want)
			}
		}
	}
}

// TestLengths: # of anything else is as it was.
func TestLengths(t *testing.T) {
	for source, want := range map[string]string{
		`return #"abc" .. #("ab" .. "c") .. #{1, 2} .. #{n = 1} .. #{}`:                                             "33200",
		`local s = "abc" return #s .. -#s .. tostring(not #s)`:                                                      "3-3false",
		`local function f() return {1, 2, 3}, 4 end return #f()`:                                                    "3",
		`local function f(...) return #... end return f({1}, {1, 2})`:                                               "1",
		`local n = 0 local function f() n = n + 1 return {} end local x = #f() return n`:                            "1",
		`local t = {{1, 2}} return #t[1] + #t`:                                                                      "3",
		`local x = nil return #x`:                                                                                   "runtime: ",
		`local x = {} return #x.y`:                                                                                  "runtime: ",
		`local x = 5 return #x`:                                                                                     "runtime: ",
		`local b = false return #b`:                                                                                 "runtime: ",
		`local t = setmetatable({}, {__len = function(t) return 42 end}) return #t .. #({t})[1]`:                    "4242",
		`local t = {} while #t < 3 do t[#t + 1] = #t end repeat t[#t] = nil until #t == 1 return #t .. t[1]`:        "10",
		`local t = {1, 2, 3} for i = #t, 1, -1 do if #t == 2 and t[i] or #t == 9 then return i end t[#t] = nil end`: "2",
	} {
		if got := runSource("return tostring((function() " + source + " end)())"); got != want && !(strings.HasSuffix(want, ": ") && strings.HasPrefix(got, want)) {
			t.Errorf("%s: %s, want %s", source, got, want)
		}
	}
}

// TestSparseTables: high indices cost what stands at them.
func TestSparseTables(t *testing.T) {
	got := runSource(`
		local all = {}
		for _, first in ipairs({1048576, 1300007, 4194304, 20241129, 67108864, 1732871234, 2^40}) do
			local t = {}
			for i = 0, 9 do t[first + i * 1000] = i end
			t[1], t.name, t[-5], t[0.5] = "a", "b", "c", "d"
			local n = 0
			for k, v in pairs(t) do n = n + 1 assert(t[k] == v) end
			assert(n == 14 and #t == 1 and next({}, nil) == nil, n)
			t[first] = nil
			assert(t[first] == nil and t[first + 1000] == 1)
			all[#all + 1] = t
		end
		return tostring(#all)`)
	if got != "7" {
		t.Error(got)
	}
}
