package lua

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// A programWriter writes a random program in Lua 5.1 that ends soon, whose numbers are small whole ones, and which does
// nothing whose order the manual leaves open. The same seed gives the same program.
type programWriter struct {
	r         *rand.Rand
	out       strings.Builder
	indent    int
	scopes    [][]variable
	functions int // how many functions are around
	loops     int // how many loops are around in this function
	varargs   bool
	names     int
}

// variable is a local variable. kind is n for a number, s for text, a for anything but a table or a function, l for a list of
// numbers, f for a function of numbers without effects that returns a number and text, e for one with effects, o for an
// object. Loop variables are not assigned to.
type variable struct {
	name, kind string
	fixed      bool
}

func writeProgram(seed uint64) string {
	w := &programWriter{r: rand.New(rand.NewPCG(seed, 51)), scopes: [][]variable{nil}}
	w.line("local n0, s0, a0, l0 = %d, 'z', %s, {4, 7, 9}", w.r.IntN(9), w.anyLiteral())
	w.add("n0", "n")
	w.add("s0", "s")
	w.add("a0", "a")
	w.add("l0", "l")
	w.line("local later = {}")
	w.line("local function len(l) local n = 0 while l[n + 1] do n = n + 1 end return n end") // # may be any border
	w.line("local function step(l, k) k = (k or 0) + 1 if l[k] then return k, l[k] end end")
	w.line("local function walk() return {step, step = step, by = ipairs} end")
	w.statements(3+w.r.IntN(8), 3)
	w.line("for i = 1, #later do say('later', later[i](i)) end")
	w.line("say(n0, s0, a0, len(l0), l0[1], l0[2], l0[3])")
	return w.out.String()
}

func (w *programWriter) line(format string, args ...any) {
	w.out.WriteString(strings.Repeat(" ", w.indent) + fmt.Sprintf(format, args...) + "\n")
}

func (w *programWriter) chance(percent int) bool { return w.r.IntN(100) < percent }

func (w *programWriter) name(kind string) string {
	w.names++
	return fmt.Sprintf("%s%d", kind, w.names)
}

func (w *programWriter) add(name, kind string) {
	top := len(w.scopes) - 1
	w.scopes[top] = append(w.scopes[top], variable{name: name, kind: kind})
}

func (w *programWriter) addFixed(name, kind string) {
	w.add(name, kind)
	last := w.scopes[len(w.scopes)-1]
	last[len(last)-1].fixed = true
}

// some returns a visible variable, the later the likelier, or "".
func (w *programWriter) some(kind string, assigned bool) string {
	var all []string
	for _, s := range w.scopes {
		for _, v := range s {
			if v.kind == kind && !(assigned && v.fixed) {
				all = append(all, v.name)
			}
		}
	}
	if len(all) == 0 {
		return ""
	}
	if w.chance(50) {
		return all[max(0, len(all)-1-w.r.IntN(3))]
	}
	return all[w.r.IntN(len(all))]
}

func (w *programWriter) open() {
	w.indent++
	w.scopes = append(w.scopes, nil)
}

func (w *programWriter) close() {
	w.indent--
	w.scopes = w.scopes[:len(w.scopes)-1]
}

func (w *programWriter) statements(n, depth int) {
	for range n {
		w.statement(depth)
	}
}

func (w *programWriter) block(depth int) {
	w.open()
	w.statements(1+w.r.IntN(3), depth-1)
	w.close()
}

func (w *programWriter) statement(depth int) {
	k := w.r.IntN(100)
	if depth <= 0 {
		k = w.r.IntN(50)
	}
	switch {
	case k < 12:
		w.locals()
	case k < 26:
		w.assign()
	case k < 30:
		w.line("say(%s)", w.list(1+w.r.IntN(3), true))
	case k < 34:
		if w.loops > 0 {
			w.line("if %s then %sbreak end", w.cond(2), []string{"", "say('out') ", "do local x = 1 later[#later + 1] = function() return x end end "}[w.r.IntN(3)])
			return
		}
		w.effect()
	case k < 38:
		w.effect()
	case k < 42:
		w.later()
	case k < 46 && w.functions > 0:
		w.line("if %s then return %s, %s end", w.cond(2), w.num(2), w.str(2))
	case k < 50:
		l := w.some("l", false)
		w.line("%s[%s] = %s", l, w.index(), w.num(2))
	case k < 60:
		w.line("if %s then", w.cond(3))
		w.block(depth)
		for w.chance(30) {
			w.line("elseif %s then", w.cond(2))
			w.block(depth)
		}
		if w.chance(50) {
			w.line("else")
			w.block(depth)
		}
		w.line("end")
	case k < 63:
		w.line("do")
		w.block(depth)
		w.line("end")
	case k < 80:
		w.loop(depth)
	case k < 92:
		w.function(depth)
	case k < 96:
		w.object(depth)
	default:
		ok := w.name("a")
		w.line("local %s, %s = pcall(function()", ok, ok+"e")
		w.inFunction(false, func() {
			w.statements(1+w.r.IntN(2), depth-1)
			w.line("if %s then error(%s, 0) end", w.cond(2), w.str(2))
		})
		w.line("end)")
		w.line("say(%s, type(%se))", ok, ok)
		w.add(ok, "a")
	}
}

func (w *programWriter) inFunction(varargs bool, body func()) {
	loops, outer := w.loops, w.varargs
	w.loops, w.varargs = 0, varargs
	w.functions++
	w.open()
	body()
	w.close()
	w.functions--
	w.loops, w.varargs = loops, outer
}

func (w *programWriter) expr(kind string, depth int) string {
	switch kind {
	case "n":
		return w.num(depth)
	case "s":
		return w.str(depth)
	case "l":
		return w.table(depth)
	}
	return w.any(depth)
}

func (w *programWriter) locals() {
	var names, exprs, kinds []string
	for range 1 + w.r.IntN(3) {
		kind := []string{"n", "n", "s", "s", "a", "l"}[w.r.IntN(6)]
		names, kinds = append(names, w.name(kind)), append(kinds, kind)
		exprs = append(exprs, w.expr(kind, 3))
	}
	if f := w.some("f", false); f != "" && w.chance(20) {
		names, kinds, exprs = append(names, w.name("n"), w.name("s")), append(kinds, "n", "s"), append(exprs, w.call(f))
	}
	w.line("local %s = %s", strings.Join(names, ", "), strings.Join(exprs, ", "))
	for i := range names {
		w.add(names[i], kinds[i])
	}
}

func (w *programWriter) assign() {
	seen := map[string]bool{}
	var names, exprs []string
	for range 1 + w.r.IntN(3) {
		kind := []string{"n", "n", "s", "s", "a", "l", "i", "g", "o"}[w.r.IntN(9)]
		switch kind {
		case "i", "o":
			if seen[kind] {
				continue
			}
			seen[kind] = true
			if o := w.some("o", false); kind == "o" && o != "" {
				names = append(names, o+".v")
			} else if seen["i"] = true; kind == "i" {
				names = append(names, w.some("l", false)+"["+w.index()+"]")
			} else {
				continue
			}
			exprs = append(exprs, w.num(3))
		case "g":
			if !seen[kind] {
				seen[kind] = true
				names, exprs = append(names, "global"), append(exprs, w.num(3))
			}
		default:
			if v := w.some(kind, true); v != "" && !seen[v] {
				seen[v] = true
				names, exprs = append(names, v), append(exprs, w.expr(kind, 3))
			}
		}
	}
	if len(names) > 0 {
		w.line("%s = %s", strings.Join(names, ", "), strings.Join(exprs, ", "))
	}
}

// effect calls a function that has effects, or without one that has none.
func (w *programWriter) effect() {
	if f := w.some("e", false); f != "" && w.chance(60) {
		if n, s := w.some("n", true), w.some("s", true); n != "" && w.chance(50) {
			w.line("%s, %s = %s", n, s, w.call(f))
			return
		}
		w.line("%s", w.call(f))
	} else if o := w.some("o", false); o != "" && w.chance(60) {
		w.line("%s:change(%s)", o, w.list(w.r.IntN(3)+1, true))
	} else if f := w.some("f", false); f != "" {
		w.line("say(%s)", w.call(f))
	} else {
		w.line("say(%s)", w.any(4))
	}
}

func (w *programWriter) call(f string) string { return f + "(" + w.numbers(w.r.IntN(3)) + ")" }

// numbers returns a first number and more, the last of which may be several.
func (w *programWriter) numbers(more int) string {
	parts := []string{w.num(2)}
	for range more {
		parts = append(parts, w.num(2))
	}
	if f := w.some("f", false); f != "" && w.chance(15) {
		parts = append(parts, f+"("+w.num(1)+")")
	} else if w.varargs && w.chance(20) {
		parts = append(parts, "...")
	}
	return strings.Join(parts, ", ")
}

func (w *programWriter) list(n int, spread bool) string {
	var parts []string
	for range n {
		parts = append(parts, w.any(3))
	}
	if f := w.some("f", false); f != "" && spread && w.chance(25) {
		parts = append(parts, w.call(f))
	} else if w.varargs && spread && w.chance(25) {
		parts = append(parts, "...")
	}
	return strings.Join(parts, ", ")
}

func (w *programWriter) later() {
	outer := w.varargs
	parameters := []string{"", "p", "..."}[w.r.IntN(3)]
	w.varargs = parameters == "..."
	w.line("if #later < 9 then later[#later + 1] = function(%s) return %s end end", parameters, w.list(1+w.r.IntN(2), false))
	w.varargs = outer
}

func (w *programWriter) loop(depth int) {
	if w.loops >= 2 || w.functions > 1 {
		w.assign()
		return
	}
	k := w.name("k")
	w.loops++
	switch w.r.IntN(5) {
	case 0:
		w.line("local %s = 0", k)
		w.line("while %s < %d and %s do", k, 1+w.r.IntN(4), w.cond(2))
		w.open()
		w.line("%s = %s + 1", k, k)
		w.addFixed(k, "n")
		w.statements(1+w.r.IntN(3), depth-1)
		w.close()
		w.line("end")
		w.addFixed(k, "n")
	case 1:
		w.line("local %s = 0", k)
		w.line("repeat")
		w.open()
		w.line("%s = %s + 1", k, k)
		w.addFixed(k, "n")
		w.statements(1+w.r.IntN(3), depth-1)
		w.line("local last = %s", w.cond(2))
		w.indent--
		w.line("until %s >= %d or %s%s", k, 1+w.r.IntN(4), []string{"last and ", "not last or ", ""}[w.r.IntN(3)], w.cond(2))
		w.indent++
		w.close()
		w.addFixed(k, "n")
	case 2, 3:
		from, to, step := w.r.IntN(5), w.r.IntN(5), 1+w.r.IntN(3)
		if from > to {
			step = -step
		}
		if step == 1 && w.chance(50) {
			w.line("for %s = %d, %d do", k, from, to)
		} else if n := w.some("n", false); w.chance(30) {
			w.line("for %s = %s, %s + %d do", k, n, n, w.r.IntN(4))
		} else {
			w.line("for %s = %d, %d, %d do", k, from, to, step)
		}
		w.open()
		w.addFixed(k, "n")
		w.statements(1+w.r.IntN(3), depth-1)
		w.close()
		w.line("end")
	case 4:
		list := []string{"ipairs(%s)", "step, %s", "step, (%s), nil", "walk().by(%s)", "walk().step, %s, 0", "(walk())[1], %s"}[w.r.IntN(6)]
		w.line("for %s, %sv in %s do", k, k, fmt.Sprintf(list, w.table(1)))
		w.open()
		w.addFixed(k, "n")
		w.add(k+"v", "n")
		w.statements(1+w.r.IntN(3), depth-1)
		w.close()
		w.line("end")
	}
	w.loops--
}

func (w *programWriter) function(depth int) {
	if w.functions >= 2 {
		w.assign()
		return
	}
	if w.chance(40) { // without effects
		f, p := w.name("f"), w.name("p")
		form := []string{"local function %s(%s)", "local %s = function(%s, ...)", "local function %s(%s, q)", "local function %s(%s, ...)"}[w.r.IntN(4)]
		w.line(form, f, p)
		w.inFunction(strings.Contains(form, "..."), func() {
			w.line("%s = %s or 3", p, p)
			w.addFixed(p, "n")
			switch w.r.IntN(3) {
			case 0:
				w.line("if %s then return %s, %s end", w.cond(2), w.num(2), w.str(2))
			case 1:
				n, k := w.name("n"), w.name("k")
				w.line("local %s = %s", n, w.num(1))
				w.line("for %s = 1, 3 do", k)
				w.line(" if %s == 2 and %s then break end", k, w.cond(1))
				w.line(" %s = %s + %s", n, n, k)
				w.line("end")
				w.add(n, "n")
			}
			w.line("return %s, %s", w.num(3), w.str(3))
		})
		w.line("end")
		w.add(f, "f")
		return
	}
	e, p := w.name("e"), w.name("p")
	form := []string{"local function %s(%s)", "local %s = function(%s, ...)", "local function %s(%s, ...)"}[w.r.IntN(3)]
	w.line(form, e, p)
	w.inFunction(strings.Contains(form, "..."), func() {
		w.line("%s = %s or 1", p, p)
		w.addFixed(p, "n")
		if w.chance(50) {
			w.scopes[len(w.scopes)-1][0].fixed = false
		}
		w.statements(1+w.r.IntN(4), depth-1)
		w.line("return %s, %s", w.num(2), w.str(2))
	})
	w.line("end")
	w.add(e, "e")
}

func (w *programWriter) object(depth int) {
	if w.functions >= 2 {
		w.assign()
		return
	}
	o := w.name("o")
	w.line("local %s = {v = %s, inner = {v = %d}, get = function(self, x) return self.v + (x or %d) end}", o, w.num(2), w.r.IntN(9), w.r.IntN(9))
	w.line("function %s:change(x, ...)", o)
	w.inFunction(true, func() {
		w.line("self.v = %s + self.v", w.num(2))
		w.statements(1, depth-1)
		w.line("return self, ...")
	})
	w.line("end")
	w.add(o, "o")
}

func (w *programWriter) anyLiteral() string {
	return []string{"nil", "false", "true", "0", "1", "'q'", "''"}[w.r.IntN(7)]
}

func (w *programWriter) index() string {
	return []string{"1", "2", "3", "1", "n0 % 3 + 1", w.num(1) + " % 3 + 1"}[w.r.IntN(5)]
}

func (w *programWriter) num(depth int) string {
	k := w.r.IntN(100)
	if depth <= 0 {
		k = w.r.IntN(40)
	}
	d := depth - 1
	switch {
	case k < 25:
		if v := w.some("n", false); v != "" {
			return v
		}
		return "4"
	case k < 40:
		return fmt.Sprint(w.r.IntN(10))
	case k < 50:
		return w.num(d) + " " + []string{"+", "-"}[w.r.IntN(2)] + " (" + w.num(d) + ")"
	case k < 54:
		return "(" + w.num(d) + ") * " + fmt.Sprint(1+w.r.IntN(4)) + " % 97"
	case k < 57:
		return "(" + w.num(d) + ") % " + []string{"7", "(3 + 2)", "2 ^ 3"}[w.r.IntN(3)]
	case k < 60:
		return "(5 - (" + w.num(d) + "))"
	case k < 64:
		return "#(" + w.str(d) + ")"
	case k < 68:
		return "(" + w.some("l", false) + "[" + w.index() + "] or " + w.num(d) + ")"
	case k < 74:
		if f := w.some("f", false); f != "" {
			return "(" + w.call(f) + ")"
		}
		return "tonumber('3')"
	case k < 80:
		if o := w.some("o", false); o != "" {
			return []string{o + ".v", o + ".inner.v", o + ":get()", o + ":get(" + w.num(d) + ")"}[w.r.IntN(4)]
		}
		return "n0"
	case k < 86:
		return "(" + w.cond(d) + " and " + w.num(d) + " or " + w.num(d) + ")"
	case k < 89:
		if w.varargs {
			return "select('#', ...)"
		}
		return "len(l0)"
	case k < 92:
		return "(function(x, ...) return x + select('#', ...) end)(" + w.numbers(w.r.IntN(2)) + ")"
	case k < 94:
		return "#" + w.table(d)
	case k < 96:
		return "math.max(" + w.num(d) + ", " + w.num(d) + ")"
	case k < 98:
		return "(tonumber(" + w.any(d) + ") or " + w.num(d) + ")"
	}
	return "(global or " + w.num(d) + ")"
}

func (w *programWriter) str(depth int) string {
	k := w.r.IntN(100)
	if depth <= 0 {
		k = w.r.IntN(30)
	}
	d := depth - 1
	switch {
	case k < 15:
		if v := w.some("s", false); v != "" {
			return "(" + v + "):sub(-9)"
		}
		return "'v'"
	case k < 30:
		return []string{"'a'", "'bc'", "''", "'7'"}[w.r.IntN(4)]
	case k < 50:
		return w.part(d) + " .. " + w.part(d)
	case k < 58:
		return w.part(d) + " .. " + w.part(d) + " .. " + w.part(d)
	case k < 63:
		return "(" + w.part(d) + " .. " + w.part(d) + ") .. " + w.part(d)
	case k < 75:
		return "(" + w.cond(d) + " and " + w.str(d) + " or " + w.str(d) + ")"
	case k < 80:
		return "tostring(" + w.any(d) + ")"
	case k < 85:
		if f := w.some("f", false); f != "" {
			return "(select(2, " + w.call(f) + ") or 'none')"
		}
		return "type(" + w.any(d) + ")"
	case k < 90:
		return "(" + w.str(d) + "):upper()"
	case k < 95:
		return "table.concat({" + w.str(d) + ", " + w.num(d) + "}, " + w.str(d) + ")"
	}
	return "string.format('%d %s', " + w.num(d) + ", " + w.str(d) + ")"
}

// part is an operand of a concatenation.
func (w *programWriter) part(depth int) string {
	switch w.r.IntN(4) {
	case 0:
		return "(" + w.num(depth) + ")"
	case 1:
		return "tostring(" + w.any(depth) + ")"
	}
	return "(" + w.str(depth) + ")"
}

func (w *programWriter) cond(depth int) string {
	k := w.r.IntN(100)
	if depth <= 0 {
		k = w.r.IntN(55)
	}
	d := depth - 1
	switch {
	case k < 25:
		return w.num(d) + " " + []string{"<", ">", "<=", ">=", "==", "~="}[w.r.IntN(6)] + " " + w.num(d)
	case k < 32:
		return w.any(d) + " " + []string{"==", "~="}[w.r.IntN(2)] + " " + w.any(d)
	case k < 45:
		if v := w.some("a", false); v != "" {
			return v
		}
		return "a0"
	case k < 50:
		return w.anyLiteral()
	case k < 55:
		return "(" + w.str(d) + ") " + []string{"<", ">="}[w.r.IntN(2)] + " (" + w.str(d) + ")"
	case k < 65:
		return "not (" + w.cond(d) + ")"
	case k < 82:
		return "(" + w.cond(d) + " and " + w.cond(d) + ")"
	}
	return "(" + w.cond(d) + " or " + w.cond(d) + ")"
}

func (w *programWriter) any(depth int) string {
	switch k := w.r.IntN(100); {
	case k < 25:
		return w.num(depth)
	case k < 45:
		return "(" + w.str(depth) + ")"
	case k < 60:
		if v := w.some("a", false); v != "" {
			return v
		}
		return "a0"
	case k < 70 || depth <= 0:
		return w.anyLiteral()
	case k < 80:
		return "(" + w.cond(depth) + ")"
	case k < 90:
		return "(" + w.any(depth-1) + " and " + w.any(depth-1) + ")"
	}
	return "(" + w.any(depth-1) + " or " + w.any(depth-1) + ")"
}

func (w *programWriter) table(depth int) string {
	var parts []string
	for range w.r.IntN(4) {
		parts = append(parts, w.num(depth-1))
	}
	switch w.r.IntN(6) {
	case 0:
		parts = append(parts, "name = "+w.any(depth-1))
	case 1:
		parts = append([]string{"[" + w.str(depth-1) + " .. 'k'] = " + w.any(depth-1)}, parts...)
	case 2:
		if f := w.some("f", false); f != "" {
			parts = append(parts, "("+w.call(f)+")")
		}
	}
	return "{" + strings.Join(parts, ", ") + "}"
}
