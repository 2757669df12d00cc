package journal

import (
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// pendingSyncs is what earlier steps of a transaction changed and nobody synced. A record may describe only durable states:
// else a power loss could leave the record of a step on disk without the effects of the steps before it, and a rollback,
// which goes back step by step, would meet states that no step left.
type pendingSyncs struct {
	paths       []ownedPath     // with a before-image, or moved away
	opsRan      bool            // operations ran, which may have changed anything
	opsRanSince bool            // one ran since the last popRelated
	syncedDirs  map[string]bool // since the last operation
	inTrees     map[string]bool // those of paths that are in a tree: they stay
}

// cost returns about how many bytes of memory the objects of a step take for as long as the transaction lasts.
func (p *pendingSyncs) cost(keep *pb.JournalKeep) (bytes int64) {
	for _, o := range keep.GetObjects() {
		if o.Tree && !p.inTrees[o.Path] {
			bytes += int64(len(o.Path)) + perObject/3
		}
	}
	return bytes
}

// note adds the objects of a record that was written: they may be changed from now on.
func (p *pendingSyncs) note(record *pb.JournalRecord) {
	switch r := record.Record.(type) {
	case *pb.JournalRecord_Keep:
		for _, o := range r.Keep.Objects {
			if o.State.Mtime == nil || p.inTrees[o.Path] { // a kernel setting is on no disk
				continue
			}
			if o.Tree {
				if p.inTrees == nil {
					p.inTrees = map[string]bool{}
				}
				p.inTrees[o.Path] = true
			}
			p.paths = append(p.paths, ownedPath{path: o.Path, tree: o.Tree})
		}
	case *pb.JournalRecord_Take:
		p.paths = append(p.paths, ownedPath{path: r.Take.Path})
	case *pb.JournalRecord_Inverse, *pb.JournalRecord_Irreversible:
		p.opsRan, p.opsRanSince, p.syncedDirs = true, true, map[string]bool{}
	}
}

// popRelated returns and removes the paths to be synced before a record may describe the given objects. all: the whole file
// system must be synced, since the paths are unknown.
func (p *pendingSyncs) popRelated(of []ownedPath) (paths map[string]bool, all bool) {
	paths = map[string]bool{}
	kept := p.paths[:0]
	for _, earlier := range p.paths {
		related := p.opsRanSince // an operation may have moved it
		for _, o := range of {
			above, below := fsys.Within(o.path, earlier.path), fsys.Within(earlier.path, o.path)
			if earlier.tree && above {
				for path := o.path; path != earlier.path; path = parent(path) {
					paths[path] = true
				}
			}
			all = all || earlier.tree && below && o.tree
			related = related || above || below
		}
		if related {
			paths[earlier.path] = true
		}
		if !related || earlier.tree {
			kept = append(kept, earlier)
		}
	}
	p.paths, p.opsRanSince = kept, false
	if !p.opsRan {
		return paths, all
	}
	for _, o := range of {
		all = all || o.tree
		paths[o.path] = true
		for path := parent(o.path); path != "" && !p.syncedDirs[path]; path = parent(path) {
			paths[path], p.syncedDirs[path] = true, true
		}
	}
	return paths, all
}

// syncPending makes durable what the transaction may have made of the objects that the next record describes.
func (t *Tx) syncPending(of []ownedPath) error {
	paths, all := t.pending.popRelated(of)
	if len(paths) == 0 && !all {
		return nil
	}
	// A moved tree must be durable in the spool before its removal from the old directory is.
	if err := t.syncPendingSpools(paths); err != nil {
		return err
	}
	if all {
		if err := t.journal.do("pending.syncall", t.journal.config.Root.SyncAll); err != nil {
			return err
		}
	}
	return t.journal.syncPaths("pending", paths)
}

func (t *Tx) syncPendingSpools(paths map[string]bool) error {
	spools := map[string]bool{}
	own := false
	for _, s := range t.steps {
		switch {
		case s.moved == "" || s.reverted || !paths[s.moved]:
		case s.spool == "":
			own = true
		default:
			spools[s.spool] = true
		}
	}
	if own {
		if err := t.journal.do("pending.syncspool", func() error { return syncDir(t.dir("u")) }); err != nil {
			return err
		}
	}
	return t.journal.syncPaths("pending", spools)
}
