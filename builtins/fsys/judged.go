package fsys

import (
	"errors"
	"io/fs"
	"os"
	"slices"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Judged remembers what the paths of one request led to when they were judged:
//
//	policy ──Look──► Judged ◄──check── Root.As(judged) ◄── the operation
//
// Between the two somebody may exchange a directory, a link or a file. So each path that was looked at is held, when
// the operation gets to it, against what was found then, the directory that it is in by the open descriptor and the
// object by the one that is read or written. What is another one now is fault.ErrChanged. A path that nobody looked at
// is not held against anything. Of what the operation itself puts in the place of an object nothing is said, and of a
// file system that only the kernel writes neither: it forgets the numbers of its objects.
//
// It belongs to one request, and is for one goroutine at a time.
type Judged struct {
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

// Judge begins a request that acts on r, and is about these paths.
func (r *Root) Judge(about ...string) *Judged { return &Judged{root: r, about: about} }

// IsAbout reports whether a path is one of those that the request is about. An operation that learns only when it runs which
// paths it reads asks: rules were not. Where no rule has looked at anything, as with nil, the answer is yes.
func (j *Judged) IsAbout(path string) bool {
	return j == nil || len(j.found) == 0 || slices.Contains(j.about, path)
}

// Look returns what a path leads to, the first time it is asked. Of a link that is the link, or with follow what is
// behind it. What is not there does not count as an error.
func (j *Judged) Look(path string, follow bool) (Found, error) {
	key := look{path, follow}
	if found := j.found[key]; found != nil {
		return *found, found.err
	}
	if j.found == nil {
		j.found = map[look]*Found{}
	}
	found := &Found{Meta: Meta{Kind: Absent}, Dir: Meta{Kind: Absent}}
	found.err = found.fill(j.root, path, follow)
	j.found[key] = found
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

// As returns the root for an operation on what was judged; nil: nothing was. It shares everything with r, which alone
// is closed.
func (r *Root) As(judged *Judged) *Root {
	if judged == nil || len(judged.found) == 0 {
		return r
	}
	return &Root{fs: r.fs, judged: judged}
}

// hold checks an entry against what was found at its path, now and when its object is opened.
func (j *Judged) hold(at *At, path string, links follow) error {
	found := j.found[look{path, links == followAll}]
	if found == nil {
		found = j.at(at.Path)
	}
	if found == nil {
		return nil
	}
	if found.err != nil || found.Path != at.Path {
		return errJudged
	}
	at.judged = found
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
func (j *Judged) at(path string) *Found {
	for _, found := range j.found {
		if found.err == nil && found.Path == path {
			return found
		}
	}
	return nil
}

var errJudged = fault.Wrapf(fault.ErrChanged, "the path leads elsewhere than when it was judged")

// held checks what is here against what was judged.
func (a *At) held(meta Meta) error {
	switch {
	case a.judged == nil || a.judged.made:
		return nil
	case a.judged.Meta.Kind == Absent:
		return errJudged
	}
	if meta.Ino == a.judged.Meta.Ino && !meta.SameInode(a.judged.Meta) {
		return errJudged
	}
	return a.sameAs(meta, a.judged.Meta)
}

func (a *At) sameAs(have, want Meta) error {
	if have.Same(want) {
		return nil
	}
	if pseudo, err := a.dir.pseudo(); err == nil && pseudo && have.Dev == want.Dev {
		return nil
	}
	return errJudged
}

// heldOpen checks an open file against what was judged, and closes it if it is another one.
func (a *At) heldOpen(file *os.File) error {
	if a.judged == nil || a.judged.made || a.dir.pretended(a.Name) {
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
	if a.judged != nil {
		a.judged.made = true
	}
}
