package journal

import (
	"cmp"
	"maps"
	"strings"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A path does not tell an object: who may write to its directory can put another one there, and would have a rollback give that
// the owner, the mode or the place of the one that was kept. So a step knows its objects by inode number and time of birth. An
// object that the rollback of a newer step had to make anew has others; older steps are told.

// maxMade bounds the objects that are known to have been made anew. Of more an older step may say that it finds another one.
const maxMade = 1000

// noteMade notes that what is at a path, as the rollback left it, stands for the object that was kept.
func (t *Tx) noteMade(path string, was, is fsys.Meta) {
	if was.Kind == fsys.Absent || is.SameInode(was) || t.made[path] == nil && len(t.made) >= maxMade {
		return
	}
	made := &pb.JournalMade{Path: path, Ino: is.Ino}
	if is.Born != (fsys.Time{}) {
		made.Born = toTime(is.Born)
	}
	t.applyMade(made)
	t.unloggedMade = append(t.unloggedMade, made)
}

func (t *Tx) applyMade(made *pb.JournalMade) {
	if t.made == nil {
		t.made = map[string]*pb.JournalMade{}
	}
	t.made[made.Path] = made
}

// wasMade says whether what is at a path was made anew by the rollback of a newer step.
func (t *Tx) wasMade(path string, is fsys.Meta) bool {
	made := t.made[path]
	return made != nil && is.SameInode(fsys.Meta{Ino: made.Ino, Born: fromTime(made.Born)})
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

// withMade returns an inverse that knows its object as it was made anew.
func (t *Tx) withMade(inverse *pb.JournalInverse) (*anypb.Any, error) {
	o := inverseObject(inverse)
	if o == nil || o.State == nil {
		return inverse.Args, nil
	}
	made := cmp.Or(t.made[o.MovedTo], t.made[o.Path])
	if made == nil {
		return inverse.Args, nil
	}
	o.State.Ino, o.State.Born = made.Ino, made.Born
	return anypb.New(o)
}

// movedBack notes that an inverse moved its object back, with all that was made anew in it.
func (t *Tx) movedBack(inverse *pb.JournalInverse) {
	o := inverseObject(inverse)
	if o == nil || o.MovedTo == "" {
		return
	}
	for path, made := range maps.Clone(t.made) {
		if fsys.Within(path, o.MovedTo) {
			moved := &pb.JournalMade{Path: o.Path + strings.TrimPrefix(path, o.MovedTo), Ino: made.Ino, Born: made.Born}
			t.applyMade(moved)
			t.unloggedMade = append(t.unloggedMade, moved)
		}
	}
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
