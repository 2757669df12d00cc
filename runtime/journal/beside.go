package journal

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A command that is held to some paths can still make, remove and rename what stands beside them. That is not kept: what
// changes there need not be the command's. It is named.

// BeforeTouch implements builtins.Tx.
func (t *Tx) BeforeTouch(ctx context.Context, paths ...string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.ready(); err != nil || len(paths) == 0 {
		return err
	}
	beside, err := t.journal.beside(paths)
	if err != nil {
		return err
	}
	return t.keepNow(ctx, true, paths, beside)
}

// UndeclaredChanges implements builtins.Tx.
func (t *Tx) UndeclaredChanges(ctx context.Context, op string) ([]*pb.Change, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.steps) == 0 {
		return nil, nil
	}
	last := t.steps[len(t.steps)-1]
	list, err := t.journal.strays(last.record.GetKeep())
	if err != nil {
		return nil, err
	}
	last.checked = true
	t.checked = append(t.checked, last.number)
	for _, change := range list {
		change.Op, change.State = op, pb.ChangeState_CHANGE_STATE_APPLIED
		if err := t.irreversible(change); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// beside names what of a step stays that the agent had no time to look for.
func (p *pass) beside(s *step, keep *pb.JournalKeep) []Undone {
	if s.checked || len(keep.Beside) == 0 {
		return nil
	}
	list, err := p.tx.journal.strays(keep)
	if err != nil {
		return []Undone{{Step: s.number, Op: "look", Target: keep.Beside[0].Path, Err: err}}
	}
	var undone []Undone
	for _, change := range list {
		change.Op = "restore"
		undone = append(undone, Undone{Step: s.number, Op: "restore", Target: change.Target, Irreversible: change})
	}
	return undone
}

// beside lists what a command could change that is not kept. A directory that others than the agent may write to, such as /tmp
// or a home, is left out.
func (j *Journal) beside(touches []string) ([]*pb.JournalBeside, error) {
	var trees, dirs []string
	for _, p := range touches {
		first, err := j.config.Root.Resolve(p, false)
		if err != nil {
			return nil, fault.On(p, err)
		}
		missing, err := j.config.Root.Missing(p)
		if err != nil {
			return nil, fault.On(p, err)
		}
		if len(missing) > 0 {
			first = missing[0]
		}
		trees = append(trees, first)
		dirs = append(dirs, path.Dir(first))
	}
	slices.Sort(dirs)
	var list []*pb.JournalBeside
	for _, dir := range slices.Compact(dirs) {
		if slices.ContainsFunc(trees, func(tree string) bool { return fsys.Within(dir, tree) }) {
			continue // all that is there is kept
		}
		own, err := j.ownDirectory(dir)
		if err != nil {
			return nil, fault.On(dir, err)
		}
		if !own {
			continue
		}
		neighbours, err := j.neighbours(dir)
		if err != nil {
			return nil, fault.On(dir, err)
		}
		neighbours = slices.DeleteFunc(neighbours, func(n *pb.JournalNeighbour) bool { return slices.Contains(trees, inDir(dir, n.Name)) })
		list = append(list, &pb.JournalBeside{Path: dir, Neighbours: neighbours})
	}
	return list, nil
}

// ownDirectory says whether nobody but the agent's user may change what is in a directory.
func (j *Journal) ownDirectory(dir string) (bool, error) {
	at, err := j.config.Root.Exact(dir)
	if err != nil {
		return false, err
	}
	defer at.Close()
	meta, err := at.Stat()
	const others = 0o022
	return meta.Mode&others == 0 && (meta.UID == 0 || int(meta.UID) == os.Geteuid()), err
}

// neighbours lists what is in a directory.
func (j *Journal) neighbours(path string) ([]*pb.JournalNeighbour, error) {
	at, err := j.config.Root.Exact(path)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	dir, err := at.OpenDir()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Names()
	if err != nil {
		return nil, err
	}
	list := make([]*pb.JournalNeighbour, 0, len(names))
	for _, name := range names {
		meta, err := dir.Stat(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		n := &pb.JournalNeighbour{Name: fsys.Escape(name)}
		if meta.Kind != fsys.File {
			n.Kind = string(meta.Kind)
		}
		if meta.Kind != fsys.File && meta.Kind != fsys.Directory {
			n.Ino, n.Target = meta.Ino, []byte(meta.Target)
		}
		list = append(list, n)
	}
	return list, nil
}

// strays tells what is another now, sorted by path.
func (j *Journal) strays(keep *pb.JournalKeep) ([]*pb.Change, error) {
	kept := map[string]bool{}
	for _, o := range keep.GetObjects() {
		kept[o.Path] = true
	}
	var list []*pb.Change
	for _, b := range keep.GetBeside() {
		after, err := j.neighbours(b.Path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fault.On(b.Path, err)
		}
		tell := func(name, action string) {
			list = append(list, &pb.Change{Target: inDir(b.Path, name), Action: action})
		}
		was := map[string]*pb.JournalNeighbour{}
		for _, n := range b.Neighbours {
			was[n.Name] = n
		}
		for _, n := range after {
			old := was[n.Name]
			delete(was, n.Name)
			switch {
			case kept[inDir(b.Path, n.Name)], fsys.IsTemp(n.Name), proto.Equal(old, n): // a rollback before this one may have left such a file
			case old == nil:
				tell(n.Name, "created")
			default:
				tell(n.Name, "modified")
			}
		}
		for name := range was {
			tell(name, "deleted")
		}
	}
	slices.SortFunc(list, func(a, b *pb.Change) int { return strings.Compare(a.Target, b.Target) })
	return list, nil
}

// inDir is the path of an escaped name in a resolved directory.
func inDir(dir, name string) string { return strings.TrimSuffix(dir, "/") + "/" + name }
