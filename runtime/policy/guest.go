package policy

import (
	"errors"
	"io/fs"
	"slices"
	"syscall"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Guest is what paths and programs are looked up in.
type Guest struct {
	// Files is the file system. Required.
	Files *fsys.Root
	// Dir is where Files lies on this machine, for its mounts; empty: /.
	Dir string
	// State is the directory where the agent keeps copies of files, below Files; empty: it lies elsewhere.
	State string
}

// object is what a path leads to.
type object struct {
	places []string // resolved: the path itself, and where a link at its end leads
	ids    []identity
	file   fsys.Meta
	names  uint32 // of a file; 0 for anything else
}

// identity distinguishes objects.
type identity struct{ dev, ino uint64 }

// look finds out what a path is. A path that cannot be resolved to a place is an error; the operation would meet it
// too. What it finds in checked is what the operation will act on; nil for the path of a rule.
func (g *Guest) look(text string, checked *fsys.CheckedPaths) (object, error) {
	if checked == nil {
		checked = g.Files.NewCheckedPaths()
	}
	own, err := checked.Look(text, false)
	if err != nil {
		return object{}, err
	}
	found := []fsys.Found{own}
	switch behind, err := checked.Look(text, true); {
	case err != nil: // it leads nowhere
	case behind.Path != own.Path:
		found = append(found, behind)
	case !behind.Meta.Same(own.Meta) || !behind.Dir.Same(own.Dir):
		return object{}, fault.Wrapf(fault.ErrChanged, "the path led to two objects while it was looked at")
	}
	var o object
	for _, f := range found {
		o.places = append(o.places, f.Path)
		if err := g.identify(f, &o); err != nil {
			return object{}, err
		}
	}
	return o, nil
}

// identify adds what stands at a place and at all directories above it: a bind mount gives them other names.
func (g *Guest) identify(f fsys.Found, o *object) error {
	for _, meta := range []fsys.Meta{f.Meta, f.Dir} {
		if meta.Kind != fsys.Absent {
			o.ids = append(o.ids, identity{meta.Dev, meta.Ino})
		}
	}
	if f.Meta.Kind == fsys.File {
		o.file, o.names = f.Meta, f.Meta.Links
	}
	for at := fsys.Parent(f.Path); ; at = fsys.Parent(at) {
		meta, err := g.Files.Identify(at)
		switch {
		case err == nil:
			o.ids = append(o.ids, identity{meta.Dev, meta.Ino})
		case !gone(err):
			return err
		}
		if fsys.IsRoot(at) || at == "." {
			return nil
		}
	}
}

func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP)
}

// fixed gives the places of a rule that allows something, as they are now: what is changed later must not widen it.
func (g *Guest) fixed(text string) []string {
	places := []string{fsys.Clean(text)}
	for _, follow := range []bool{false, true} {
		if resolved, err := g.Files.Resolve(text, follow); err == nil {
			if !follow {
				places = nil
			}
			places = append(places, resolved)
		}
	}
	return slices.Compact(places)
}

// covers reports whether an object is what stands at a path, or below it; with tree, also whether it is above it.
func (g *Guest) covers(text string, o object, tree bool) (bool, error) {
	rule, err := g.look(text, nil)
	if err != nil {
		return false, err
	}
	for _, denied := range rule.places {
		for _, place := range o.places {
			if fsys.Within(place, denied) || tree && fsys.Within(denied, place) {
				return true, nil
			}
		}
	}
	if covers, err := g.mountCovers(rule.places, o.places, tree); covers || err != nil {
		return covers, err
	}
	meta, err := g.Files.Identify(text)
	if err != nil {
		if gone(err) {
			return false, nil
		}
		return false, err
	}
	if slices.Contains(o.ids, identity{meta.Dev, meta.Ino}) {
		return true, nil
	}
	if meta.Kind != fsys.Directory || o.names < 2 || o.file.Dev != meta.Dev {
		return false, nil
	}
	left := mostNames
	return g.hasName(rule.places[len(rule.places)-1], o.file, &left)
}

// mostNames bounds the search for a second name of a file, in names; what is not found by then counts as found.
const mostNames = 100_000

// hasName reports whether a file has a name below a directory.
func (g *Guest) hasName(dir string, file fsys.Meta, left *int) (bool, error) {
	at, err := g.Files.Exact(dir)
	if err != nil {
		return false, ignoreGone(err)
	}
	defer at.Close()
	open, err := at.OpenDir()
	if err != nil {
		return false, ignoreGone(err)
	}
	defer open.Close()
	var below []string
	found := errors.New("found")
	err = open.Each(func(name string) error {
		if *left--; *left < 0 {
			return found
		}
		meta, err := open.Stat(name)
		switch {
		case err != nil && gone(err):
		case err != nil:
			return err
		case meta.Same(file):
			return found
		case meta.Kind == fsys.Directory && meta.Dev == file.Dev:
			below = append(below, fsys.Join(dir, name))
		}
		return nil
	})
	if err == found {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	for _, name := range below {
		if found, err := g.hasName(name, file, left); found || err != nil {
			return found, err
		}
	}
	return false, nil
}

func ignoreGone(err error) error {
	if gone(err) || errors.Is(err, fault.ErrChanged) {
		return nil
	}
	return err
}

// anyWithin reports whether a resolved place is in one of many.
func anyWithin(place string, lists [][]string) bool {
	return slices.ContainsFunc(lists, func(list []string) bool {
		return slices.ContainsFunc(list, func(dir string) bool { return fsys.Within(place, dir) })
	})
}
