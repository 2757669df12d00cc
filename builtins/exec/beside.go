package exec

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A program that changes a file mostly puts another in its place, so the directory that a touched file is in must be
// writable for it. The files and directories in it are read-only all the same; but nothing keeps a command from making
// something new beside them, or from removing a link. That is found afterwards: it was not kept, so it is named as
// something that a rollback leaves.

// beside is what stands next to the paths that a command touches.
type beside struct {
	dirs  []string        // that are writable for the command, though not all in them was kept
	named map[string]bool // what in them was
	found map[string]fsys.Meta
}

// lookBeside lists what a command could change though touches does not name it. A directory that others than the
// agent may write to, such as /tmp or a home, is left out: what appears there need not be the command's.
func lookBeside(root *fsys.Root, touches []string) (*beside, error) {
	b := &beside{named: map[string]bool{}}
	var dirs []string
	for _, p := range touches {
		first, err := root.Resolve(p, false)
		if err != nil {
			return nil, err
		}
		missing, err := root.Missing(p)
		if err != nil {
			return nil, err
		}
		if len(missing) > 0 {
			first = missing[0]
		}
		b.named[first] = true
		dirs = append(dirs, path.Dir(first))
	}
	for _, dir := range dirs {
		within := func(tree string) bool { return fsys.Within(dir, tree) }
		if slices.Contains(b.dirs, dir) || slices.ContainsFunc(slices.Collect(maps.Keys(b.named)), within) {
			continue // all that is there was kept
		}
		b.dirs = append(b.dirs, dir)
	}
	var err error
	b.found, err = b.look(root)
	return b, err
}

func (b *beside) look(root *fsys.Root) (map[string]fsys.Meta, error) {
	found := map[string]fsys.Meta{}
	for _, dir := range b.dirs {
		if err := b.list(root, dir, found); err != nil {
			return nil, err
		}
	}
	return found, nil
}

func (b *beside) list(root *fsys.Root, dir string, found map[string]fsys.Meta) error {
	at, err := root.Exact(dir)
	if err != nil {
		return err
	}
	defer at.Close()
	meta, err := at.Stat()
	const others = 0o022
	if err != nil || meta.Mode&others != 0 || meta.UID != 0 && int(meta.UID) != os.Geteuid() {
		return err
	}
	open, err := at.OpenDir()
	if err != nil {
		return err
	}
	defer open.Close()
	names, err := open.Names()
	if err != nil {
		return err
	}
	for _, name := range names {
		place := strings.TrimSuffix(dir, "/") + "/" + fsys.Escape(name)
		if b.named[place] {
			continue
		}
		switch meta, err := open.Stat(name); {
		case err == nil:
			found[place] = meta
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
	}
	return nil
}

// changes tells what is another now, sorted by path.
func (b *beside) changes(root *fsys.Root) ([]*pb.Change, error) {
	after, err := b.look(root)
	if err != nil {
		return nil, err
	}
	var list []*pb.Change
	tell := func(place, action string) { list = append(list, &pb.Change{Target: place, Action: action}) }
	for place, was := range b.found {
		is, there := after[place]
		switch {
		case !there:
			tell(place, "deleted")
		case was.Kind != is.Kind, was.Kind != fsys.File && was.Kind != fsys.Directory && !was.Same(is), was.Target != is.Target:
			tell(place, "modified")
		}
	}
	for place := range after {
		if _, there := b.found[place]; !there {
			tell(place, "created")
		}
	}
	slices.SortFunc(list, func(a, b *pb.Change) int { return strings.Compare(a.Target, b.Target) })
	return list, nil
}

// strayed names what a command changed beside what it touches. It is told to the journal, so that a rollback says that it
// stays, and it is an error.
func (r *Room) strayed(ctx context.Context, call *builtins.Call, op string, before *beside) error {
	root, err := fsys.Open(r.config.Root)
	if err != nil {
		return err
	}
	defer root.Close()
	list, err := before.changes(root)
	if err != nil {
		return err
	}
	for _, change := range list {
		change.Op, change.State = op, pb.ChangeState_CHANGE_STATE_APPLIED
		if err := call.Tx.Irreversible(ctx, change); err != nil {
			return err
		}
		call.Report(change)
	}
	if len(list) == 0 {
		return nil
	}
	return &fault.Error{
		Err:  fault.Refuse("%s was %s, which touches does not name", list[0].Target, list[0].Action),
		Hint: "name in touches all that the command changes, also what it makes beside; or the directory",
	}
}

// kept are the paths to be kept before a command that touches them. Where nothing keeps it from writing through a link,
// what that leads to is among them.
func kept(root *fsys.Root, in *pb.RunArgs) ([]string, error) {
	var paths []string
	for _, p := range in.GetTouches() {
		p = path.Clean(p)
		paths = append(paths, p)
		if !in.GetUnconfined() {
			continue
		}
		place, err := root.Resolve(p, false)
		if err != nil {
			return nil, err
		}
		target, err := root.Resolve(p, true)
		if err != nil {
			return nil, err
		}
		if target != place {
			paths = append(paths, target)
		}
	}
	return paths, nil
}
