package fsys

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// making is an object that was made, and that gets its attributes and its name. Where the system can, no other object gets
// them, whoever may write to the directory.
type making interface {
	// setAttr is directory.setAttr of it.
	setAttr(attr Attr) error
	// apply is At.Apply to it.
	apply(meta Meta) error
	// openDir opens the directory that was made, for reading.
	openDir() (directory, error)
	// place gives it its name, where it has another one until then. Something that has the name already is fs.ErrExist; another
	// object that has it afterwards is fault.ErrChanged.
	place() error
	// end frees what is held, and removes an object that was not placed.
	end() error
}

var errChangedName = fault.Wrapf(fault.ErrChanged, "another object took its name while it was made")

// Mkdir makes a directory. Unless attr says otherwise it has the mode that mkdir(2) would give it: 0755, or what a default
// ACL of the directory above makes of 0777, and setgid where that has it. While it is made others cannot enter it. Where others
// may exchange names it is made in a directory of the agent's own beside its place, and moved there when it is complete. An
// error leaves nothing; fault.ErrChanged says that it was made, and that another object took its name.
func (a *At) Mkdir(attr Attr) error {
	dir, err := a.MakeDir(attr)
	if err != nil {
		return err
	}
	return dir.Close()
}

// MakeDir is Mkdir, and returns the directory that was made, wherever its name leads by then. The caller closes it.
func (a *At) MakeDir(attr Attr) (_ *Dir, err error) {
	above, err := a.dir.capture(".")
	if err != nil {
		return nil, err
	}
	if attr.Mode == nil {
		const setgid = 0o2000
		attr.Mode = new(inheritedMode(above.Xattrs[defaultACL], askedOfDir, modeOfDir) | above.Mode&setgid)
	}
	made, err := a.dir.begin(a.Name, Meta{Kind: Directory}, false)
	if err != nil {
		return nil, err
	}
	dir, err := made.openDir()
	if err == nil {
		if err = made.setAttr(attr); err == nil {
			err = a.place(made)
		}
		if err == nil && attr.Mtime != nil {
			err = made.setAttr(Attr{Mtime: attr.Mtime}) // to some file systems a move is a change of it
		}
		if err != nil {
			err = errors.Join(err, dir.close())
		}
	}
	if err = errors.Join(err, made.end()); err != nil {
		return nil, err
	}
	return &Dir{dir, a.Path}, nil
}

func (a *At) place(made making) error {
	err := made.place()
	if !errors.Is(err, fs.ErrExist) {
		a.changed()
	}
	return err
}

// Make makes an object without content from its description: a directory, a link or a special file. Where something is
// already the error is fs.ErrExist. The object is complete before it takes the name.
func (a *At) Make(meta Meta) error {
	if meta.Kind == File || meta.Kind == Absent {
		return fault.Invalid("a %s cannot be made from its description", meta.Kind)
	}
	made, err := a.dir.begin(a.Name, meta, true)
	if err != nil {
		return err
	}
	if err = made.apply(meta.Unlocked()); err == nil {
		err = a.place(made)
	}
	if err == nil {
		err = made.apply(meta) // with the flags that forbid to rename it, and the time that a move may have changed
	}
	return errors.Join(err, made.end())
}

// MadeDir is a directory that MakeParents made.
type MadeDir struct {
	// Path is resolved.
	Path string

	meta Meta
}

// MakeParents makes the directories above path that do not exist, with mode 0755 and the agent as owner. It returns the entry
// that the path names then, in the very directory that was made, and those that it made, the outermost first. One that somebody
// else makes meanwhile is used as it is. Their names are durable if syncDir is set. On an error nothing of it stays.
func (r *Root) MakeParents(path string, syncDir bool) (at *At, made []MadeDir, err error) {
	missing, err := r.Missing(path)
	if err != nil {
		return nil, nil, err
	}
	if len(missing) == 0 {
		at, err = r.At(path)
		return at, nil, err
	}
	resolved, err := r.Resolve(path, false)
	if err != nil {
		return nil, nil, err
	}
	if at, err = r.find(missing[0], followDirs); err != nil {
		return nil, nil, err
	}
	for i, dir := range missing {
		next := resolved
		if i+1 < len(missing) {
			next = missing[i+1]
		}
		is, err := at.makeParent(syncDir)
		switch {
		case err == nil:
			made = append(made, MadeDir{dir, is.meta})
		case errors.Is(err, fs.ErrExist):
			is.Dir, err = at.OpenDir()
		}
		var below *At
		if err == nil {
			below, err = r.enter(at, is.Dir, next)
		}
		_ = at.Close()
		if err != nil {
			r.RemoveEmpty(made)
			return nil, nil, fmt.Errorf("directory %s: %w", dir, err)
		}
		at = below
	}
	if endsWithSeparator(path) {
		if err := at.requireDir(); err != nil {
			r.RemoveEmpty(made)
			return nil, nil, errors.Join(err, at.Close())
		}
	}
	return at, made, nil
}

// RemoveEmpty undoes MakeParents: it removes directories, the last first, as far as they are empty, and still those that it
// made.
func (r *Root) RemoveEmpty(made []MadeDir) {
	for _, dir := range slices.Backward(made) {
		at, err := r.At(dir.Path)
		if err != nil {
			return
		}
		meta, err := at.Stat()
		if stable, e := at.StableInodes(); err == nil && stable && e == nil && !(meta.Same(dir.meta) && meta.SameInode(dir.meta)) {
			err = fault.ErrChanged
		}
		if err == nil && meta.Kind == Directory {
			_ = at.Remove()
		}
		_ = at.Close()
	}
}

// parent is a directory above a path, open, and what it was when it was made.
type parent struct {
	*Dir
	meta Meta
}

// makeParent makes a directory, whose name is durable if syncDir is set.
func (a *At) makeParent(syncDir bool) (p parent, err error) {
	if p.Dir, err = a.MakeDir(Attr{}); err != nil {
		return parent{}, err
	}
	if p.meta, err = p.Stat("."); err == nil && syncDir {
		err = a.SyncDir()
	}
	if err != nil {
		return parent{}, errors.Join(err, p.Close(), a.Remove())
	}
	return p, nil
}

// enter returns the entry for a resolved path in the directory at another entry. It closes dir.
func (r *Root) enter(above *At, dir *Dir, path string) (*At, error) {
	defer dir.Close()
	meta, err := dir.Stat(".")
	if err != nil {
		return nil, err
	}
	at, err := r.In(dir, text.UnescapePath(Base(path)))
	if err != nil {
		return nil, err
	}
	at.Public = above.Public && modesTellRights && meta.Mode&0o001 != 0
	return at, nil
}

// namedMaking is a making that goes by names: those of an overlay, which nobody else sees, or of a system where a directory is
// known by its path.
type namedMaking struct {
	dir        directory
	kind       Kind
	name, temp string // temp is its name until it is placed
	placed     bool
}

// beginNamed makes an object; aside under another name first.
func beginNamed(dir directory, name string, meta Meta, aside bool) (making, error) {
	m := &namedMaking{dir: dir, kind: meta.Kind, name: name, temp: name}
	if aside {
		m.temp = tempName()
	}
	if err := dir.make(m.temp, meta); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *namedMaking) setAttr(attr Attr) error { return m.dir.setAttr(m.temp, m.kind, attr) }

func (m *namedMaking) apply(meta Meta) error { return m.dir.apply(m.temp, meta) }

func (m *namedMaking) openDir() (directory, error) { return m.dir.openDir(m.temp) }

func (m *namedMaking) place() error {
	if m.temp != m.name {
		if err := m.dir.rename(m.temp, m.dir, m.name, false); err != nil {
			return err
		}
	}
	m.temp, m.placed = m.name, true
	return nil
}

func (m *namedMaking) end() error {
	if m.placed {
		return nil
	}
	return m.dir.remove(m.temp, m.kind == Directory)
}
