package lua

import (
	"cmp"
	"slices"

	glua "github.com/yuin/gopher-lua"
)

// openTables defines the table library: the interpreter's own pushes every element onto its stack to join them.
func (m *machine) openTables() {
	m.registerFunctions("table", map[string]func(args) int{
		"concat": concat, "getn": getn, "insert": insert, "maxn": maxn, "remove": remove, "sort": sortTable,
	})
	m.L.SetGlobal("unpack", m.function(m.wrap("unpack", unpack)))
	m.L.SetGlobal("select", m.function(m.wrap("select", selectFrom)))
}

// rawGet returns an element of a table, without its metatable.
func rawGet(t *glua.LTable, i int) glua.LValue {
	if i >= 1 && i < glua.MaxArrayIndex {
		return t.RawGetInt(i) // faster: it reads the list only
	}
	return t.RawGet(glua.LNumber(i))
}

func rawSet(t *glua.LTable, i int, v glua.LValue) { t.RawSetInt(i, v) }

func concat(a args) int {
	t := a.m.backing(a.table(1))
	separator, first := a.optText(2, ""), a.optInt(3, 1)
	last := a.optInt(4, listLength(t))
	out := builder{m: a.m}
	out.grow(joinedSize(t, first, last, len(separator)))
	for i := first; i <= last; i++ {
		text, ok := toText(rawGet(t, i))
		if !ok {
			a.L.RaiseError("invalid value (%s) at index %d in table for 'concat'", rawGet(t, i).Type(), i)
		}
		out.append(text)
		if i == last {
			break
		}
		out.append(separator)
		if i%checkInterval == 0 {
			a.m.checkStopped()
		}
	}
	a.L.Push(out.value())
	return 1
}

// joinedSize returns the length of the joined strings of a list, up to the first element that is not a string.
func joinedSize(t *glua.LTable, first, last, separator int) int {
	size := 0
	for i := first; i <= last; i++ {
		s, ok := rawGet(t, i).(glua.LString)
		if !ok {
			break
		}
		size += len(s) + separator
	}
	return size
}

func getn(a args) int {
	a.L.Push(glua.LNumber(listLength(a.m.backing(a.table(1)))))
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

// insert(t, [pos,] v) inserts v and moves the elements from pos on up by one.
func insert(a args) int {
	t := a.writableTable(1)
	end := listLength(t) + 1
	switch a.L.GetTop() {
	case 2:
		rawSet(t, end, a.L.Get(2))
	case 3:
		pos := a.int(2)
		for i := max(end, pos); i > pos; i-- {
			rawSet(t, i, rawGet(t, i-1))
			if i%checkInterval == 0 {
				a.m.checkStopped()
			}
		}
		rawSet(t, pos, a.L.Get(3))
	default:
		a.L.RaiseError("wrong number of arguments to 'insert'")
	}
	return 0
}

// remove(t [, pos]) removes and returns the element at pos, and moves those after it down by one.
func remove(a args) int {
	t := a.writableTable(1)
	end := listLength(t)
	pos := a.optInt(2, end)
	if pos < 1 || pos > end {
		return 0
	}
	if end < glua.MaxArrayIndex {
		a.L.Push(t.Remove(pos))
		return 1
	}
	a.L.Push(rawGet(t, pos))
	for i := pos; i < end; i++ {
		rawSet(t, i, rawGet(t, i+1))
		if i%checkInterval == 0 {
			a.m.checkStopped()
		}
	}
	rawSet(t, end, glua.LNil)
	return 1
}

func unpack(a args) int {
	t := a.m.backing(a.table(1))
	first := a.optInt(2, 1)
	last := a.optInt(3, listLength(t))
	if first > last {
		return 0
	}
	if n := last - first + 1; n <= 0 || n > maxResults {
		a.L.RaiseError("too many results to unpack")
	}
	for i := first; ; i++ {
		a.L.Push(rawGet(t, i))
		if i == last {
			return last - first + 1
		}
	}
}

// selectFrom is select: it returns its arguments from one on, counted from the end where negative, or how many there
// are.
func selectFrom(a args) int {
	n := a.L.GetTop() - 1
	if a.L.Get(1) == glua.LString("#") {
		return a.pushNumbers(float64(n))
	}
	i := a.int(1)
	if i < 0 {
		i += n + 1
	}
	if i < 1 {
		a.argError(1, "index out of range")
	}
	return max(n-i+1, 0) // the last arguments are the results
}

// lessThan is <, with the words of Lua 5.1 where it fails.
func (a args) lessThan(x, y glua.LValue) bool {
	if x.Type() == y.Type() && x.Type() != glua.LTString && x.Type() != glua.LTNumber && a.L.GetMetaField(x, "__lt") == glua.LNil {
		a.L.RaiseError("attempt to compare two %s values", x.Type())
	}
	return a.L.LessThan(x, y)
}

// sortTable is table.sort: it sorts the elements from 1 to #t; equal ones keep their order. The table changes at the
// end only: an error leaves it unchanged.
func sortTable(a args) int {
	t := a.writableTable(1)
	var less func(x, y glua.LValue) bool
	if a.given(2) {
		f := a.function(2)
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
	n := listLength(t)
	a.m.reserve(2 * n * valueSize)
	values := make([]glua.LValue, n)
	for i := range values {
		values[i] = rawGet(t, i+1)
	}
	if less != nil || !sortUniform(values) {
		if less == nil {
			less = a.lessThan
		}
		s := sorter{less: less, checkStopped: a.m.checkStopped, spare: make([]glua.LValue, n)}
		s.sort(values)
		if !s.isOrdered(values) {
			a.L.RaiseError("invalid order function for sorting: it must be true only where the first value comes before the second")
		}
	}
	for i, v := range values {
		rawSet(t, i+1, v)
	}
	return 0
}

// valueSize is the size of a value in a list, in bytes.
const valueSize = 16

// sortUniform sorts values that are all numbers or all strings, and returns whether they are.
func sortUniform(values []glua.LValue) bool {
	if len(values) == 0 {
		return true
	}
	switch values[0].(type) {
	case glua.LNumber:
		return sortOrdered[glua.LNumber](values)
	case glua.LString:
		return sortOrdered[glua.LString](values)
	}
	return false
}

func sortOrdered[T interface {
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

// sorter is a merge sort. Whatever less returns, it ends after n·log n comparisons.
type sorter struct {
	less         func(x, y glua.LValue) bool
	checkStopped func()
	spare        []glua.LValue
	comparisons  int
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
		if s.comparisons++; s.comparisons%checkInterval == 0 {
			s.checkStopped()
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

// isOrdered reports whether no value is less than the one before it.
func (s *sorter) isOrdered(values []glua.LValue) bool {
	for i := 1; i < len(values); i++ {
		if s.less(values[i], values[i-1]) {
			return false
		}
	}
	return true
}
