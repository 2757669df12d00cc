package builtins

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Of each field it is found out what a rule would make of it, also where it counts among others only.
func TestRolesAreFoundByTrying(t *testing.T) {
	run := Of(func(in *pb.RunArgs) Access {
		a := Access{Writes: in.Touches, Commands: []Command{{Argv: in.Argv, Dir: in.Cwd}}}
		if len(in.Undo) > 0 {
			a.Commands = append(a.Commands, Command{Argv: in.Undo})
		}
		return a
	})
	for name, c := range map[string]struct {
		op   Op
		want Roles
	}{
		"none":    {script[*pb.PathArgs, *pb.Changed]("a.b", "(path)"), Roles{}},
		"read":    {with(script[*pb.PathArgs, *pb.Changed]("a.b", "(path)"), ReadsPath), Roles{Paths: []string{"path"}}},
		"written": {with(script[*pb.RemoveArgs, *pb.Changed]("a.b", "(path)"), WritesPath), Roles{Paths: []string{"path"}}},
		"pattern": {with(script[*pb.GlobArgs, *pb.Changed]("a.b", "(pattern)"), Of(func(in *pb.GlobArgs) Access {
			return Access{Patterns: []string{in.Pattern}}
		})), Roles{Paths: []string{"pattern"}}},
		"tree": {with(script[*pb.FromToArgs, *pb.Changed]("a.b", "(from, to)"), Of(func(in *pb.FromToArgs) Access {
			return Access{Reads: []string{in.From}, Writes: []string{in.To}, Trees: []string{in.From}}
		})), Roles{Paths: []string{"from", "to"}}},
		"command": {with(script[*pb.RunArgs, *pb.RunResult]("a.b", "(argv)"), run),
			Roles{Paths: []string{"touches"}, Commands: []string{"argv", "undo"}}},
		"within a line": {with(script[*pb.ShellArgs, *pb.RunResult]("a.b", "(command)"), Of(func(in *pb.ShellArgs) Access {
			return Access{Commands: []Command{{Argv: []string{"sh", "-c", in.Command}}}}
		})), Roles{Commands: []string{"command"}}},
		"object": {with(script[*pb.PathArgs, *pb.Changed]("a.b", "(path)"), Of(func(in *pb.PathArgs) Access {
			return Access{Objects: []Object{{"unit", in.Path + ".service"}}}
		})), Roles{Objects: []string{"path"}}},
		"two at once": {with(script[*pb.SymlinkArgs, *pb.Changed]("a.b", "(target, path)"), Of(func(in *pb.SymlinkArgs) Access {
			return Access{Writes: []string{in.Path}, Objects: []Object{{"unit", in.Path}}}
		})), Roles{Paths: []string{"path"}, Objects: []string{"path"}}},
	} {
		got := NewTable(Room{Name: "a", Ops: []Op{c.op}}).Script("a.b").Roles
		if !slices.Equal(got.Paths, c.want.Paths) || !slices.Equal(got.Commands, c.want.Commands) || !slices.Equal(got.Objects, c.want.Objects) {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

// The probe leaves the prototypes as they were.
func TestProbingWritesToNoPrototype(t *testing.T) {
	op := with(script[*pb.PathArgs, *pb.Changed]("a.b", "(path)"), ReadsPath)
	table := NewTable(Room{Name: "a", Ops: []Op{op}})
	if access := table.Script("a.b").AccessOf(op.In); !slices.Equal(access.Reads, []string{""}) {
		t.Errorf("%q", access.Reads)
	}
}

func checkStatic(t *testing.T, pattern, wantDir string, wantDeep bool) {
	t.Helper()
	if dir, deep := Static(pattern); dir != wantDir || deep != wantDeep {
		t.Errorf("%s: %s, %v, want %s, %v", pattern, dir, deep, wantDir, wantDeep)
	}
}

func TestStaticPartOfAPattern(t *testing.T) {
	for pattern, want := range map[string]struct {
		dir  string
		deep bool
	}{
		"/etc/hosts":     {"/etc/hosts", false},
		"/etc/*.conf":    {"/etc", false},
		"/etc/*/x":       {"/etc", true},
		"/*":             {"/", false},
		"/a/b[c]/d":      {"/a", true},
		"/a/../b/?":      {"/b", false},
		"*":              {"/", false},
		"/etc/x*/../y":   {"/etc/y", false},
		"/etc/./*.d/*.x": {"/etc", true},
	} {
		checkStatic(t, pattern, filepath.FromSlash(want.dir), want.deep)
	}
}

func TestWordsOfAnObject(t *testing.T) {
	if got := (Object{"unit", "nginx.service"}).String(); got != "unit:nginx.service" {
		t.Error(got)
	}
}
