package edit

import (
	"context"
	"errors"
	"io/fs"
	"strconv"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Object describes what is at a resolved path, for the operation that undoes what is done to it: which object that is, and its
// attributes. movedTo is the resolved path that it is moved to; empty: it stays. What is undone is undone on that object alone:
// who may write to its directory can put another one in its place.
func Object(path string, was fsys.Meta, movedTo string) *pb.JournalObject {
	state := &pb.JournalState{Kind: string(was.Kind), Mode: was.Mode, Uid: was.UID, Gid: was.GID, Ino: was.Ino}
	if was.Born != (fsys.Time{}) {
		state.Born = &pb.JournalTime{Seconds: was.Born.Sec, Nanos: was.Born.Nsec}
	}
	for name, value := range was.Xattrs {
		state.Xattrs = append(state.Xattrs, &pb.JournalXattr{Name: []byte(name), Value: value})
	}
	return &pb.JournalObject{Path: path, MovedTo: movedTo, State: state}
}

// isObject reports whether meta is of the object of a state, whatever happened to it. Where inode numbers are not stable, as on
// overlayfs, the time of birth is not either; may says that others than root can have put another object there.
func isObject(state *pb.JournalState, meta fsys.Meta, stable, may bool) bool {
	was := stateMeta(state)
	if !stable {
		was.Born = fsys.Time{}
	}
	return meta.Kind == was.Kind && meta.SameInode(was) && (stable || !may || meta.MayBe(was))
}

func stateMeta(state *pb.JournalState) fsys.Meta {
	return fsys.Meta{
		Kind: fsys.Kind(state.GetKind()), Ino: state.GetIno(), UID: state.GetUid(),
		Born: fsys.Time{Sec: state.GetBorn().GetSeconds(), Nsec: state.GetBorn().GetNanos()},
	}
}

// exchangeable reports whether numbers identify an object at a path, which is stable, and whether others than root can put
// another object there than an undo expects.
func (e *Editor) exchangeable(at *fsys.At, path string) (stable, may bool, err error) {
	if stable, err = at.StableInodes(); err != nil {
		return stable, false, err
	}
	may, err = e.Guest.Files.Exchangeable(path)
	return stable, may, err
}

// RestoreAttr is the operation Inverse: it sets the attributes that SetAttr kept. A file that somebody removed needs none, and
// another one in its place gets none.
func (e *Editor) RestoreAttr(_ context.Context, _ *builtins.Call, in *pb.JournalObject) (*pb.Changed, error) {
	at, meta, err := e.exact(in.Path)
	if at == nil {
		return &pb.Changed{}, err
	}
	defer at.Close()
	if meta.Kind != fsys.File {
		return &pb.Changed{}, nil
	}
	stable, may, err := e.exchangeable(at, in.Path)
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	other := !isObject(in.State, meta, stable, may) && (stable || !meta.MayBe(stateMeta(in.State)))
	if in.State.GetKind() != "" && may && other { // an older agent stored no kind
		return nil, fault.On(in.Path, fault.Wrapf(fault.ErrChanged, "another file is there now, which is left as it is"))
	}
	want := meta
	want.Mode, want.UID, want.GID, want.Xattrs = in.State.GetMode(), in.State.GetUid(), in.State.GetGid(), map[string][]byte{}
	for _, x := range in.State.GetXattrs() {
		want.Xattrs[string(x.Name)] = x.Value
	}
	if err = at.Of(meta).Apply(want); err == nil {
		err = forced(at)
	}
	return &pb.Changed{Changed: true}, fault.On(in.Path, err)
}

// Moved is the operation that a move names for its undo.
const Moved = "file.move_back"

// MoveBack is the operation Moved: it moves an object back where it was, unless it is there. Another object at the new path is
// left alone, and one at the old path gets another name. On an error nothing was moved.
func (e *Editor) MoveBack(_ context.Context, call *builtins.Call, in *pb.JournalObject) (*pb.Changed, error) {
	to, there, err := e.exact(in.Path)
	if err == nil && to == nil {
		err = fault.On(in.Path, fs.ErrNotExist)
	}
	if err != nil {
		return nil, err
	}
	defer to.Close()
	from, found, err := e.exact(in.MovedTo)
	if err != nil {
		return nil, err
	}
	if from != nil {
		defer from.Close()
	}
	stable, may, err := e.exchangeable(to, in.Path)
	if err == nil && !may {
		may, err = e.Guest.Files.Exchangeable(in.MovedTo)
	}
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	moved, err := wasMoved(there, found, in.State, stable, may)
	switch {
	case err != nil:
		return nil, fault.On(in.MovedTo, err)
	case !moved && isObject(in.State, found, stable, may) && there.Kind != fsys.Directory:
		// One object by both names, which a crash can leave of a move.
		return &pb.Changed{Changed: true}, fault.On(in.MovedTo, errors.Join(from.Remove(), from.SyncDir()))
	case !moved:
		call.Idle = true
		return &pb.Changed{}, nil
	}
	if there.Kind != fsys.Absent {
		if err := e.PutAside(to, in.Path); err != nil {
			return nil, fault.On(in.Path, err)
		}
	}
	return &pb.Changed{Changed: true}, fault.On(in.Path, moveBack(from, to, found))
}

// moveBack renames, and has another look at what was moved: the name may have been given to another object at the last moment.
func moveBack(from, to *fsys.At, found fsys.Meta) error {
	if err := from.Rename(to, false); err != nil {
		return err
	}
	is, err := to.Capture()
	if err == nil && !is.Same(found) {
		return errors.Join(fault.Wrapf(fault.ErrChanged, "another object came to where it was moved"), to.Rename(from, false))
	}
	if err == nil && is.Kind == fsys.Directory && is.Mtime != found.Mtime { // on some file systems a move is a change of it
		err = to.Of(is).Apply(found)
	}
	return errors.Join(err, to.SyncDir(), from.SyncDir())
}

// exact returns what is at a resolved path. Where a directory above is missing there is no place, nothing there, and no error.
func (e *Editor) exact(path string) (*fsys.At, fsys.Meta, error) {
	at, err := e.Guest.Files.Exact(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fsys.Meta{Kind: fsys.Absent}, nil
	}
	if err != nil {
		return nil, fsys.Meta{}, fault.On(path, err)
	}
	meta, err := at.Capture()
	if err != nil {
		return nil, meta, errors.Join(fault.On(path, err), at.Close())
	}
	return at, meta, nil
}

// wasMoved reports whether a move happened, by what is at the former place and at the new one; was describes the object before
// it. may says that others than root can put an object there. Where they cannot, a file may have been saved anew meanwhile, as
// by sed -i, and where its number does not identify it nothing does: then one of its kind, alone at one of the places, stands
// for it.
func wasMoved(former, found fsys.Meta, was *pb.JournalState, stable, may bool) (bool, error) {
	kind := fsys.Kind(was.GetKind())
	alone := !may && (!stable || kind == fsys.File) || may && !stable && !fsys.TrustedUser(was.GetUid()) && found.MayBe(stateMeta(was))
	switch {
	case isObject(was, former, stable, may): // it did not happen, or was taken back
		return false, nil
	case isObject(was, found, stable, may):
		return true, nil
	case alone && former.Kind == fsys.Absent && found.Kind == kind:
		return true, nil
	case alone && former.Kind == kind && found.Kind == fsys.Absent:
		return false, nil
	}
	return false, fault.Wrapf(fault.ErrChanged, "the %s that was moved is not there", was.GetKind())
}

// asideSuffix is behind the name of what somebody else put where something is moved back to.
const asideSuffix = ".quantix-conflict"

// PutAside renames what others made at a path that a rollback needs: it must not cost them their files.
func (e *Editor) PutAside(at *fsys.At, path string) error {
	for n := 1; n < 1000; n++ {
		free := path + asideSuffix
		if n > 1 {
			free += "-" + strconv.Itoa(n)
		}
		aside, err := e.Guest.Files.Exact(free)
		if err != nil {
			return err
		}
		if err = errors.Join(at.Rename(aside, false), aside.Close()); !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return fs.ErrExist
}
