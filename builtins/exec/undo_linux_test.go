package exec

import (
	"os"
	"testing"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// An undo is met by a guest where its command never ran: there its own words decide, not that it fails.
func TestUndoWithNothingToUndo(t *testing.T) {
	_, table := room(t, Config{})
	sh := func(line string) []string { return []string{"sh", "-c", line} }
	for name, test := range map[string]struct {
		undo     *pb.RunArgs
		ran, bad bool
	}{
		"an exit code that is declared":     {undo: &pb.RunArgs{Argv: sh("touch ran; exit 6"), UndoOk: []int32{12, 6}}, ran: true},
		"another exit code":                 {undo: &pb.RunArgs{Argv: sh("touch ran; exit 1"), UndoOk: []int32{6}}, ran: true, bad: true},
		"a signal is no exit code":          {undo: &pb.RunArgs{Argv: sh("kill -9 $$"), UndoOk: []int32{137}}, bad: true},
		"a test that says no":               {undo: &pb.RunArgs{Argv: sh("touch ran"), UndoIf: sh("exit 2")}},
		"a test that says yes":              {undo: &pb.RunArgs{Argv: sh("touch ran"), UndoIf: sh("exit 0")}, ran: true},
		"a test that does not exist":        {undo: &pb.RunArgs{Argv: sh("touch ran"), UndoIf: []string{"/no/such"}}, bad: true},
		"a test whose program is not there": {undo: &pb.RunArgs{Argv: sh("touch ran"), UndoIf: sh("no-such-program")}, bad: true},
		"a test that is killed":             {undo: &pb.RunArgs{Argv: sh("touch ran"), UndoIf: sh("kill -9 $$")}, bad: true},
	} {
		x := &tx{}
		c := &calling{table: table, tx: x}
		in := &pb.RunArgs{Argv: []string{"true"}, Cwd: t.TempDir(), Undo: test.undo.Argv, UndoOk: test.undo.UndoOk, UndoIf: test.undo.UndoIf}
		if _, err := c.invoke("exec.run", in); err != nil || len(x.undo) != 1 {
			t.Fatalf("%s: %v, %v", name, x.undo, err)
		}
		_, err := c.invoke("exec.undo", x.undo[0])
		_, missing := os.Stat(in.Cwd + "/ran")
		if (err != nil) != test.bad || (missing == nil) != test.ran {
			t.Errorf("%s: ran %v, %v", name, missing == nil, err)
		}
	}
}
