package journal

import "github.com/quantix-kvm/guest-agent/builtins/fsys"

// maxHeldNames bounds the names of files with several that a transaction knows to be its own, and the names in trees that were
// moved away which are searched for them.
const maxHeldNames = 10_000

// maxHeldDepth bounds how deep such trees are searched, since all directories on the way are open.
const maxHeldDepth = 64

// object identifies a file among all that are there now.
type object struct{ dev, ino uint64 }

// heldName is a name that the transaction has given to a file with several, or has taken away.
type heldName struct {
	root *fsys.Root
	path string // in root
}

// hold notes a name of a file that has several.
func (t *Tx) hold(root *fsys.Root, path string, file fsys.Meta) {
	if file.Kind != fsys.File || file.Links < 2 || t.heldCount >= maxHeldNames {
		return
	}
	if t.held == nil {
		t.held = map[object][]heldName{}
	}
	t.heldCount++
	key := object{file.Dev, file.Ino}
	t.held[key] = append(t.held[key], heldName{root, path})
}

// holdTaken notes the names that are in a tree, or are one, which was moved to an entry of the spool. Of a directory they are
// looked for when they are asked for.
func (t *Tx) holdTaken(root *fsys.Root, path string, meta fsys.Meta) {
	switch meta.Kind {
	case fsys.Directory:
		t.unsearched = append(t.unsearched, heldName{root, path})
	default:
		t.hold(root, path, meta)
	}
}

// HeldNames implements builtins.Tx.
func (t *Tx) HeldNames(file fsys.Meta) uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, tree := range t.unsearched {
		if at, err := tree.root.Exact(tree.path); err == nil {
			t.search(tree.root, at, 1)
			_ = at.Close()
		}
	}
	t.unsearched = nil
	n := uint32(0)
	for _, name := range t.held[object{file.Dev, file.Ino}] {
		at, err := name.root.Exact(name.path)
		if err != nil {
			continue
		}
		if meta, err := at.Stat(); err == nil && meta.Same(file) { // a step that was undone holds it no longer
			n++
		}
		_ = at.Close()
	}
	return n
}

// search notes the names in a tree, as far as the bounds go: depth counts the directories that are open.
func (t *Tx) search(root *fsys.Root, at *fsys.At, depth int) {
	if depth > maxHeldDepth {
		return
	}
	dir, err := at.OpenDir()
	if err != nil {
		return
	}
	defer dir.Close()
	_ = dir.Each(func(name string) error {
		if t.searched++; t.searched > maxHeldNames {
			return errManyPaths
		}
		child, err := dir.At(name)
		if err != nil {
			return nil
		}
		if meta, err := child.Stat(); err == nil && meta.Kind == fsys.Directory {
			t.search(root, child, depth+1)
		} else if err == nil {
			t.hold(root, child.Path, meta)
		}
		_ = child.Close()
		return nil
	})
}
