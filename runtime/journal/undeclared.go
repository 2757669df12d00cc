package journal

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// A confined command that declares the paths it changes can still create, remove and rename other names in the same
// directories, change the attributes of these directories, and those of links and special files in them. None of that gets a
// before-image, since somebody else may change it meanwhile; such changes are reported.

// BeforeTouch implements builtins.Tx.
func (t *Tx) BeforeTouch(ctx context.Context, paths ...string) ([]builtins.Touched, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.ensureStarted(); err != nil || len(paths) == 0 {
		return nil, err
	}
	trees, err := t.journal.treesOf(paths)
	if err != nil {
		return nil, err
	}
	dirs, err := t.journal.neighboursOf(trees)
	if err != nil {
		return nil, err
	}
	s := &snapshotter{tx: t, ctx: ctx, tree: true}
	if err := t.keep(s, paths, dirs); err != nil {
		return nil, err
	}
	return touched(trees, s.objects)
}

// touched returns what was kept of trees.
func touched(trees []string, objects []*pb.JournalObject) ([]builtins.Touched, error) {
	inodes := map[string]uint64{}
	for _, o := range objects {
		inodes[o.Path] = o.State.Ino
	}
	list := make([]builtins.Touched, len(trees))
	for i, tree := range trees {
		ino, kept := inodes[tree]
		if !kept { // a directory on the way was exchanged between two looks
			return nil, fault.On(tree, fault.ErrChanged)
		}
		list[i] = builtins.Touched{Path: tree, Ino: ino}
	}
	return list, nil
}

// treesOf returns what is at paths, resolved; where directories are missing on the way, the first of these.
func (j *Journal) treesOf(paths []string) ([]string, error) {
	trees := make([]string, len(paths))
	for i, p := range paths {
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
		trees[i] = first
	}
	return trees, nil
}

// UndeclaredChanges implements builtins.Tx.
func (t *Tx) UndeclaredChanges(ctx context.Context, op string) ([]*pb.Change, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.steps) == 0 {
		return nil, nil
	}
	last := t.steps[len(t.steps)-1]
	record, err := t.record(last)
	if err != nil {
		return nil, t.fail(err)
	}
	list, err := t.journal.undeclaredChanges(record.GetKeep())
	if err != nil {
		return nil, err
	}
	last.checked = true
	t.unloggedChecked = append(t.unloggedChecked, last.number)
	for _, change := range list {
		change.Op, change.State = op, pb.ChangeState_CHANGE_STATE_APPLIED
		if err := t.irreversible(change); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// undeclaredChanges returns the undeclared changes of a step after which the agent died before it could check.
func (p *undoPass) undeclaredChanges(s *step, keep *pb.JournalKeep) []Undone {
	if s.checked || len(keep.Beside) == 0 {
		return nil
	}
	there := &pb.JournalKeep{Step: keep.Step, Objects: keep.Objects}
	for _, b := range keep.Beside {
		if !p.ended(b.Path) {
			there.Beside = append(there.Beside, b)
		}
	}
	list, err := p.tx.journal.undeclaredChanges(there)
	if err != nil {
		return []Undone{{Step: s.number, Op: "look", Target: keep.Beside[0].Path, Err: err}}
	}
	if p.tx.begin.GetSecrets() && p.tx.hide == nil {
		list = ofDirectories(list, there.Beside)
	}
	var undone []Undone
	for _, change := range list {
		change.Op = "restore"
		undone = append(undone, Undone{Step: s.number, Op: "restore", Target: change.Target, Irreversible: change})
	}
	return undone
}

// ofDirectories returns changes of the directories in place of those of names in them: any name may be a secret that is not
// known any more.
func ofDirectories(list []*pb.Change, beside []*pb.JournalBeside) []*pb.Change {
	var dirs []*pb.Change
	for _, b := range beside {
		changed := func(c *pb.Change) bool { return c.Target == b.Path || parent(c.Target) == b.Path }
		if slices.ContainsFunc(list, changed) {
			dirs = append(dirs, &pb.Change{Target: b.Path, Action: "modified"})
		}
	}
	return dirs
}

// neighboursOf lists the directories in which a command that changes these trees could change other names as well, with these
// names. Those of a directory that others than the agent may write to, such as /tmp or a home, are left out.
func (j *Journal) neighboursOf(trees []string) ([]*pb.JournalBeside, error) {
	var dirs []string
	for _, tree := range trees {
		dirs = append(dirs, fsys.Parent(tree))
	}
	slices.Sort(dirs)
	var list []*pb.JournalBeside
	for _, dir := range slices.Compact(dirs) {
		if slices.ContainsFunc(trees, func(tree string) bool { return fsys.Within(dir, tree) }) {
			continue // all that is there is kept
		}
		beside, err := j.readBeside(dir, private)
		if err != nil {
			return nil, fault.On(dir, err)
		}
		beside.Neighbours = slices.DeleteFunc(beside.Neighbours, func(n *pb.JournalNeighbour) bool {
			return slices.Contains(trees, joinEscaped(dir, n.Name))
		})
		list = append(list, beside)
	}
	return list, nil
}

// readBeside reads what reports whether a directory is changed, and the names in it if listed says so.
func (j *Journal) readBeside(path string, listed func(dir fsys.Meta) bool) (*pb.JournalBeside, error) {
	at, err := j.config.Root.Exact(path)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	meta, _, err := captureAny(at)
	if err != nil {
		return nil, err
	}
	state := toState(meta)
	beside := &pb.JournalBeside{Path: path, Shared: !listed(meta),
		State: &pb.JournalState{Kind: state.Kind, Mode: state.Mode, Uid: state.Uid, Gid: state.Gid, Xattrs: state.Xattrs}}
	if beside.Shared {
		return beside, nil
	}
	beside.Neighbours, err = j.readNeighbours(at)
	return beside, err
}

// private reports whether nobody but root and the agent's user may change what is in a directory.
func private(dir fsys.Meta) bool {
	const others = 0o022
	return dir.Mode&others == 0 && fsys.TrustedUser(dir.UID)
}

// readNeighbours lists what is in a directory, as far as it distinguishes one object from another under the same name.
func (j *Journal) readNeighbours(at *fsys.At) ([]*pb.JournalNeighbour, error) {
	dir, err := at.OpenDir()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var list []*pb.JournalNeighbour
	size := 0
	err = dir.Each(func(name string) error {
		meta, err := dir.Stat(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		n := &pb.JournalNeighbour{Name: text.EscapePath(name)}
		if meta.Kind != fsys.File {
			n.Kind = string(meta.Kind)
		}
		if meta.Kind != fsys.File && meta.Kind != fsys.Directory {
			n.Ino, n.Target, n.Mode, n.Uid, n.Gid = meta.Ino, []byte(meta.Target), meta.Mode, meta.UID, meta.GID
		}
		if size += proto.Size(n); size > maxRecord {
			return fault.Wrapf(fault.ErrTooLarge, "the names in it have more than %d bytes", maxRecord)
		}
		list = append(list, n)
		return nil
	})
	return list, err
}

// undeclaredChanges lists the neighbours that changed since the record, sorted by path.
func (j *Journal) undeclaredChanges(keep *pb.JournalKeep) ([]*pb.Change, error) {
	kept := map[string]bool{}
	for _, o := range keep.GetObjects() {
		kept[o.Path] = true
	}
	var list []*pb.Change
	for _, b := range keep.GetBeside() {
		after, err := j.readBeside(b.Path, func(fsys.Meta) bool { return !b.Shared })
		gone := errors.Is(err, fs.ErrNotExist)
		if err != nil && !gone {
			return nil, fault.On(b.Path, err)
		}
		if b.State != nil && !gone && !proto.Equal(b.State, after.State) {
			list = append(list, &pb.Change{Target: b.Path, Action: "modified"})
		}
		report := func(name, action string) {
			list = append(list, &pb.Change{Target: joinEscaped(b.Path, name), Action: action})
		}
		before := map[string]*pb.JournalNeighbour{}
		for _, n := range b.Neighbours {
			before[n.Name] = n
		}
		for _, n := range after.GetNeighbours() {
			old := before[n.Name]
			delete(before, n.Name)
			if b.State == nil { // of an older agent
				n.Mode, n.Uid, n.Gid = 0, 0, 0
			}
			switch {
			case kept[joinEscaped(b.Path, n.Name)], fsys.IsTemp(n.Name), proto.Equal(old, n): // a rollback before this one may have left such a file
			case old == nil:
				report(n.Name, "created")
			default:
				report(n.Name, "modified")
			}
		}
		for name := range before {
			report(name, "deleted")
		}
	}
	slices.SortFunc(list, func(a, b *pb.Change) int { return strings.Compare(a.Target, b.Target) })
	return list, nil
}

// joinEscaped joins a resolved directory and an escaped name.
func joinEscaped(dir, name string) string { return fsys.Join(dir, name) }
