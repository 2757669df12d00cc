package fsys

import (
	"context"
	"os"
)

// fileSystem is what a Root acts on: a real file system, or an overlay of one.
type fileSystem interface {
	// resolve returns the entry that a checked path leads to.
	resolve(path string, links follow) (*At, error)
	// identify is Root.Identify of a checked path.
	identify(path string) (Meta, error)
	// syncAll is Root.SyncAll.
	syncAll() error
	// isHost reports whether this is the file system that the agent itself lives in, where links may be traps.
	isHost() bool
	close() error
}

// directory is an open directory of a fileSystem. A name is one element of a path, not escaped, or "." for the
// directory itself. A link is never followed, and an error does not name the path.
type directory interface {
	close() error
	// dup opens the directory once more.
	dup() (directory, error)

	// each calls f with the name of each object in the directory, but for "." and "..", in no order, until it returns an error.
	each(f func(name string) error) error
	// stat describes an object; its extended attributes may be missing.
	stat(name string) (Meta, error)
	// capture describes the complete state of an object.
	capture(name string) (Meta, error)
	// checkLink returns why the link at name must not be followed; nil where it may be.
	checkLink(name string) error
	// checkWrite returns why the agent could not write to an object. Writing to a directory is changing the names in it.
	checkWrite(name string) error
	// checkMounts refuses a directory below which a file system is mounted.
	checkMounts(name string) error
	// sameMount reports whether names can be moved and linked between the two directories.
	sameMount(other directory) (bool, error)
	// mountNumber returns the number of the mount of what is at name, else of the directory; 0 where mounts have none.
	mountNumber(name string) (uint64, error)
	// mount describes that mount.
	mount(name string) (Mount, error)
	// pseudo reports whether the directory is on a file system that keeps nothing.
	pseudo() (bool, error)
	// stableInodes is At.StableInodes.
	stableInodes() (bool, error)

	// open opens a regular file.
	open(name string, write bool) (*os.File, error)
	// copyCost is At.CopyCost.
	copyCost(name string) (int64, error)
	// pretended reports whether the content of a file is an overlay's own.
	pretended(name string) bool
	// openAppend is At.OpenAppend.
	openAppend(name string) (*os.File, error)
	// openLeased is At.OpenLeased.
	openLeased(name string) (*os.File, error)
	// openSink is At.OpenSink of an object of a kind.
	openSink(name string, kind Kind) (*os.File, error)
	// openDir opens a directory for reading.
	openDir(name string) (directory, error)
	// create makes a file of mode 0600 and opens it for reading and writing. closeNew ends that.
	create(name string) (*os.File, error)
	// closeNew makes durable the content of a file that create made, and closes it.
	closeNew(file *os.File) error
	// make makes a directory of mode 0700, a link, or a special file of mode 0600. Of meta it takes what that needs.
	make(name string, meta Meta) error
	// begin makes such an object that is still to get its attributes; aside: under another name, until it is placed. Its error
	// leaves nothing.
	begin(name string, meta Meta, aside bool) (making, error)

	// setAttr sets what attr says on an object, which is fault.ErrChanged if it is of another kind.
	setAttr(name string, kind Kind, attr Attr) error
	// apply is At.Apply.
	apply(name string, meta Meta) error
	// setAttrFile is setAttr of a file that is open: the name may be another object's by now.
	setAttrFile(name string, file *os.File, attr Attr) error
	// applyFile is apply for a file that is open: the name may be another object's by now.
	applyFile(name string, file *os.File, meta Meta) error
	// copyAttrs gives a file that create made the attributes of the file old that it replaces, but for what attr says.
	copyAttrs(name string, file *os.File, old Meta, attr Attr) error

	// unlock is At.Unlock.
	unlock(name string) error

	// remove removes an empty directory, or anything else.
	remove(name string, isDir bool) error
	// removeAll removes a directory with all that is below it, and goes into none of which own, unless it is nil, says no.
	removeAll(ctx context.Context, name string, own func(dir Meta) bool) error
	// rename is At.Rename.
	rename(name string, to directory, toName string, replace bool) error
	// link is At.Link.
	link(name string, to directory, toName string) error
	// syncAll makes durable all of the file system that the directory is on.
	syncAll() error
	// sync makes an object durable: of a directory the names in it, of a file content and state.
	sync(name string) error
	// sweep removes temporary files that nobody has locked, and returns how many there were.
	sweep() (int, error)
}
