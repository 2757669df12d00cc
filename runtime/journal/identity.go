package journal

import (
	"bytes"
	"os"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A path does not identify an object: who may write to its directory can put another one there, and would have a rollback give
// that the owner, the mode or the place of the one that was kept. So a step knows its objects by inode number and time of
// birth. An object that the rollback of a newer step had to make anew has others; older steps are given these.

// maxMade bounds the directories that are known to have been made anew, beside the objects that older steps name. Of more an
// older step may say that it finds another one.
const maxMade = maxObjects

// inode identifies an object within its file system, whatever became of its path.
type inode struct {
	number uint64
	born   fsys.Time
}

func inodeOf(m fsys.Meta) inode { return inode{m.Ino, m.Born} }

// noteMade notes that what a rollback left stands for the object that was kept, if an older step may ask.
func (t *Tx) noteMade(was, is fsys.Meta) {
	if was.Kind == fsys.Absent || is.SameInode(was) {
		return
	}
	if !t.named[inodeOf(was)] && (is.Kind != fsys.Directory || len(t.made) >= maxMade) {
		return
	}
	made := &pb.JournalMade{Ino: is.Ino, Born: bornTime(is), WasIno: was.Ino, WasBorn: bornTime(was)}
	t.applyMade(made)
	t.unloggedMade = append(t.unloggedMade, made)
}

func (t *Tx) applyMade(made *pb.JournalMade) {
	if t.made == nil {
		t.made = map[inode]inode{}
	}
	is := inode{made.Ino, fromTime(made.Born)}
	t.made[inode{made.WasIno, fromTime(made.WasBorn)}] = is
	t.name(is)
}

// name notes that a step asks for an object.
func (t *Tx) name(object inode) {
	if t.named == nil {
		t.named = map[inode]bool{}
	}
	t.named[object] = true
}

// standsFor returns the object that stands for another one by now: the same, unless that was made anew.
func (t *Tx) standsFor(object inode) inode {
	for range len(t.made) {
		made, ok := t.made[object]
		if !ok {
			break
		}
		object = made
	}
	return object
}

// bornTime is when an object was made, in its stored form; nil where that is not known.
func bornTime(m fsys.Meta) *pb.JournalTime {
	if m.Born == (fsys.Time{}) {
		return nil
	}
	return toTime(m.Born)
}

// inverseObject returns the object that an inverse is about; nil: it is about something else.
func inverseObject(inverse *pb.JournalInverse) *pb.JournalObject {
	o := &pb.JournalObject{}
	if inverse == nil || !inverse.Args.MessageIs(o) || inverse.Args.UnmarshalTo(o) != nil || o.Path == "" {
		return nil
	}
	return o
}

// objectPaths returns where the object of an inverse is, and where it was before it was moved.
func objectPaths(o *pb.JournalObject) []string {
	switch {
	case o == nil:
		return nil
	case o.MovedTo == "":
		return []string{o.Path}
	}
	return []string{o.Path, o.MovedTo}
}

// withMade returns the arguments of an inverse, which know its object as it was made anew.
func (t *Tx) withMade(inverse *pb.JournalInverse) (*anypb.Any, error) {
	o := inverseObject(inverse)
	if o == nil || o.State == nil || len(t.made) == 0 {
		return inverse.Args, nil
	}
	is := t.standsFor(inodeOf(fromState(o.State)))
	o.State.Ino, o.State.Born = is.number, bornTime(fsys.Meta{Born: is.born})
	return anypb.New(o)
}

// inverseMounts returns the mounts that the object of an inverse is on, and is moved from.
func (t *Tx) inverseMounts(inverse *pb.JournalInverse) ([]*pb.JournalMount, error) {
	var mounts mountList
	for _, path := range objectPaths(inverseObject(inverse)) {
		at, err := t.journal.config.Root.Exact(path)
		if ignoreGone(err) != nil {
			return nil, err
		}
		if err != nil {
			continue
		}
		err = mounts.add(at)
		_ = at.Close()
		if err != nil {
			return nil, err
		}
	}
	return mounts.record(t.journal)
}

// kept reports whether what is there is the object itself that was kept, and not another one in its place. Only that may be
// written in place and given attributes: who made another one may have it open, and goes on to write it.
func (r *restorer) kept() bool { return r.is.Kind == r.was.Kind && r.is.SameInode(r.was) }

// isImage reports whether what is there is the image, which an interrupted rollback moved back.
func (r *restorer) isImage() bool {
	image := fsys.Meta{Ino: r.object.ImageIno, Born: fromTime(r.object.ImageBorn)}
	return r.object.Image != "" && r.is.SameInode(image)
}

// otherDirectory reports whether another directory than the kept one has its path by now, which nothing is done to: its
// attributes are those of whoever made it. It is an error where the step changed the attributes of the kept one. Where none but
// root can put a directory it was made anew, as by what undid a command. In a tree that a command declared it is moved aside,
// and nothing is there.
func (r *restorer) otherDirectory(after *pb.JournalState) (bool, error) {
	if r.was.Kind != fsys.Directory || r.is.Kind != fsys.Directory || !r.object.Tree && firstDifference(r.was, r.is) == "" {
		return false, nil
	}
	other, err := r.pass.otherDirectory(r.at, r.object, r.is)
	if !other || err != nil {
		return false, err
	}
	if r.object.Tree {
		return false, r.moveAside()
	}
	if after != nil {
		left := fromState(after)
		left.Mtime = r.was.Mtime
		if firstDifference(r.was, left) != "" {
			return true, fault.Wrapf(fault.ErrChanged, "another directory is there now, which is left as it is")
		}
	}
	r.conflict = r.object.Path
	return true, nil
}

// otherDirectory reports whether a directory is another one than that of an object, which somebody else put at its path. In a
// tree that a command declared one that was made since is the command's.
func (p *undoPass) otherDirectory(at *fsys.At, o *pb.JournalObject, is fsys.Meta) (bool, error) {
	was := fromState(o.State)
	if o.Tree && p.tree.madeSince(is) && (fsys.TrustedUser(is.UID) || is.UID == was.UID) {
		return false, nil
	}
	return p.exchanged(at, o.Path, was, is)
}

// exchanged reports whether others put another directory at the path of one.
func (p *undoPass) exchanged(at *fsys.At, path string, was, is fsys.Meta) (bool, error) {
	if was.SameInode(is) || p.tx.standsFor(inodeOf(was)) == inodeOf(is) {
		return false, nil
	}
	stable, err := at.StableInodes()
	if err != nil || !stable && is.MayBe(was) {
		return false, err
	}
	return p.tx.journal.config.Root.Exchangeable(path)
}

// errExchanged is the error of an object whose directory is another one by now. Nothing is done in that: it is another user's,
// who would read or keep what is put there.
var errExchanged = fault.Wrapf(fault.ErrChanged, "another directory took the place of the one that it was in")

// checkParent returns errExchanged where the directory that an object was in is not the one that it is looked for in.
func (p *undoPass) checkParent(at *fsys.At, ino uint64, born *pb.JournalTime) error {
	if ino == 0 {
		return nil
	}
	is, err := at.StatDir()
	if err != nil {
		return err
	}
	// Where numbers do not last the directory of a user counts as the same.
	other, err := p.exchanged(at, parent(at.Path), fsys.Meta{Kind: fsys.Directory, UID: is.UID, Ino: ino, Born: fromTime(born)}, is)
	if err == nil && other {
		err = errExchanged
	}
	return err
}

// widened reports whether others have rights to the file that is there which they had not to the kept one.
func (r *restorer) widened() bool {
	const others = 0o077
	const acl = "system.posix_acl_access"
	return r.is.Mode&^r.was.Mode&others != 0 || r.is.UID != r.was.UID || r.is.GID != r.was.GID ||
		!bytes.Equal(r.is.Xattrs[acl], r.was.Xattrs[acl])
}

// ours reports whether the file that is there belongs to the agent's user, or to the one who owned the kept one: no other user
// gains by what is written into it.
func (r *restorer) ours() bool { return r.is.UID == r.was.UID || int(r.is.UID) == os.Geteuid() }
