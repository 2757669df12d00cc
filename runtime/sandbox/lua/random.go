package lua

import (
	"crypto/rand"
	"fmt"

	glua "github.com/yuin/gopher-lua"
)

// maxRandom is how many bytes random returns at most: more than any key needs.
const maxRandom = 4096

// random(bytes) returns that many random bytes, fit for keys and passwords. math.random is fit for neither.
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
