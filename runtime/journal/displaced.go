package journal

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Who may write to a directory may remove or move another one that is in it, while a script has changed something below that.
// What stood there cannot be put back where it was. It is put beside, with a conflict name in the next directory above that is
// there, for the agent's user alone, since the directory may have kept others from it; and it is named as not undone. All else
// is taken back.

// takenAway returns the next directory above a path that is there, if the one that the path is in is not, and others than root
// may have taken it away. exchanged: another one is there, which does not count.
func (j *Journal) takenAway(path string, exchanged bool) (above string, taken bool) {
	for dir := parent(path); dir != ""; dir = parent(dir) {
		if exchanged && dir == parent(path) {
			continue
		}
		at, err := j.config.Root.Exact(dir)
		if ignoreGone(err) != nil {
			return "", false
		}
		if err != nil {
			continue
		}
		meta, err := at.Stat()
		_ = at.Close()
		if err == nil && meta.Kind == fsys.Directory {
			return dir, exchanged || dir != parent(path) && !private(meta)
		}
		if ignoreNotExist(err) != nil {
			return "", false
		}
	}
	return "", false
}

// displaced ends the undoing of an object that failed, where its directory was taken away: put puts it as it was at a place
// that is free, and returns false where there is nothing to put. The outcome names where it is.
func (p *undoPass) displaced(ctx context.Context, u *Undone, was *pb.JournalState, put func(to *fsys.At) (bool, error)) {
	exchanged := errors.Is(u.Err, errExchanged)
	if u.Err == nil || !exchanged && ignoreGone(u.Err) != nil || p.inScript || context.Cause(ctx) != nil {
		return
	}
	above, taken := p.tx.journal.takenAway(u.Target, exchanged)
	if !taken {
		return
	}
	p.away[parent(u.Target)] = true
	beside := joinEscaped(above, fsys.Base(u.Target))
	at, err := p.tx.journal.config.Root.Exact(beside)
	if err != nil {
		return
	}
	defer at.Close()
	r := &restorer{pass: p, ctx: ctx, object: &pb.JournalObject{Path: beside}, at: at}
	something := false
	err = r.withConflictName(func(to *fsys.At) error {
		is, _, err := captureAny(to)
		if err == nil && is.Kind != fsys.Absent {
			err = fs.ErrExist
		}
		if err == nil {
			something, err = put(to)
		}
		return err
	}, false)
	if err != nil {
		u.Err = errors.Join(u.Err, err)
		return
	}
	why := fault.Wrapf(fault.ErrChanged, "its directory was removed or moved away meanwhile")
	if something {
		why = fault.Wrapf(fault.ErrChanged, "its directory was removed or moved away meanwhile; what it was, with mode %04o and owner %d:%d, is at %s",
			was.Mode, was.Uid, was.Gid, r.conflict)
	}
	u.Err, u.Irreversible = nil, &pb.Change{Op: u.Op, Target: fault.On(u.Target, why).Error(), Action: "restore"}
}

// ownOnly returns a state that lets nobody but the agent's user read or change an object.
func ownOnly(m fsys.Meta) fsys.Meta {
	m.Mode &= 0o700
	m.UID, m.GID, m.Xattrs = uint32(max(os.Geteuid(), 0)), uint32(max(os.Getegid(), 0)), nil
	return m
}

// putKept makes an object at another place with the content that it had before. Of a directory there is nothing to put, and of
// a large file to which something was appended nothing was kept.
func (p *undoPass) putKept(ctx context.Context, o *pb.JournalObject, to *fsys.At) (bool, error) {
	was := ownOnly(fromState(o.State))
	r := &restorer{pass: p, ctx: ctx, object: o, at: to, was: was, is: fsys.Meta{Kind: fsys.Absent}}
	switch {
	case was.Kind == fsys.Absent || was.Kind == fsys.Directory || len(o.Tail) > 0:
		return false, nil
	case was.Kind != fsys.File:
		return true, r.do("restore.make", func() error { return to.Make(was) })
	}
	staged, err := to.Stage() // and no rename of the image, which would be missing when this is repeated
	if err != nil {
		return false, err
	}
	if err := r.copyContent(staged.File); err != nil {
		return false, errors.Join(err, staged.Discard())
	}
	return true, r.do("restore.replace", func() error { return staged.Restore(was, false) })
}

// putMoved moves a tree from the spool to another place.
func (p *undoPass) putMoved(take *pb.JournalTake, to *fsys.At) (bool, error) {
	from, err := p.tx.openSpooled(take, false)
	if err != nil {
		return false, ignoreNotExist(err)
	}
	defer from.Close()
	spooled, err := from.Capture()
	if err != nil || spooled.Kind == fsys.Absent {
		return false, err
	}
	if err := checkMoved(take, from, spooled); err != nil {
		return false, err
	}
	if spooled.Kind != fsys.Directory && spooled.Links > 1 { // under its other names it keeps what it has
		return false, fault.Wrapf(fault.ErrChanged, "it has other names")
	}
	if err := p.tx.journal.do("restore.narrow", func() error { return from.Of(spooled).Apply(ownOnly(spooled)) }); err != nil {
		return false, err
	}
	if err := p.renameBack(from, to); err != nil || take.Spool == "" {
		return err == nil, err
	}
	_, err = p.tx.removeEmptySpool("restore.spool", take, take.SpoolParentMtime)
	return true, err
}
