package lua

import (
	"crypto/rand"
	"fmt"

	glua "github.com/yuin/gopher-lua"
)

// maxRandom is the most that random gives at once, in bytes: more than any key, and never a matter of memory.
const maxRandom = 4096

// random(bytes) gives that many random bytes, fit for keys and passwords. math.random is for neither.
func (m *machine) random(L *glua.LState) int {
	n := float64(L.CheckNumber(1))
	if !(n >= 1 && n <= maxRandom) || n != float64(int(n)) {
		L.ArgError(1, fmt.Sprintf("a whole number from 1 to %d expected", maxRandom))
	}
	b := make([]byte, int(n))
	rand.Read(b) // never fails
	L.Push(glua.LString(b))
	return 1
}
