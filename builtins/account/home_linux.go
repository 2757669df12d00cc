package account

import (
	"context"
	"errors"
	"io/fs"
	"slices"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/edit"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

const (
	defaultSkeleton = "/etc/skel"
	mailGroup       = "mail"
	maxSkeleton     = 1000     // objects in a skeleton
	maxSkeletonSize = 64 << 20 // bytes of its files
	maxOwned        = 1000     // objects that change their owner with a user
)

// newHome is a home directory that is to be made.
type newHome struct {
	path     string
	uid, gid uint32
	mode     uint32
	skeleton string
	entries  []entry // a directory before what is in it
}

// entry is an object of the skeleton, by its path below it.
type entry struct {
	path string
	meta fsys.Meta
}

// newMail is a mail spool that is to be made.
type newMail struct {
	path     string
	uid, gid uint32
}

// newOwner is another number for what belongs to a user in the home directory.
type newOwner struct {
	home                     string
	uid, gid, newUID, newGID uint32
}

// furnish plans the home directory and the mail spool of a user where they are missing.
func (p *plan) furnish(root *fsys.Root, u *user, w *wish) error {
	wanted := w.wantsHome()
	if u.at >= 0 && w.home == "" && u.uid < readDefaults(root).id("UID_MIN", 1000) {
		wanted = w.createHome != nil && *w.createHome // a user of the system, who was there: /nonexistent is to stay so
	}
	if !wanted || checkPath("home", u.home) != nil {
		return nil
	}
	_, there, err := isThere(root, u.home)
	if err != nil {
		return err
	}
	if !there {
		p.home = &newHome{
			path: u.home, uid: u.uid, gid: u.gid, mode: p.defaults.homeMode(), skeleton: p.defaults.skeleton(),
		}
		if err := p.home.readSkeleton(root); err != nil {
			return err
		}
	}
	if u.at < 0 && p.defaults.makesMail(w.system) {
		return p.furnishMail(root, u)
	}
	return nil
}

// furnishMail plans the mail spool of a new user. Where the guest has no directory for it there is none.
func (p *plan) furnishMail(root *fsys.Root, u *user) error {
	path := p.defaults.mailOf(u.name)
	if dir, there, err := isThere(root, fsys.Parent(path)); err != nil || !there || dir.Kind == fsys.File {
		return err
	}
	if _, there, err := isThere(root, path); err != nil || there {
		return err
	}
	p.mail = &newMail{path: path, uid: u.uid, gid: u.gid}
	if g := p.db.groupWhere(func(g group) bool { return g.name == mailGroup }); g != nil {
		p.mail.gid = g.gid
	}
	return nil
}

// readSkeleton reads what a home directory begins with. A guest without one has empty home directories.
func (h *newHome) readSkeleton(root *fsys.Root) error {
	if _, there, err := isThere(root, h.skeleton); err != nil || !there {
		return err
	}
	size := int64(0)
	var walk func(below string) error
	walk = func(below string) error {
		dir, err := openDir(root, fsys.Join(h.skeleton, below))
		if err != nil {
			return err
		}
		defer dir.Close()
		names, err := dir.Names(maxSkeleton)
		if err != nil {
			return err
		}
		slices.Sort(names)
		for _, name := range names {
			meta, err := dir.Stat(name)
			if err != nil {
				return err
			}
			e := entry{path: fsys.Join(below, text.EscapePath(name)), meta: meta}
			size += meta.Size
			if len(h.entries) >= maxSkeleton || size > maxSkeletonSize {
				return fault.Wrapf(fault.ErrTooLarge, "more than %d objects or %d bytes", maxSkeleton, maxSkeletonSize)
			}
			switch meta.Kind {
			case fsys.Directory:
				h.entries = append(h.entries, e)
				if err := walk(e.path); err != nil {
					return err
				}
			case fsys.File, fsys.Symlink:
				h.entries = append(h.entries, e)
			}
		}
		return nil
	}
	return fault.On(h.skeleton, walk(""))
}

func openDir(root *fsys.Root, path string) (*fsys.Dir, error) {
	at, err := root.Follow(path)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	return at.OpenDir()
}

// furnished are the paths that are made for a plan, parents first.
func (w *writing) furnished() (paths []string, err error) {
	p, root := w.plan, w.root
	if p.mail != nil {
		paths = append(paths, p.mail.path)
	}
	if p.home == nil {
		return paths, nil
	}
	missing, err := root.Missing(p.home.path)
	if err != nil {
		return nil, fault.On(p.home.path, err)
	}
	home, err := root.Resolve(p.home.path, false)
	if err != nil {
		return nil, fault.On(p.home.path, err)
	}
	if err := w.guest.Guard(home, false); err != nil {
		return nil, fault.On(home, err)
	}
	p.home.path = home
	paths = append(append(paths, missing...), home)
	for _, e := range p.home.entries {
		paths = append(paths, fsys.Join(home, e.path))
	}
	return paths, nil
}

// furnish makes the home directory and the mail spool.
func (w *writing) furnish(ctx context.Context) error {
	if h := w.plan.home; h != nil {
		if err := w.makeHome(ctx, h); err != nil {
			return fault.On(h.path, err)
		}
	}
	if m := w.plan.mail; m != nil {
		if err := w.makeMail(m); err != nil {
			return fault.On(m.path, err)
		}
	}
	return nil
}

// makeHome makes a home directory, which becomes the user's when all is in it: another user may have had the number.
func (w *writing) makeHome(ctx context.Context, h *newHome) error {
	at, made, err := w.root.MakeParents(h.path, w.call.Tx == nil)
	if err != nil {
		return err
	}
	defer at.Close()
	for _, dir := range made {
		w.report(dir.Path, "created")
	}
	home, err := at.MakeDir(fsys.Attr{Mode: new(uint32(0o700))})
	if err != nil {
		return err
	}
	w.report(h.path, "created")
	dirs := newDirs{{".", home}}
	defer func() { dirs.closeTo(0) }()
	for _, e := range h.entries {
		if err := w.makeEntry(ctx, h, &dirs, e); err != nil {
			return fault.On(e.path, err)
		}
		w.report(fsys.Join(h.path, e.path), "created")
	}
	is, err := home.Stat(".")
	if err == nil {
		err = w.leads(h.path, is) // else it stays the agent's, wherever it is
	}
	if err == nil {
		err = home.SetAttr(fsys.Attr{Mode: &h.mode, UID: &h.uid, GID: &h.gid})
	}
	if err != nil {
		return err
	}
	if w.call.Tx == nil {
		return at.SyncDir()
	}
	return nil
}

// newDirs are the directories that were made from a home directory down to the one that is being filled, each by its path below
// the home. They are open: others may have the path lead elsewhere meanwhile.
type newDirs []newDir

type newDir struct {
	path string
	dir  *fsys.Dir
}

// of returns the directory that a path is in, and closes those that are full.
func (d *newDirs) of(path string) *fsys.Dir {
	for n := len(*d); (*d)[n-1].path != fsys.Parent(path); n-- {
		d.closeTo(n - 1)
	}
	return (*d)[len(*d)-1].dir
}

func (d *newDirs) closeTo(n int) {
	for _, open := range (*d)[n:] {
		_ = open.dir.Close()
	}
	*d = (*d)[:n]
}

// makeEntry makes one object of the skeleton in a home directory.
func (w *writing) makeEntry(ctx context.Context, h *newHome, dirs *newDirs, e entry) error {
	to, err := dirs.of(e.path).At(text.UnescapePath(fsys.Base(e.path)))
	if err != nil {
		return err
	}
	defer to.Close()
	meta := fsys.Meta{
		Kind: e.meta.Kind, Mode: e.meta.Mode, UID: h.uid, GID: h.gid, Mtime: e.meta.Mtime, Target: e.meta.Target,
	}
	switch e.meta.Kind {
	case fsys.Directory:
		dir, err := to.MakeDir(fsys.Attr{Mode: &meta.Mode, UID: &h.uid, GID: &h.gid})
		if err == nil {
			*dirs = append(*dirs, newDir{e.path, dir})
		}
		return err
	case fsys.Symlink:
		return to.Make(meta)
	}
	from, err := w.root.Follow(fsys.Join(h.skeleton, e.path))
	if err != nil {
		return err
	}
	defer from.Close()
	source, err := from.Open()
	if err != nil {
		return err
	}
	defer source.Close()
	staged, err := to.Stage()
	if err != nil {
		return err
	}
	if err := fsys.CopyFitting(ctx, staged.File, source); err != nil {
		return errors.Join(err, staged.Discard())
	}
	return staged.Restore(meta, w.call.Tx == nil)
}

func (w *writing) makeMail(m *newMail) error {
	at, err := w.root.At(m.path)
	if err != nil {
		return err
	}
	defer at.Close()
	staged, err := at.Stage()
	if err != nil {
		return err
	}
	if err := staged.Commit(fsys.Attr{Mode: new(uint32(0o660)), UID: &m.uid, GID: &m.gid}, w.call.Tx == nil); err != nil {
		return err
	}
	w.report(m.path, "created")
	return nil
}

func (w *writing) report(path, action string) {
	w.call.ReportApplied(&pb.Change{Op: w.op, Target: path, Action: action})
}

// clear plans that the home directory and the mail spool of a user go. What is not the user's alone is refused.
func (p *plan) clear(root *fsys.Root, u *user) error {
	p.taken = u.uid
	if checkPath("home", u.home) == nil {
		meta, there, err := isThere(root, u.home)
		if err != nil {
			return err
		}
		if there {
			other := p.homeOfOther(u.name, u.home)
			switch {
			case meta.Kind != fsys.Directory:
				return fault.On(u.home, fault.Refuse("the home directory is a %s", meta.Kind))
			case meta.UID != u.uid:
				return fault.On(u.home, fault.Refuse("the home directory belongs to user %d, and the user is %d", meta.UID, u.uid))
			case other != "":
				return fault.On(u.home, fault.Refuse("it is the home directory of %s as well, or has that in it", other))
			}
			p.take = append(p.take, u.home)
		}
	}
	mail := p.defaults.mailOf(u.name)
	meta, there, err := isThere(root, mail)
	if err == nil && there && meta.Kind == fsys.File && meta.UID == u.uid {
		p.take = append(p.take, mail)
	}
	return err
}

// chownHome changes the owner of what belongs to the user in the home directory to the new uid and gid.
func (w *writing) chownHome(ctx context.Context) error {
	o := w.plan.owner
	meta, there, err := isThere(w.root, o.home)
	if err == nil && (!there || meta.Kind != fsys.Directory || meta.UID != o.uid) {
		return nil // there is none, or it is not the user's
	}
	if err != nil {
		return err
	}
	paths, err := ownedBelow(ctx, w.root, o.home)
	if err != nil {
		return fault.On(o.home, err)
	}
	for _, path := range paths {
		if err := w.reownOne(ctx, path); err != nil {
			return fault.On(path, err)
		}
	}
	return nil
}

// ownedBelow lists a directory and all that is below it on the same file system, the directory last: as long as it is its
// owner's nothing else in it changes hands.
func ownedBelow(ctx context.Context, root *fsys.Root, dir string) (paths []string, err error) {
	left := maxOwned
	var walk func(path string) error
	walk = func(path string) error {
		open, err := openDir(root, path)
		if err != nil {
			return err
		}
		defer open.Close()
		names, err := open.Names(left)
		if errors.Is(err, fault.ErrTooLarge) {
			return &fault.Error{
				Err:  fault.Wrapf(fault.ErrTooLarge, "more than %d objects would change their owner", maxOwned),
				Hint: "make another user, or change the owners by a command that says what undoes it",
			}
		}
		if err != nil {
			return err
		}
		left -= len(names)
		slices.Sort(names) // so that a dry run lists it in the order of the run
		for _, name := range names {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			meta, err := open.Stat(name)
			if errors.Is(err, fs.ErrNotExist) || meta.Mounted {
				continue
			}
			if err != nil {
				return err
			}
			below := fsys.Join(path, text.EscapePath(name))
			if meta.Kind == fsys.Directory {
				if err := walk(below); err != nil {
					return err
				}
			}
			paths = append(paths, below)
		}
		return nil
	}
	err = walk(dir)
	return append(paths, dir), err
}

// reownOne changes one object if it belongs to the user.
func (w *writing) reownOne(ctx context.Context, path string) error {
	o := w.plan.owner
	c, err := w.edit.Begin(w.call, w.op, path, edit.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	attr := fsys.Attr{}
	if c.Old.UID == o.uid && o.uid != o.newUID {
		attr.UID = &o.newUID
	}
	if c.Old.GID == o.gid && o.gid != o.newGID {
		attr.GID = &o.newGID
	}
	if c.Absent() || !edit.Differs(c.Old, attr) {
		return nil
	}
	large := c.Old.Kind == fsys.File && c.Old.Size > maxKept && w.call.Tx != nil
	if large {
		err = w.call.Tx.Undo(ctx, inverse, edit.Object(c.Path, c.Old, ""))
	} else {
		err = c.Prepare(ctx)
	}
	if err != nil {
		return err
	}
	if c.Old.Kind == fsys.Symlink {
		meta := c.Old
		meta.UID, meta.GID = valueOr(attr.UID, meta.UID), valueOr(attr.GID, meta.GID)
		err = c.At.Apply(meta)
	} else {
		err = c.At.SetAttrOf(c.Old, attr)
	}
	if err == nil && large { // a commit does not know the path
		err = c.At.Sync()
	}
	if err != nil {
		return err
	}
	c.Report("modified", nil)
	return nil
}

// maxKept is the size of the largest file whose content is kept, too, where only its owner changes.
const maxKept = 1 << 20

func valueOr(value *uint32, otherwise uint32) uint32 {
	if value != nil {
		return *value
	}
	return otherwise
}
