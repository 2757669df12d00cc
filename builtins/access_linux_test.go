package builtins

import "testing"

// What is escaped may be any name.
func TestStaticPartOfAnEscapedPattern(t *testing.T) {
	checkStatic(t, `/a/b\*c`, "/a", false)
	checkStatic(t, `/a/b\*c/d`, "/a", true)
}
