// Package fsys accesses the guest's files as root, in such a way that no other user can redirect it to other files.
//
//	"/var/run/app/x" ──► Root ──resolve, one safe element at a time──► At {open directory, "x"}
//	                      │                                             │
//	          fileSystem: realRoot, overlay      directory: realDir, overlayDir
//	                                                                    │
//	              Stat  Capture  Open  Mkdir  Remove  Rename  …  ◄──────┤
//	              Staged: temp ► owner, mode, xattrs ► fsync ► rename ◄─┘
//
// A path is resolved once, to an open directory and a name in it, and everything after that goes by the two. So nobody
// can change what a path means between a check and the use of it.
//
// A path begins with a slash. Its elements are taken as the kernel does: ".." leaves the directory that a link led to,
// not the one that the link is in, and stays in the root. A slash at the end means that the path names a directory. On
// the host's own file system a link is followed only if it is root's (or the agent's own) in a directory where nobody
// else can rename (or a sticky one); under another root a link is followed wherever it points, and stays inside. Links
// of /proc that lead to an object and not to a path are never followed. The last element is followed by Root.Follow
// alone.
//
// Names need not be UTF-8, but strings of messages must: see wire/text.
//
// An overlay (Root.Overlay) is a root on which changes are kept beside the real files: the dry run of a script acts on
// one.
//
// Not here: what an operation means, transactions, and who may touch which path.
package fsys

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// Kind is the type of an object; Absent where there is none.
type Kind string

// The kinds of objects. Their text is for ever: the journal stores it.
const (
	Absent      Kind = "absent"
	File        Kind = "file"
	Directory   Kind = "directory"
	Symlink     Kind = "symlink"
	Fifo        Kind = "fifo"
	Socket      Kind = "socket"
	BlockDevice Kind = "block_device"
	CharDevice  Kind = "char_device"
)

// Meta is the state of an object except for its content. It can be stored by any encoding that keeps all bytes of a
// string: not all of them are text.
type Meta struct {
	Kind Kind
	// Mode holds the permission bits with setuid, setgid and sticky: 07777.
	Mode     uint32
	UID, GID uint32
	// Size is in bytes.
	Size  int64
	Mtime Time
	// Target is where a symlink points, byte for byte.
	Target string
	// Rdev is the number of a device.
	Rdev uint64
	// Xattrs are all extended attributes, ACLs and security labels among them, and the flags of chattr(1) as the attribute
	// "inode.flags", which no other one can be named. Only Capture fills them in.
	Xattrs map[string][]byte

	// The rest cannot be restored, and distinguishes objects.

	Dev, Ino uint64
	// Links counts the names of the object.
	Links uint32
	// Mounted: a file system is mounted here.
	Mounted bool
	// AppendOnly and Immutable: chattr(1) set the flag a or i. The kernel then refuses to replace, rename or remove the object,
	// and to change more than the flag allows.
	AppendOnly, Immutable bool
	// Born is when the object was made; zero where the file system does not know.
	Born Time

	of *Meta // the object that it is to be applied to; nil: any
}

// Time is a point in time as file systems keep it.
type Time struct {
	// Sec counts from 1970.
	Sec  int64
	Nsec uint32
}

// Time is t for the standard library.
func (t Time) Time() time.Time { return time.Unix(t.Sec, int64(t.Nsec)) }

// Same reports whether two states, taken while the object was held open or for a moment only, are of one object, whatever
// happened to it.
func (m Meta) Same(other Meta) bool { return m.Dev == other.Dev && m.Ino == other.Ino }

// SameInode reports whether two states of objects on one file system, taken at any two times, are of one object. The number of
// an object that was removed is given to a new one, so that the birth times are compared, too, where both are known. See
// At.StableInodes.
func (m Meta) SameInode(other Meta) bool {
	return m.Ino == other.Ino && (!bornTells || m.Born == other.Born || m.Born == Time{} || other.Born == Time{})
}

// MayBe reports whether an object, on a file system that is not At.StableInodes, can be taken for the one that was described
// before, where others than root may have put another one in its place: they cannot give it the number and a trusted owner, and
// one of their own only they have the use of.
func (m Meta) MayBe(was Meta) bool {
	if m.Kind != was.Kind {
		return false
	}
	if TrustedUser(m.UID) {
		return m.Ino == was.Ino
	}
	return m.UID == was.UID
}

// Attr is what a caller wants of an object. A nil field leaves what is there; for a new object that is the agent's own
// user and group, and the mode that the function names.
type Attr struct {
	Mode     *uint32
	UID, GID *uint32
	// Create is used for a new file without Mode: the mode as open(2) takes it, of which a default ACL of the directory may
	// take something away. Nil: 0666, or 0644 where there is no such ACL.
	Create *uint32
	// Mtime is the time of modification. A new content has the present one.
	Mtime *Time
	// Copied are the extended attributes that it shall have of those that a copy keeps (IsCopied): others of them are removed.
	// Nil leaves what is there.
	Copied map[string][]byte
	// KeepSpecial has a new owner keep setuid, setgid and file capabilities of what is there already, of which the system takes
	// them away with the owner.
	KeepSpecial bool
	// Separate has Commit give a new content to the one name of a file with several, and not refuse.
	Separate bool

	of *Meta // the object that it is for; nil: any
}

// Root is a file system that the agent acts on. It is safe for concurrent use.
// An overlay is for one goroutine at a time.
type Root struct {
	fs      fileSystem
	checked *CheckedPaths // what entries must be; nil: anything
}

// Open opens the file system below the directory dir of the agent's own; "" and "/" are that file system itself.
func Open(dir string) (*Root, error) {
	real, err := openRoot(dir)
	if err != nil {
		return nil, err
	}
	return &Root{fs: real}, nil
}

// Close frees the root. Entries that were resolved before stay usable; those of an overlay do not.
func (r *Root) Close() error { return r.fs.close() }

// At resolves the directory that path is in, without following its last element, of which nothing needs to be there.
// The caller closes the entry. An error does not name the path.
func (r *Root) At(path string) (*At, error) { return r.resolve(path, followDirs) }

// In is At for a name, not escaped, in a directory that is open: the entry is in that one, wherever its path leads by now. The
// caller closes both.
func (r *Root) In(dir *Dir, name string) (*At, error) {
	at, err := dir.At(name)
	if err != nil || r.checked == nil {
		return at, err
	}
	if err := r.checked.hold(at, at.Path, followDirs); err != nil {
		return nil, errors.Join(err, at.Close())
	}
	return at, nil
}

// Follow is At for a path whose last element is followed where it is a link: it returns the entry behind it.
func (r *Root) Follow(path string) (*At, error) { return r.resolve(path, followAll) }

// Stat returns the state of what a path leads to through all links; of kind Absent where nothing is there.
func (r *Root) Stat(path string) (Meta, error) {
	at, err := r.Follow(path)
	if err != nil {
		return Meta{}, err
	}
	defer at.Close()
	return at.Stat()
}

// Exact is At for a path that was resolved before, and is taken as it stands: a link in it, which was not there then,
// is fault.ErrChanged.
func (r *Root) Exact(path string) (*At, error) { return r.resolve(path, followNone) }

// Identify describes what path leads to now as the kernel sees it, all links followed, also those that Follow refuses.
// It is one call where Follow is many, and good for one thing: to learn whether a file that was reached safely, and is
// still open, has been replaced. It is unsupported where the system does not say, and on an overlay.
func (r *Root) Identify(path string) (Meta, error) {
	raw, err := checkPath(path)
	if err != nil {
		return Meta{}, err
	}
	meta, err := r.fs.identify(raw)
	if err == nil && r.checked != nil {
		if found := r.checked.found[look{path, true}]; found != nil && (found.err != nil || !meta.Same(found.Meta)) {
			return Meta{}, errChecked
		}
	}
	return meta, err
}

// SyncAll makes durable all of the file system that the root directory is on, also what others wrote. Mounts below it
// are left out: one of them may be a server that does not answer.
func (r *Root) SyncAll() error { return r.fs.syncAll() }

// follow says which links of a path are followed, if they are safe.
type follow int

const (
	followDirs follow = iota // all but the last element
	followAll
	followNone
)

func (r *Root) resolve(path string, links follow) (*At, error) {
	at, err := r.find(path, links)
	if err != nil || !endsWithSeparator(path) {
		return at, err
	}
	if err := at.requireDir(); err != nil {
		at.Close()
		return nil, err
	}
	return at, nil
}

// find is resolve, but ignores a slash at the end.
func (r *Root) find(path string, links follow) (*At, error) {
	raw, err := checkPath(path)
	if err != nil {
		return nil, err
	}
	at, err := r.fs.resolve(raw, links)
	if err != nil || r.checked == nil {
		return at, err
	}
	if err := r.checked.hold(at, path, links); err != nil {
		at.Close()
		return nil, err
	}
	return at, nil
}

// checkPath returns the bytes that an escaped path stands for, or says why it is no path.
func checkPath(path string) (string, error) {
	raw := text.UnescapePath(path)
	switch {
	case raw == "":
		return "", fault.Invalid("the path is empty")
	case strings.IndexByte(raw, 0) >= 0:
		return "", fault.Invalid("the path has a zero byte")
	case !IsAbs(raw):
		return "", fault.Invalid("the path is relative; give it from the root on")
	case len(raw) > maxPath:
		return "", syscall.ENAMETOOLONG
	}
	return raw, checkSystemPath(raw)
}

// maxPath is the kernel's PATH_MAX without its terminator.
const maxPath = 4095

// maxMissing bounds the directories that are made for one path: the work of keeping, making and syncing them grows with the
// square of their number.
const maxMissing = 64

// Missing lists the directories above path that do not exist, the outermost first, as resolved paths. There are at most 64.
func (r *Root) Missing(path string) ([]string, error) {
	at, err := r.find(path, followDirs)
	if err == nil {
		return nil, at.Close()
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	parent, _, ok := splitLast(path)
	if !ok {
		return nil, err
	}
	missing, err := r.Missing(parent)
	if err != nil {
		return nil, err
	}
	if len(missing) >= maxMissing {
		return nil, fault.Wrapf(fault.ErrTooLarge, "more than %d directories above it are missing", maxMissing)
	}
	resolved, err := r.resolveBelow(missing, parent)
	if err != nil {
		return nil, err
	}
	return append(missing, resolved), nil
}

// resolveBelow returns the resolved form of path, of whose parents those in missing do not exist.
func (r *Root) resolveBelow(missing []string, path string) (string, error) {
	if len(missing) > 0 {
		_, name, _ := splitLast(path)
		return appendName(missing[len(missing)-1], text.EscapePath(text.UnescapePath(name))), nil
	}
	at, err := r.find(path, followDirs)
	if err != nil {
		return "", err
	}
	defer at.Close()
	meta, err := at.captureFor()
	if err == nil && meta.Kind == Symlink {
		return "", fault.Refuse("%s is a link to nothing", at.Path)
	}
	return at.Path, err
}

// Resolve returns the path that path really names: links of its directories are followed, and of its last element too
// where follow is set; elements that do not exist stay as they are. All spellings of one path resolve to the same text,
// so rules about paths compare resolved ones. A slash at the end is ignored: a rule holds whatever an operation makes
// of it.
func (r *Root) Resolve(path string, follow bool) (string, error) {
	links := followDirs
	if follow {
		links = followAll
	}
	at, err := r.find(path, links)
	if err == nil {
		defer at.Close()
		return at.Path, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	missing, err := r.Missing(path)
	if err != nil {
		return "", err
	}
	return r.resolveBelow(missing, path)
}

// ReadFile reads a regular file, following safe links, and returns fault.ErrTooLarge for one of more than limit bytes.
func (r *Root) ReadFile(path string, limit int64) ([]byte, error) {
	at, err := r.Follow(path)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	return at.ReadFile(limit)
}

// notRegular is the refusal of anything but a file where a file is needed.
func notRegular(kind Kind) error {
	if kind == Directory {
		return syscall.EISDIR
	}
	return fault.Refuse("is a %s, not a regular file", strings.ReplaceAll(string(kind), "_", " "))
}

// kindOf returns the kind that the bits of the standard library stand for.
func kindOf(mode fs.FileMode) Kind {
	switch {
	case mode.IsRegular():
		return File
	case mode.IsDir():
		return Directory
	case mode&fs.ModeSymlink != 0:
		return Symlink
	case mode&fs.ModeNamedPipe != 0:
		return Fifo
	case mode&fs.ModeSocket != 0:
		return Socket
	case mode&fs.ModeCharDevice != 0:
		return CharDevice
	}
	return BlockDevice
}

// checkRegular refuses an open file that is no regular one, and so may have no end.
func checkRegular(file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return fault.Cause(err)
	}
	if kind := kindOf(info.Mode()); kind != File {
		return notRegular(kind)
	}
	return nil
}
