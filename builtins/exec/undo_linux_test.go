package exec

import (
	"errors"
	"fmt"
	"io/fs"
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

// What a readonly command says is of the guest as it is. Only one that asks for it has a view of its own, and what decides
// about an undo never has.
func TestPrivateViewIsAskedFor(t *testing.T) {
	r, table := room(t, Config{})
	if !r.confines() {
		t.Skipf("%s: run as root, where mount namespaces may be made", r.confinement())
	}
	file := fmt.Sprintf("/run/quantix-private-%d", os.Getpid())
	write := []string{"sh", "-c", "echo x >" + file} // fails, and says that the file system is read-only, and a name in /run
	c := &calling{table: table}
	if out, err := c.invoke("exec.run", &pb.RunArgs{Argv: write, Readonly: true}); err == nil {
		t.Error(out)
	}
	if _, err := c.invoke("exec.run", &pb.RunArgs{Argv: write, Readonly: true, Private: true}); err != nil {
		t.Error(err)
	}
	if _, err := c.invoke("exec.sh", &pb.ShellArgs{Command: write[2], Readonly: true, Private: true}); err != nil {
		t.Error(err)
	}
	dir := t.TempDir()
	if _, err := c.invoke("exec.undo", &pb.RunArgs{Argv: []string{"touch", dir + "/undone"}, UndoIf: write}); err == nil {
		t.Error("a test that may not write said no")
	}
	for _, path := range []string{file, dir + "/undone"} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s is there", path)
		}
	}
	for _, wrong := range []*pb.RunArgs{
		{Argv: write, Private: true, Irreversible: true}, {Argv: write, Private: true, Undo: write}, {Argv: write, Private: true, Touches: []string{file}},
		{Argv: write, Private: true, Readonly: true, Unconfined: true},
	} {
		if _, err := c.invoke("exec.run", wrong); !errors.Is(err, fs.ErrInvalid) {
			t.Errorf("%v: %v", wrong, err)
		}
	}
}
