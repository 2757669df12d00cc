package journal

import (
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// loose is what earlier steps of a transaction did and nobody forced. A record must speak only of what is durable: else
// the loss of power leaves a record of a file that was never there, and a rollback step by step meets what no step left.
type loose struct {
	paths []owned         // kept and changed, or moved away
	acted bool            // operations ran, which may have changed anything
	fresh bool            // one ran since the last time
	done  map[string]bool // directories that were forced since the last operation
}

// note takes in a record that was written: what it speaks of may be changed from now on.
func (l *loose) note(record *pb.JournalRecord) {
	switch r := record.Record.(type) {
	case *pb.JournalRecord_Keep:
		for _, o := range r.Keep.Objects {
			if o.State.Mtime != nil { // a setting of the kernel is nowhere
				l.paths = append(l.paths, owned{o.Path, o.Tree})
			}
		}
	case *pb.JournalRecord_Take:
		l.paths = append(l.paths, owned{path: r.Take.Path})
	case *pb.JournalRecord_Inverse, *pb.JournalRecord_Irreversible:
		l.acted, l.fresh, l.done = true, true, map[string]bool{}
	}
}

// due gives the paths to be forced before a record may speak of the given ones, and takes them for forced. all: the paths
// are not known.
func (l *loose) due(of []owned) (paths map[string]bool, all bool) {
	paths = map[string]bool{}
	kept := l.paths[:0]
	for _, earlier := range l.paths {
		related := l.fresh // an operation may have moved it
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
	l.paths, l.fresh = kept, false
	if !l.acted {
		return paths, all
	}
	for _, o := range of {
		all = all || o.tree
		paths[o.path] = true
		for path := parent(o.path); path != "" && !l.done[path]; path = parent(path) {
			paths[path], l.done[path] = true, true
		}
	}
	return paths, all
}

// settle forces what the transaction itself may have made of the objects that the next record speaks of.
func (t *Tx) settle(of []owned) error {
	paths, all := t.loose.due(of)
	if len(paths) == 0 && !all {
		return nil
	}
	// What was moved away is durable there before it is durable that it is not here.
	if err := t.settleSpools(paths); err != nil {
		return err
	}
	if all {
		if err := t.journal.do("settle.syncall", t.journal.config.Root.SyncAll); err != nil {
			return err
		}
	}
	return t.journal.syncPaths("settle", paths)
}

func (t *Tx) settleSpools(paths map[string]bool) error {
	spools := map[string]bool{}
	own := false
	for _, s := range t.steps {
		take := s.record.GetTake()
		switch {
		case take == nil || s.reverted || !paths[take.Path]:
		case take.Spool == "":
			own = true
		default:
			spools[take.Spool] = true
		}
	}
	if own {
		if err := t.journal.do("settle.syncspool", func() error { return syncDir(t.dir("u")) }); err != nil {
			return err
		}
	}
	return t.journal.syncPaths("settle", spools)
}
