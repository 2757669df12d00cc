package lua

import (
	"fmt"

	glua "github.com/yuin/gopher-lua"
)

// The interpreter's compiler does not see where a number is too large for the bits that an instruction has for it, and
// its table constructors are wrong around each 50th element. What it compiled is therefore corrected here, or refused.
const (
	maxRegister    = 200     // of a function; the compiler refuses more, but does not count those of function values
	maxUpvalues    = 255     // of a function
	maxFunctions   = 1 << 18 // within a function
	maxJump        = 1<<17 - 1
	maxListCounter = 511 // of the groups of elements in a SETLIST; a higher number is in the word after it
)

// instruction is a word of compiled code: 6 bits of operation, 8 of A, 9 of C and 9 of B.
type instruction uint32

func (i instruction) op() int { return int(i >> 26) }
func (i instruction) a() int  { return int(i>>18) & 0xff }
func (i instruction) b() int  { return int(i) & 0x1ff }
func (i instruction) c() int  { return int(i>>9) & 0x1ff }

// correct corrects a compiled function and those within it. An error is about a limit that the function exceeds.
// loops are the functions that have a loop or a goto, by the line on which they begin.
func correct(p *glua.FunctionProto, loops map[int]bool) error {
	refuse := func(format string, args ...any) error {
		return &failure{kind: "syntax", message: fmt.Sprintf(format, args...), at: position{p.SourceName, p.LineDefined}}
	}
	switch {
	case len(p.DbgUpvalues) > maxUpvalues:
		return refuse("a function uses %d local variables of the functions around it, the limit is %d", len(p.DbgUpvalues), maxUpvalues)
	case len(p.FunctionPrototypes) > maxFunctions:
		return refuse("a function has %d functions within it, the limit is %d", len(p.FunctionPrototypes), maxFunctions)
	case len(p.Code) > maxJump && loops[p.LineDefined]:
		return refuse("a function with a loop has %d instructions, the limit is %d", len(p.Code), maxJump)
	}
	if line, why := correctCode(p); why != "" {
		return &failure{kind: "syntax", message: why, at: position{p.SourceName, line}}
	}
	for _, inner := range p.FunctionPrototypes {
		if err := correct(inner, loops); err != nil {
			return err
		}
	}
	return nil
}

// correctCode corrects the table constructors of one function. It returns the line of what cannot be corrected, and why.
func correctCode(p *glua.FunctionProto) (line int, why string) {
	var stored [1 << 8]int // how many groups of elements the constructor has stored, by the register of its table
	for pc := 0; pc < len(p.Code); pc++ {
		in := instruction(p.Code[pc])
		switch in.op() {
		case glua.OP_NEWTABLE:
			stored[in.a()] = 0
		case glua.OP_CLOSURE:
			if in.a() >= maxRegister {
				return p.DbgSourcePositions[pc], "too many values at once, split the statement"
			}
			pc += int(p.FunctionPrototypes[p.Code[pc]&0x3ffff].NumUpvalues)
		case glua.OP_SETLIST:
			inNextWord := in.c() == 0
			if in.b() == glua.FieldsPerFlush && storesField(p.Code[pc-1], in.a()) {
				// The elements were stored before the named field, and their registers have other values now.
				p.Code[pc] = uint32(glua.OP_NOP) << 26
				if inNextWord {
					pc++ // it moves a register to itself
				}
				continue
			}
			n := stored[in.a()] + 1
			stored[in.a()] = n
			if inNextWord {
				pc++
				p.Code[pc] = uint32(n)
			} else if n > maxListCounter {
				return p.DbgSourcePositions[pc], "a table with this many elements cannot end in a call or ..., add those afterwards"
			} else {
				p.Code[pc] = p.Code[pc]&^(0x1ff<<9) | uint32(n)<<9
			}
		}
	}
	return 0, ""
}

// storesField reports whether a word of code stores a named field into the table in a register.
func storesField(word uint32, table int) bool {
	in := instruction(word)
	return (in.op() == glua.OP_SETTABLE || in.op() == glua.OP_SETTABLEKS) && in.a() == table
}
