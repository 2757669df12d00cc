package file

import (
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/edit"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Room is what the table, the executor and the agent know of the room.
func (r *Room) Room() builtins.Room {
	return builtins.Room{
		Name: "file", Scope: builtins.ScopePaths, Ops: append(r.native(), r.script()...),
		Start: r.begins, SessionClosed: r.sessionClosed, Close: r.close,
	}
}

// native are the rows that hosts call.
func (r *Room) native() []builtins.Op {
	return []builtins.Op{
		{
			Name: "file_write", Capability: "file_write",
			Summary: "write a file in chunks; it takes its place with the last one",
			Mutates: true, Readonly: onlyStages, Transient: true, Order: pathOf,
			Access: builtins.WritesPath, Handler: builtins.Handle(r.fileWrite),
		},
		{
			Name: "file_read", Summary: "read a chunk of a file", Capability: "file_read",
			Transient: true, Access: builtins.ReadsPath, Handler: builtins.Handle(r.fileRead),
		},
		{
			Name: "list_directory", Summary: "list a directory, sorted by name", Capability: "file_list",
			Access: builtins.ReadsPath, Handler: builtins.Handle(r.listDirectory),
		},
		{
			Name: "create_directory", Summary: "make a directory that may exist already", Capability: "directory_create",
			Mutates: true, Access: builtins.WritesPath, Handler: builtins.Handle(r.createDirectory),
		},
		{
			Name: "file_delete", Summary: "remove a file, a link or a directory", Capability: "file_delete",
			Mutates: true, Access: deletes, Handler: builtins.Handle(r.fileDelete),
		},
		{
			Name: "file_stat", Summary: "describe a file, directory or link", Capability: "file_stat",
			Access: builtins.ReadsPath, Handler: builtins.Handle(r.fileStat),
		},
		{
			Name: "stat_files", Summary: "describe what is at each of many paths", Capability: "file_tree",
			SameAs: looksAs, Access: builtins.Of(looksAt), Handler: builtins.Handle(r.statFiles),
		},
		{
			Name: "write_files", Summary: "make many files, directories and links", Capability: "file_tree",
			Mutates: true, Transient: true, SameAs: makesAs, Access: builtins.Of(makes), Handler: builtins.Handle(r.writeFiles),
		},
	}
}

// script are the rows that scripts call. One that shows what was in a file, by a diff or a copy, reads it.
func (r *Room) script() []builtins.Op {
	return append([]builtins.Op{
		{
			Name: "file.read", Usage: "(path) content", Summary: "the content of a file",
			Access: builtins.ReadsPath, Handler: builtins.Handle(r.read),
		},
		{
			Name: "file.exists", Usage: "(path) exists", Summary: "whether something is there, be it a link to nothing",
			Access: builtins.ReadsPath, Handler: builtins.Handle(r.exists),
		},
		{
			Name: "file.stat", Usage: "(path)", Summary: "describe what is there, a link itself",
			Access: builtins.ReadsPath, Handler: builtins.Handle(r.stat),
		},
		{
			Name: "file.list", Usage: "(path) entries", Summary: "describe what is in a directory, sorted by name",
			Access: builtins.ReadsPath, Handler: builtins.Handle(r.list),
		},
		{
			Name: "file.glob", Usage: "(pattern) paths",
			Summary: "the paths that match a pattern of *, ? and [a-z], sorted",
			Access: builtins.Of(func(in *pb.GlobArgs) builtins.Access {
				return builtins.Access{Patterns: []string{in.Pattern}}
			}),
			Handler: builtins.Handle(r.glob),
		},
		{
			Name: "file.sha256", Usage: "(path) sha256", Summary: "the SHA-256 of the content of a file, in hex",
			Access: builtins.ReadsPath, Handler: builtins.Handle(r.sha256),
		},
		{
			Name: "file.attachment", Usage: "(name) content", Summary: "the content of a file that came with the script",
			Handler: builtins.Handle(r.attachment),
		},
	}, r.changing()...)
}

// changing are those of them that change something.
func (r *Room) changing() []builtins.Op {
	rows := []builtins.Op{
		{
			Name: "file.write", Usage: "(path, content) changed", Summary: "make a file have a content",
			Inverse: edit.Inverse, Access: rewrites, SameAs: validates, Handler: builtins.Handle(r.write),
		},
		{
			Name: "file.append", Usage: "(path, content) changed", Summary: "add to the end of a file",
			Inverse: edit.Inverse, Access: rewrites, SameAs: validates, Handler: builtins.Handle(r.append),
		},
		{
			Name: "file.template", Usage: "(path, text, [vars]) changed",
			Summary: "write a file from a text with {{name}} in it",
			Inverse: edit.Inverse, Access: rewrites, SameAs: validates, Handler: builtins.Handle(r.template),
		},
		{
			Name: "file.line", Usage: "(path) changed", Summary: "make a line stand in a text file, or not stand there",
			Inverse: edit.Inverse, Access: rewrites, SameAs: validates, Handler: builtins.Handle(r.line),
		},
		{
			Name: "file.block", Usage: "(path) changed",
			Summary: "make some lines stand in a text file between two lines that mark them, or not stand there",
			Inverse: edit.Inverse, Access: rewrites, SameAs: validates, Handler: builtins.Handle(r.block),
		},
		{
			Name: "file.replace", Usage: "(path, pattern, replacement) changed",
			Summary: "replace what matches a pattern in a text file",
			Inverse: edit.Inverse, Access: rewrites, SameAs: validates, Handler: builtins.Handle(r.replace),
		},
		{
			Name: "file.mkdir", Usage: "(path) changed", Summary: "make a directory",
			Access: builtins.WritesPath, Handler: builtins.Handle(r.mkdir),
		},
		{
			Name: "file.remove", Usage: "(path) changed", Summary: "remove what is there, if anything is",
			Access: builtins.Of(func(in *pb.RemoveArgs) builtins.Access {
				return builtins.Access{Reads: []string{in.Path}, Writes: []string{in.Path}, Trees: []string{in.Path}}
			}),
			Handler: builtins.Handle(r.remove),
		},
		{
			Name: "file.copy", Usage: "(from, to) changed", Summary: "make a file have the content of another",
			Access: builtins.Of(func(in *pb.FromToArgs) builtins.Access {
				return builtins.Access{Reads: []string{in.From, in.To}, Writes: []string{in.To}}
			}),
			Handler: builtins.Handle(r.copy),
		},
		{
			Name: "file.move", Usage: "(from, to) changed", Summary: "give a file or directory another path",
			Inverse: edit.Moved,
			Access: builtins.Of(func(in *pb.FromToArgs) builtins.Access {
				return builtins.Access{Reads: []string{in.From}, Writes: []string{in.From, in.To}, Trees: []string{in.From}}
			}),
			Handler: builtins.Handle(r.move),
		},
		{
			Name: "file.symlink", Usage: "(target, path) changed", Summary: "make a symbolic link",
			Access: builtins.WritesPath, Handler: builtins.Handle(r.symlink),
		},
		{
			Name: "file.chmod", Usage: "(path, mode) changed", Summary: "set the mode of a file or directory",
			Inverse: edit.Inverse, Access: builtins.WritesPath, Handler: builtins.Handle(r.chmod),
		},
		{
			Name: "file.chown", Usage: "(path, [owner], [group]) changed",
			Summary: "set the owner and group of a file or directory",
			Inverse: edit.Inverse, Access: builtins.WritesPath, Handler: builtins.Handle(r.chown),
		},
	}
	for i := range rows {
		rows[i].Mutates, rows[i].Predictable = true, true
	}
	return append(rows, builtins.Op{
		Name: edit.Moved, Usage: "(path) changed", Summary: "move a file or directory back",
		Mutates: true, Internal: true, Early: true,
		Access: builtins.Of(func(in *pb.JournalObject) builtins.Access {
			return builtins.Access{Writes: []string{in.MovedTo, in.Path}, Trees: []string{in.MovedTo}}
		}),
		Handler: builtins.Handle(r.edit.MoveBack),
	}, builtins.Op{
		Name: edit.Inverse, Usage: "(path) changed", Summary: "give a file the attributes that it had",
		Mutates: true, Internal: true, Early: true, Access: builtins.WritesPath, Handler: builtins.Handle(r.edit.RestoreAttr),
	})
}

// pathOf keeps the requests of one path in order.
func pathOf(in proto.Message) string { return in.(interface{ GetPath() string }).GetPath() }

// deletes is the access of a native row that removes a path with all that is below.
func deletes(in proto.Message) builtins.Access {
	return builtins.Access{Writes: []string{pathOf(in)}, Trees: []string{pathOf(in)}}
}

// rewrites is the access of a row that puts something into a file, and shows what was there.
func rewrites(in proto.Message) builtins.Access {
	a := builtins.Access{Reads: []string{pathOf(in)}, Writes: []string{pathOf(in)}}
	if with, ok := in.(interface{ GetBackup() bool }); ok && with.GetBackup() {
		a.Writes = append(a.Writes, pathOf(in)+edit.BackupSuffix)
		a.Siblings = []builtins.Sibling{{Path: pathOf(in), Suffix: edit.BackupSuffix}} // a link is followed
	}
	if argv := validation(in); len(argv) > 0 {
		a.Commands = []builtins.Command{guest.CommandAccess(argv, nil, "")}
	}
	return a
}

// validation is the program that checks the new file; empty: none does.
func validation(in proto.Message) []string {
	if with, ok := in.(interface{ GetValidate() []string }); ok {
		return with.GetValidate()
	}
	return nil
}

// validates is the row that does what a request to have a new file checked does.
func validates(in proto.Message) []string {
	if in == nil || len(validation(in)) > 0 {
		return []string{"exec.run"}
	}
	return nil
}
