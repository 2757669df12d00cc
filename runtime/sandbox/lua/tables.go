package lua

import (
	"cmp"
	"slices"

	glua "github.com/yuin/gopher-lua"
)

// openTables makes the table library: that of the interpreter puts every element on its stack to join them.
func (m *machine) openTables() {
	m.functions("table", map[string]func(args) int{
		"concat": concat, "getn": getn, "insert": insert, "maxn": maxn, "remove": remove, "sort": sortTable,
	})
	m.L.SetGlobal("unpack", m.function(m.wrapped("unpack", unpack)))
	m.L.SetGlobal("select", m.function(m.wrapped("select", selectFrom)))
}

// at is an element of a table, without its metatable.
func at(t *glua.LTable, i int) glua.LValue {
	if i >= 1 && i < glua.MaxArrayIndex {
		return t.RawGetInt(i) // which looks into the list alone
	}
	return t.RawGet(glua.LNumber(i))
}

func put(t *glua.LTable, i int, v glua.LValue) { t.RawSetInt(i, v) }

func concat(a args) int {
	t := a.m.backing(a.table(1))
	separator, first := a.textOr(2, ""), a.intOr(3, 1)
	last := a.intOr(4, t.Len())
	out := builder{m: a.m}
	out.grow(joinedSize(t, first, last, len(separator)))
	for i := first; i <= last; i++ {
		text, ok := textOf(at(t, i))
		if !ok {
			a.L.RaiseError("invalid value (%s) at index %d in table for 'concat'", at(t, i).Type(), i)
		}
		out.add(text)
		if i == last {
			break
		}
		out.add(separator)
		if i%every == 0 {
			a.m.goOn()
		}
	}
	a.L.Push(out.value())
	return 1
}

// joinedSize is how long the strings of a list are together, as far as there are any: what is missing is grown for.
func joinedSize(t *glua.LTable, first, last, separator int) int {
	size := 0
	for i := first; i <= last; i++ {
		s, ok := at(t, i).(glua.LString)
		if !ok {
			break
		}
		size += len(s) + separator
	}
	return size
}

func getn(a args) int {
	a.L.Push(glua.LNumber(a.m.backing(a.table(1)).Len()))
	return 1
}

func maxn(a args) int {
	var most glua.LNumber
	a.m.backing(a.table(1)).ForEach(func(k, _ glua.LValue) {
		if n, ok := k.(glua.LNumber); ok {
			most = max(most, n)
		}
	})
	a.L.Push(most)
	return 1
}

// insert(t, [pos,] v) moves up what lies from pos to the end.
func insert(a args) int {
	t := a.own(1)
	end := t.Len() + 1
	switch a.L.GetTop() {
	case 2:
		put(t, end, a.L.Get(2))
	case 3:
		pos := a.int(2)
		for i := max(end, pos); i > pos; i-- {
			put(t, i, at(t, i-1))
			if i%every == 0 {
				a.m.goOn()
			}
		}
		put(t, pos, a.L.Get(3))
	default:
		a.L.RaiseError("wrong number of arguments to 'insert'")
	}
	return 0
}

// remove(t [, pos]) gives the element at pos, and moves down what lies behind it.
func remove(a args) int {
	t := a.own(1)
	end := t.Len()
	pos := a.intOr(2, end)
	if pos < 1 || pos > end {
		return 0
	}
	a.L.Push(t.Remove(pos))
	return 1
}

func unpack(a args) int {
	t := a.m.backing(a.table(1))
	first := a.intOr(2, 1)
	last := a.intOr(3, t.Len())
	if first > last {
		return 0
	}
	if n := last - first + 1; n <= 0 || n > maxResults {
		a.L.RaiseError("too many results to unpack")
	}
	for i := first; ; i++ {
		a.L.Push(at(t, i))
		if i == last {
			return last - first + 1
		}
	}
}

// selectFrom gives its arguments from one on, counted from the end where negative, or says how many there are.
func selectFrom(a args) int {
	n := a.L.GetTop() - 1
	if a.L.Get(1) == glua.LString("#") {
		return a.give(float64(n))
	}
	i := a.int(1)
	if i < 0 {
		i += n + 1
	}
	if i < 1 {
		a.bad(1, "index out of range")
	}
	return max(n-i+1, 0) // the last ones of what there is
}

// sortTable sorts the elements from 1 to #t; equal ones keep their order. The table changes at the end only: an error
// leaves it as it was.
func sortTable(a args) int {
	t := a.own(1)
	var less func(x, y glua.LValue) bool
	if a.has(2) {
		f, ok := a.L.Get(2).(*glua.LFunction)
		if !ok {
			a.wanted(2, "function")
		}
		less = func(x, y glua.LValue) bool {
			a.L.Push(f)
			a.L.Push(x)
			a.L.Push(y)
			a.L.Call(2, 1)
			answer := glua.LVAsBool(a.L.Get(-1))
			a.L.Pop(1)
			return answer
		}
	}
	n := t.Len()
	a.m.reserve(2 * n * valueSize)
	values := make([]glua.LValue, n)
	for i := range values {
		values[i] = at(t, i+1)
	}
	if less != nil || !sortSimple(values) {
		if less == nil {
			less = a.L.LessThan
		}
		s := sorter{less: less, goOn: a.m.goOn, spare: make([]glua.LValue, n)}
		s.sort(values)
		if !s.ordered(values) {
			a.L.RaiseError("invalid order function for sorting: it must be true only where the first value comes before the second")
		}
	}
	for i, v := range values {
		put(t, i+1, v)
	}
	return 0
}

// valueSize is what a value takes in a list, in bytes.
const valueSize = 16

// sortSimple sorts what is all numbers or all strings, and says whether it was.
func sortSimple(values []glua.LValue) bool {
	if len(values) == 0 {
		return true
	}
	switch values[0].(type) {
	case glua.LNumber:
		return sortAs[glua.LNumber](values)
	case glua.LString:
		return sortAs[glua.LString](values)
	}
	return false
}

func sortAs[T interface {
	glua.LValue
	cmp.Ordered
}](values []glua.LValue) bool {
	for _, v := range values {
		if _, ok := v.(T); !ok {
			return false
		}
	}
	slices.SortFunc(values, func(x, y glua.LValue) int { return cmp.Compare(x.(T), y.(T)) })
	return true
}

// sorter merges. However its question is answered, it ends after n·log n of them.
type sorter struct {
	less  func(x, y glua.LValue) bool
	goOn  func()
	spare []glua.LValue
	turns int
}

func (s *sorter) sort(values []glua.LValue) {
	if len(values) < 2 {
		return
	}
	middle := len(values) / 2
	s.sort(values[:middle])
	s.sort(values[middle:])
	left := s.spare[:copy(s.spare, values[:middle])]
	right := values[middle:]
	for out := 0; len(left) > 0 && len(right) > 0; out++ {
		if s.turns++; s.turns%every == 0 {
			s.goOn()
		}
		if s.less(right[0], left[0]) {
			values[out], right = right[0], right[1:]
		} else {
			values[out], left = left[0], left[1:]
		}
		if len(right) == 0 {
			copy(values[out+1:], left)
		}
	}
}

// ordered says whether no value comes before the one that it was put after.
func (s *sorter) ordered(values []glua.LValue) bool {
	for i := 1; i < len(values); i++ {
		if s.less(values[i], values[i-1]) {
			return false
		}
	}
	return true
}
