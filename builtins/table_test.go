package builtins

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func changed(op Op, f func(*Op)) Op {
	f(&op)
	return op
}

// A programmer's mistake ends the program at its start, and is named.
func TestATablePanics(t *testing.T) {
	write := script[*pb.WriteFileArgs, *pb.Changed]("file.write", "(path, content) changed")
	stat := native[*pb.FileStatRequest, *pb.FileStatResponse]("file_stat")
	file := func(ops ...Op) []Room { return []Room{{Name: "file", Ops: ops}} }
	for want, rooms := range map[string][]Room{
		"file.write stands twice":               file(write, write),
		"file_stat stands twice":                file(stat, stat),
		"room file stands twice":                append(file(write), file(stat)...),
		"room":                                  {{Ops: []Op{write}}},
		"it is not of the room exec":            {{Name: "exec", Ops: []Op{write}}},
		"its inverse file.unwrite is not there": file(changed(write, func(op *Op) { op.Inverse = "file.unwrite" })),
		"its inverse file_stat is not there":    file(stat, changed(write, func(op *Op) { op.Inverse = "file_stat" })),
		"no handler or no summary":              file(Op{Name: "file.write", Usage: "(path)", Summary: "x"}),
		"handler or no summary":                 file(changed(write, func(op *Op) { op.Summary = "" })),
		"is not like":                           file(changed(write, func(op *Op) { op.Usage = "path" })),
		"WriteFileArgs has no argument file":    file(changed(write, func(op *Op) { op.Usage = "(file)" })),
		"Changed has no result wrote":           file(changed(write, func(op *Op) { op.Usage = "(path) wrote" })),
		"file. is not room.function":            file(changed(write, func(op *Op) { op.Name = "file." })),
		"has no request file_read of type":      file(changed(stat, func(op *Op) { op.Name = "file_read" })),
		"has no request file.write of type":     file(changed(write, func(op *Op) { op.Usage = "" })),
		"a transaction of its own is for rows":  file(changed(stat, func(op *Op) { op.Transaction = true })),
		"is for rows that change something themselves": file(changed(stat, func(op *Op) {
			op.Transaction, op.Mutates, op.Delegates = true, true, true
		})),
		"no transaction that a request could be without": file(changed(stat, func(op *Op) {
			op.NoTransaction = func(proto.Message) bool { return true }
		})),
		"a script has a transaction already": file(changed(write, func(op *Op) { op.Transaction, op.Mutates = true, true })),
		"by the journal alone":               file(changed(stat, func(op *Op) { op.Internal = true })),
		"the tree path is neither read nor changed": file(with(write, Of(func(in *pb.WriteFileArgs) Access {
			return Access{Trees: []string{in.Path}}
		}))),
	} {
		func() {
			defer func() {
				if got := fmt.Sprint(recover()); !strings.Contains(got, want) {
					t.Errorf("panicked with %q, want %q", got, want)
				}
			}()
			NewTable(rooms...)
		}()
	}
}

func TestATable(t *testing.T) {
	inverse := changed(script[*pb.PathArgs, *pb.Changed]("file.unwrite", "(path)"), func(op *Op) { op.Internal = true })
	write := changed(script[*pb.WriteFileArgs, *pb.Changed]("file.write", "(path, content) changed"), func(op *Op) { op.Inverse = "file.unwrite" })
	stat := changed(native[*pb.FileStatRequest, *pb.FileStatResponse]("file_stat"), func(op *Op) { op.Capability = "stat" })
	read := changed(native[*pb.FileReadRequest, *pb.FileReadResponse]("file_read"), func(op *Op) { op.Capability = "read" })
	list := changed(native[*pb.ListDirectoryRequest, *pb.ListDirectoryResponse]("list_directory"), func(op *Op) { op.Capability = "stat" })
	table := NewTable(
		Room{Name: "file", Scope: ScopePaths, Ops: []Op{write, stat, inverse, read, list}},
		Room{Name: "host", Ops: []Op{script[*pb.NoArgs, *pb.HostInfo]("host.info", "()")}},
		Room{Name: "hidden", Scope: "unit", Ops: []Op{changed(script[*pb.PathArgs, *pb.Changed]("hidden.undo", "(path)"), func(op *Op) { op.Internal = true })}},
	)
	var names []string
	for _, op := range table.Ops() {
		names = append(names, op.Name)
	}
	if !slices.IsSorted(names) || len(names) != 7 {
		t.Error(names)
	}
	if table.Native(&pb.FileStatRequest{}).Name != "file_stat" || table.Native(&pb.WriteFileArgs{}) != nil || table.Native(&pb.PingRequest{}) != nil {
		t.Error("a native row is not found by its request, or a script's is")
	}
	if table.Script("file.unwrite") == nil || table.Script("file_stat") != nil || table.Script("file.nothing") != nil {
		t.Error("a script row is not found by its name, or a native one is")
	}
	names = nil
	for _, op := range table.Functions() {
		names = append(names, op.Name)
	}
	if !slices.Equal(names, []string{"file.write", "host.info"}) {
		t.Error(names)
	}
	if scopes := table.Scopes(); len(scopes) != 2 || scopes["file"] != ScopePaths || scopes["host"] != ScopeNone {
		t.Error(scopes)
	}
	if got := table.Capabilities(func(*Op) bool { return false }); !slices.Equal(got, []string{"read", "stat"}) {
		t.Error(got)
	}
	if got := table.Capabilities(func(op *Op) bool { return op.Name == "file_stat" }); !slices.Equal(got, []string{"read", "stat"}) {
		t.Errorf("what another row stands for as well is announced still: %q", got)
	}
	if got := table.Capabilities(func(op *Op) bool { return op.Capability == "stat" }); !slices.Equal(got, []string{"read"}) {
		t.Error(got)
	}
}
