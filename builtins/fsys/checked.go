package fsys

import (
	"errors"
	"io/fs"
	"os"
	"slices"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// CheckedPaths remembers what the paths of one request led to when rules were checked, so that the operation acts on the same
// objects:
//
//	policy ──Look──► CheckedPaths ──► Root.WithChecked ──► the operation: fault.ErrChanged where it meets another object
//
// Between the two somebody may exchange a directory, a link or a file. When the operation resolves a path that Look was called
// with, the directory is compared by its open descriptor, and the object by the one that is read or written. Other paths are not
// compared, nor is what the operation itself put in the place of an object, nor a file system such as proc, which does not keep
// the inode numbers of its objects.
//
// It belongs to one request, and is for one goroutine at a time.
type CheckedPaths struct {
	root  *Root
	about []string
	found map[look]*Found
}

// look is a path as the request has it.
type look struct {
	path   string
	follow bool
}

// Found is what a path led to.
type Found struct {
	// Path is resolved.
	Path string
	// Meta is what stands there; Absent where nothing does. Extended attributes may be missing.
	Meta Meta
	// Dir is the directory that it is in; Absent where there is none.
	Dir Meta

	err  error
	made bool // what stands there now is the operation's own doing
}

// NewCheckedPaths returns an empty CheckedPaths for a request that acts on r, and is about these paths.
func (r *Root) NewCheckedPaths(about ...string) *CheckedPaths {
	return &CheckedPaths{root: r, about: about}
}

// IsAbout reports whether a path is one of those that the request is about. It is for an operation that learns only when it runs
// which paths it reads, since rules did not check these. Where no rule is about paths, as with nil, it is true.
func (c *CheckedPaths) IsAbout(path string) bool {
	return c == nil || len(c.found) == 0 || slices.Contains(c.about, path)
}

// Look returns what a path led to when Look was first called with it: a link itself, or with follow what it leads to. That nothing
// is there is no error.
func (c *CheckedPaths) Look(path string, follow bool) (Found, error) {
	key := look{path, follow}
	if found := c.found[key]; found != nil {
		return *found, found.err
	}
	if c.found == nil {
		c.found = map[look]*Found{}
	}
	found := &Found{Meta: Meta{Kind: Absent}, Dir: Meta{Kind: Absent}}
	found.err = found.fill(c.root, path, follow)
	c.found[key] = found
	return *found, found.err
}

func (f *Found) fill(root *Root, path string, follow bool) error {
	links := followDirs
	if follow {
		links = followAll
	}
	at, err := root.find(path, links)
	if errors.Is(err, fs.ErrNotExist) {
		f.Path, err = root.Resolve(path, follow)
		return err
	}
	if err != nil {
		return err
	}
	defer at.Close()
	f.Path = at.Path
	if f.Dir, err = at.dir.stat("."); err != nil {
		return err
	}
	meta, err := at.Stat()
	if err == nil {
		f.Meta = meta
		f.Meta.Born = Time{} // on overlayfs an object that is written to becomes another one
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// WithChecked returns a Root whose entries must be what was found for checked; nil: they may be anything. It shares everything
// with r, which alone is closed.
func (r *Root) WithChecked(checked *CheckedPaths) *Root {
	if checked == nil || len(checked.found) == 0 {
		return r
	}
	return &Root{fs: r.fs, checked: checked}
}

// hold checks an entry against what was found at its path, now and when its object is opened.
func (c *CheckedPaths) hold(at *At, path string, links follow) error {
	found := c.found[look{path, links == followAll}]
	if found == nil {
		found = c.at(at.Path)
	}
	if found == nil {
		return nil
	}
	if found.err != nil || found.Path != at.Path {
		return errChecked
	}
	at.checked = found
	if found.Dir.Kind == Absent {
		return nil
	}
	if d, ok := at.dir.(*realDir); ok {
		if err := d.pin.set(d.handle); err != nil {
			return err
		}
	}
	dir, err := at.dir.stat(".")
	if err != nil {
		return err
	}
	return at.sameAs(dir, found.Dir)
}

// at returns what was found at a resolved path.
func (c *CheckedPaths) at(path string) *Found {
	for _, found := range c.found {
		if found.err == nil && found.Path == path {
			return found
		}
	}
	return nil
}

var errChecked = fault.Wrapf(fault.ErrChanged, "the path leads elsewhere than when it was checked")

// held returns errChecked if what is here is not what was found.
func (a *At) held(meta Meta) error {
	switch {
	case a.checked == nil || a.checked.made:
		return nil
	case a.checked.Meta.Kind == Absent:
		return errChecked
	}
	if meta.Ino == a.checked.Meta.Ino && !meta.SameInode(a.checked.Meta) {
		return errChecked
	}
	return a.sameAs(meta, a.checked.Meta)
}

func (a *At) sameAs(have, want Meta) error {
	if have.Same(want) {
		return nil
	}
	if pseudo, err := a.dir.pseudo(); err == nil && pseudo && have.Dev == want.Dev {
		return nil
	}
	return errChecked
}

// heldOpen is held for an open file, which it closes on an error.
func (a *At) heldOpen(file *os.File) error {
	if a.checked == nil || a.checked.made || a.dir.pretended(a.Name) {
		return nil
	}
	meta, err := statFile(file)
	if err == nil {
		err = a.held(meta)
	}
	if err != nil {
		_ = file.Close()
	}
	return err
}

// changed says that what is here from now on is the operation's own doing.
func (a *At) changed() {
	if a.checked != nil {
		a.checked.made = true
	}
}
