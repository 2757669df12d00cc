package lua

import (
	"fmt"
	"reflect"
	"unsafe"

	glua "github.com/yuin/gopher-lua"
)

// openUpvalues is where an interpreter has its list of the local variables that functions use from outside and that are
// still those of a running function.
func openUpvalues(L *glua.LState) **glua.Upvalue {
	list := reflect.ValueOf(L).Elem().FieldByName("uvcache")
	if list.Type() != reflect.TypeFor[*glua.Upvalue]() {
		panic(fmt.Sprintf("the interpreter's list of variables is a %s", list.Type()))
	}
	return (**glua.Upvalue)(unsafe.Pointer(list.UnsafeAddr()))
}

// protect calls the function that was pushed with so many arguments, and returns its error. An error ends the running
// functions up to this call only: the interpreter would take the local variables of all others, too, from the functions
// that use them, which would from then on have copies.
func (m *machine) protect(arguments, results int) error {
	list := openUpvalues(m.L)
	outer := *list
	*list = nil
	defer func() { *list = outer }()
	m.L.Insert(m.guard, -arguments-1)
	return m.L.PCall(arguments+1, results, nil)
}

// pcall is that of Lua.
func pcall(a args) int {
	m, L, f := a.m, a.L, a.value(1)
	if f.Type() != glua.LTFunction && L.GetMetaField(f, "__call").Type() != glua.LTFunction {
		L.Push(glua.LFalse)
		L.Push(glua.LString("attempt to call a " + f.Type().String() + " value"))
		return 2
	}
	if err := m.protect(L.GetTop()-1, glua.MultRet); err != nil {
		L.Push(glua.LFalse)
		L.Push(errorObject(err))
		return 2
	}
	L.Insert(glua.LTrue, 1)
	return L.GetTop()
}

// xpcall is that of Lua, but that its second function is called after the error has ended the functions.
func xpcall(a args) int {
	m, L := a.m, a.L
	f, handle := a.function(1), a.function(2)
	L.SetTop(0)
	L.Push(f)
	err := m.protect(0, glua.MultRet)
	if err == nil {
		L.Insert(glua.LTrue, 1)
		return L.GetTop()
	}
	L.SetTop(0)
	L.Push(handle)
	L.Push(errorObject(err))
	var object glua.LValue
	if err := m.protect(1, 1); err != nil {
		object = errorObject(err)
	} else {
		object = L.Get(-1)
	}
	L.Push(glua.LFalse)
	L.Push(object)
	return 2
}

// errorObject returns what a script catches of an error.
func errorObject(err error) glua.LValue {
	if raised, ok := err.(*glua.ApiError); ok {
		return raised.Object
	}
	return glua.LString(err.Error())
}
