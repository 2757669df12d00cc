package lua

import (
	"fmt"
	"reflect"
	"strings"

	glua "github.com/yuin/gopher-lua"
	"github.com/yuin/gopher-lua/ast"
)

// panicked ends the running functions, which are all still there, with the error on top of the stack. What the
// interpreter says of an instruction that failed becomes what Lua 5.1 says, which names the variable.
func (m *machine) panicked(L *glua.LState) {
	object := L.Get(-1)
	if text, ok := object.(glua.LString); ok {
		object = glua.LString(m.reworded(string(text)))
	}
	panic(&glua.ApiError{Type: glua.ApiErrorRun, Object: object})
}

func (m *machine) reworded(message string) string {
	f := m.failed(0)
	if f == nil {
		return message // it is that of a library, or of error
	}
	where := fmt.Sprintf("%s:%d: ", f.proto.SourceName, f.proto.DbgSourcePositions[f.pc])
	said, ok := strings.CutPrefix(message, where)
	if !ok {
		return message
	}
	return where + f.words(said)
}

// failed is an instruction that failed.
type failed struct {
	m     *machine
	frame *glua.Debug
	proto *glua.FunctionProto
	pc    int
	instruction
}

// failed returns the instruction at which a function of a script is, counted from the innermost; nil: it is no script's.
func (m *machine) failed(level int) *failed {
	frame, ok := m.L.GetStack(level)
	if !ok {
		return nil
	}
	value, err := m.L.GetInfo("f", frame, nil)
	f, ok := value.(*glua.LFunction)
	if err != nil || !ok || f.IsG {
		return nil
	}
	next := reflect.ValueOf(frame).Elem().FieldByName("frame").Elem().FieldByName("Pc").Int()
	if next == 0 {
		return nil
	}
	pc := int(next) - 1
	return &failed{m, frame, f.Proto, pc, instruction(f.Proto.Code[pc])}
}

// value returns that of a register or constant.
func (f *failed) value(rk int) glua.LValue {
	const constant = 1 << 8
	if rk&constant != 0 {
		return f.proto.Constants[rk&^constant]
	}
	_, v := f.m.L.GetLocal(f.frame, rk+1)
	return v
}

// operandOf returns the expression that a value is of, by the node that an instruction comes from.
type operandOf func(node ast.PositionHolder) ast.Expr

// typeError says that something cannot be done with a value.
func (f *failed) typeError(what string, v glua.LValue, of operandOf) string {
	if s := f.m.sources[f.proto.SourceName]; s != nil {
		node := s.node(f.proto, f.pc)
		name := s.operands.names[of(node)]
		if call, ok := node.(*ast.FuncCallExpr); ok && what == "call" && call.Func == nil {
			name = "method '" + call.Method + "'"
		}
		if name != "" {
			return fmt.Sprintf("attempt to %s %s (a %s value)", what, name, v.Type())
		}
	}
	return fmt.Sprintf("attempt to %s a %s value", what, v.Type())
}

// words returns what Lua 5.1 says where the interpreter says something of this instruction.
func (f *failed) words(said string) string {
	switch said {
	case "attempt to call a non-function object":
		return f.typeError("call", f.value(f.a()), callee)
	case "__unm undefined":
		return f.arithmeticError()
	case "__len undefined":
		return f.typeError("get length of", f.value(f.b()), onlyOperand)
	case "for statement init must be a number":
		return "'for' initial value must be a number"
	case "for statement limit must be a number":
		return "'for' limit must be a number"
	case "for statement step must be a number":
		return "'for' step must be a number"
	case "too many recursions in gettable":
		return "loop in gettable"
	case "too many recursions in settable":
		return "loop in settable"
	}
	if kind, ok := strings.CutPrefix(said, "attempt to index a non-table object("); ok {
		kind, _, _ = strings.Cut(kind, ")")
		return f.indexError(kind)
	}
	if kinds, ok := strings.CutPrefix(said, "cannot perform concat operation between "); ok {
		return f.concatError(kinds)
	}
	if strings.HasPrefix(said, "cannot perform ") {
		return f.arithmeticError()
	}
	if kinds, ok := strings.CutPrefix(said, "attempt to compare "); ok {
		if left, right, _ := strings.Cut(kinds, " with "); left == right {
			return "attempt to compare two " + left + " values"
		}
	}
	return said
}

func (f *failed) indexError(kind string) string {
	stores := f.op() == glua.OP_SETTABLE || f.op() == glua.OP_SETTABLEKS
	object := f.value(f.b())
	if stores {
		object = f.value(f.a())
	}
	if object.Type().String() != kind { // it is what a metatable has for __index or __newindex
		return "attempt to index a " + kind + " value"
	}
	return f.typeError("index", object, func(node ast.PositionHolder) ast.Expr {
		switch n := node.(type) {
		case *ast.AttrGetExpr:
			if stores && f.m.sources[f.proto.SourceName].operands.objects[n] {
				return n
			}
			return n.Object
		case *ast.IdentExpr: // of a method that is stored
			return n
		case *ast.FuncCallExpr:
			return n.Receiver
		}
		return nil
	})
}

// arithmeticError is about the first operand that is no number.
func (f *failed) arithmeticError() string {
	const what = "perform arithmetic on"
	left := f.value(f.b())
	if f.op() == glua.OP_UNM {
		return f.typeError(what, left, onlyOperand)
	}
	if _, ok := toNumber(left); !ok {
		return f.typeError(what, left, leftOperand)
	}
	return f.typeError(what, f.value(f.c()), rightOperand)
}

// concatError is about one of two operands, which are of these kinds. The last ones are joined first.
func (f *failed) concatError(kinds string) string {
	kind, right, _ := strings.Cut(kinds, " and ")
	if kind == "string" || kind == "number" {
		kind = right
	}
	at := f.c()
	for at > f.b() && glua.LVCanConvToString(f.value(at)) {
		at--
	}
	if at == f.c() && !glua.LVCanConvToString(f.value(at-1)) {
		at--
	}
	v := f.value(at)
	if v.Type().String() != kind || f.m.L.GetMetaField(v, "__concat") != glua.LNil {
		return "attempt to concatenate a " + kind + " value" // it is what a metamethod returned
	}
	return f.typeError("concatenate", v, func(node ast.PositionHolder) ast.Expr {
		pair, _ := node.(*ast.StringConcatOpExpr)
		for i := f.b(); pair != nil && i < at; i++ {
			next, ok := pair.Rhs.(*ast.StringConcatOpExpr)
			if !ok {
				return pair.Rhs
			}
			pair = next
		}
		if pair == nil {
			return nil
		}
		return pair.Lhs
	})
}

func callee(node ast.PositionHolder) ast.Expr {
	if call, ok := node.(*ast.FuncCallExpr); ok {
		return call.Func
	}
	return nil
}

func onlyOperand(node ast.PositionHolder) ast.Expr {
	switch n := node.(type) {
	case *ast.UnaryMinusOpExpr:
		return n.Expr
	case *ast.UnaryLenOpExpr:
		return n.Expr
	}
	return nil
}

func leftOperand(node ast.PositionHolder) ast.Expr {
	if n, ok := node.(*ast.ArithmeticOpExpr); ok {
		return n.Lhs
	}
	return nil
}

func rightOperand(node ast.PositionHolder) ast.Expr {
	if n, ok := node.(*ast.ArithmeticOpExpr); ok {
		return n.Rhs
	}
	return nil
}
