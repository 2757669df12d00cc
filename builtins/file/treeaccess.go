package file

import (
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// looksAt is the access of a request for what is at many paths.
func looksAt(in *pb.StatFilesRequest) builtins.Access {
	return builtins.Access{Reads: in.Paths, Ops: len(in.Paths)}
}

// makes is the access of a request that makes many objects. A file that gets another name is changed, too: what is written by
// that name it then holds.
func makes(in *pb.WriteFilesRequest) builtins.Access {
	a := builtins.Access{Ops: len(in.Entries)}
	for _, entry := range in.Entries {
		a.Writes = append(a.Writes, entry.Path)
		if entry.Kind == kindHardLink {
			a.Reads, a.Writes = append(a.Reads, entry.Target), append(a.Writes, entry.Target)
		}
	}
	return a
}

// looksAs are the rows that do what a request for many paths does.
func looksAs(in proto.Message) []string {
	if request, ok := in.(*pb.StatFilesRequest); in == nil || ok && request.GetSha256() {
		return []string{"file_stat", "file_read"}
	}
	return []string{"file_stat"}
}

// makesAs are the rows that make what a request makes. What may be there already and gets a mode, an ACL or an owner is changed
// as by file.chmod and file.chown.
func makesAs(in proto.Message) []string {
	if in == nil {
		return []string{"file_write", "create_directory", "file.symlink", "file.chmod", "file.chown"}
	}
	var rows []string
	add := func(row string) {
		if !slices.Contains(rows, row) {
			rows = append(rows, row)
		}
	}
	for _, entry := range in.(*pb.WriteFilesRequest).GetEntries() {
		switch entry.GetKind() {
		case string(fsys.Directory):
			add("create_directory")
		case string(fsys.Symlink):
			add("file.symlink")
		default:
			add("file_write")
		}
		mayBeThere := entry.GetKind() == string(fsys.Directory) || entry.GetKind() == kindAttributes
		if mayBeThere && (entry.Mode != nil || entry.GetSetXattrs()) {
			add("file.chmod")
		}
		owned := entry.GetOwner() != "" || entry.GetGroup() != "" || entry.Uid != nil || entry.Gid != nil
		if owned && (mayBeThere || entry.GetKind() == string(fsys.Symlink)) {
			add("file.chown")
		}
	}
	return rows
}
