// Package file is the room for files and directories of the guest.
//
//	host    file_write  file_read  list_directory  …  ──┐              ┌── fsys.Root: where, safely
//	                                                    ├──► one core ─┼── Call.Before, Take, Undo: what it was
//	script  file.write  file.read  file.list       …  ──┘              └── Call.Report: what became of it
//
// A file is replaced whole or not at all: written beside its place, made durable, renamed. Every function of a script
// that changes something looks first, and where the guest is as it is wanted it touches nothing and says so. The host's
// rows do what the contract says, and refuse where it would do harm. Owners are looked up in the files of the root.
//
// Not here: who may touch which path, how a change is undone, and Lua.
package file

import (
	"errors"
	"io/fs"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/crc32c"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Config is what the room needs to know. The zero value works.
type Config struct {
	// Protected are paths of the agent's own: neither they nor what is below them is changed, nor are directories above
	// them removed or moved. Optional.
	Protected []string
	// UploadIdle is how long an upload may wait for its next chunk before it is dropped; 0: 5 minutes.
	UploadIdle time.Duration
	// MaxUploads is how many uploads may be under way at once; 0: 64.
	MaxUploads int
}

// Room holds the operations on files. It is safe for concurrent use.
type Room struct {
	root      *fsys.Root
	protected []string
	uploads   *uploads
	readers   readers
	held      held
	crc       crc32c.Sum
}

// New makes the room for the files of a root, which stays the caller's. The caller closes the room before the root.
func New(root *fsys.Root, config Config) *Room {
	if config.UploadIdle == 0 {
		config.UploadIdle = 5 * time.Minute
	}
	if config.MaxUploads == 0 {
		config.MaxUploads = 64
	}
	return &Room{
		root: root, protected: config.Protected, crc: crc32c.New(),
		uploads: &uploads{root: root, open: map[uploadKey]*upload{}, idle: config.UploadIdle, max: config.MaxUploads},
	}
}

// Close drops all uploads under way, and what they wrote so far. Later chunks are refused.
func (r *Room) Close() error {
	r.held.close()
	return r.uploads.close()
}

// Ops lists the rows of the room. A script's row that tells what was in a file, by a diff or a copy, reads it.
func (r *Room) Ops() []builtins.Op {
	return []builtins.Op{
		builtins.Native("file_write", "write a file in chunks; it takes its place with the last one", r.fileWrite).Writes("path").Mutating().Announce("file_write").Unless(onlyStages).KeepsNothing().
			Ordered(func(in proto.Message) string { return in.(*pb.FileWriteRequest).Path }),
		builtins.Native("file_read", "read a chunk of a file", r.fileRead).Reads("path").Announce("file_read"),
		builtins.Native("list_directory", "list a directory, sorted by name", r.listDirectory).Reads("path").Announce("file_list"),
		builtins.Native("create_directory", "make a directory that may exist already", r.createDirectory).Writes("path").Mutating().Announce("directory_create"),
		builtins.Native("file_delete", "remove a file, a link or a directory", r.fileDelete).Writes("path").WholeTree("path").Mutating().Announce("file_delete"),
		builtins.Native("file_stat", "describe a file, directory or link", r.fileStat).Reads("path").Announce("file_stat"),

		builtins.Script("file.read", "path", "content", "the content of a file", r.read).Reads("path"),
		builtins.Script("file.write", "path content", "changed", "make a file have a content", r.write).Reads("path").Writes("path").Mutating().Plans(),
		builtins.Script("file.append", "path content", "changed", "add to the end of a file", r.append).Reads("path").Writes("path").Mutating().Plans(),
		builtins.Script("file.exists", "path", "exists", "whether something is there, be it a link to nothing", r.exists).Reads("path"),
		builtins.Script("file.stat", "path", "", "describe what is there, a link itself", r.stat).Reads("path"),
		builtins.Script("file.list", "path", "entries", "describe what is in a directory, sorted by name", r.list).Reads("path"),
		builtins.Script("file.glob", "pattern", "paths", "the paths that match a pattern of *, ? and [a-z], sorted", r.glob).Matches("pattern"),
		builtins.Script("file.mkdir", "path", "changed", "make a directory", r.mkdir).Writes("path").Mutating().Plans(),
		builtins.Script("file.remove", "path", "changed", "remove what is there, if anything is", r.remove).Reads("path").Writes("path").WholeTree("path").Mutating().Plans(),
		builtins.Script("file.copy", "from to", "changed", "make a file have the content of another", r.copy).Reads("from", "to").Writes("to").Mutating().Plans(),
		builtins.Script("file.move", "from to", "changed", "give a file or directory another path", r.move).Reads("from").Writes("from", "to").WholeTree("from").Mutating().Plans(),
		builtins.Script("file.symlink", "target path", "changed", "make a symbolic link", r.symlink).Writes("path").Free("target").Mutating().Plans(),
		builtins.Script("file.chmod", "path mode", "changed", "set the mode of a file or directory", r.chmod).Writes("path").Mutating().Plans(),
		builtins.Script("file.chown", "path [owner] [group]", "changed", "set the owner and group of a file or directory", r.chown).Writes("path").Mutating().Plans(),
		builtins.Script("file.attributes", "path", "changed", "give a file the attributes that it had", r.attributes).Mutating().Hidden(),
		builtins.Script("file.sha256", "path", "sha256", "the SHA-256 of the content of a file, in hex", r.sha256).Reads("path"),
		builtins.Script("file.template", "path text [vars]", "changed", "write a file from a text with {{name}} in it", r.template).Reads("path").Writes("path").Mutating().Plans(),
		builtins.Script("file.line", "path", "changed", "make a line stand in a text file, or not stand there", r.line).Reads("path").Writes("path").Mutating().Plans(),
		builtins.Script("file.replace", "path pattern replacement", "changed", "replace what matches a pattern in a text file", r.replace).Reads("path").Writes("path").Free("pattern").Mutating().Plans(),
		builtins.Script("file.attachment", "name", "content", "the content of a file that came with the script", r.attachment),
	}
}

// files is the file system that a call acts on: the guest's, or what a dry run pretends it to be.
func (r *Room) files(call *builtins.Call) *fsys.Root {
	if call.Plan != nil {
		return call.Plan.Files
	}
	return r.root
}

// guard refuses to change what is the agent's own. path is a resolved one; whole says that what is below goes too.
func (r *Room) guard(path string, whole bool) error {
	for _, own := range r.protected {
		resolved, err := r.root.Resolve(own, true)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if fsys.Within(path, resolved) || whole && fsys.Within(resolved, path) {
			return fault.Refuse("%s is the agent's own", resolved)
		}
	}
	return nil
}
