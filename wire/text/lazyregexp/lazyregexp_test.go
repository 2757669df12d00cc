package lazyregexp

import "testing"

func TestNew(t *testing.T) {
	digits := New(`^[0-9]+$`)
	first := digits()
	if !first.MatchString("42") || first.MatchString("x") || digits() != first {
		t.Error(first)
	}
	defer func() {
		if recover() == nil {
			t.Error("a faulty expression is taken")
		}
	}()
	New(`(`)()
}
