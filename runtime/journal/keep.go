package journal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// maxObjects bounds a step: a tree of more is no configuration.
const maxObjects = 20000

// keeper makes the record of one step.
type keeper struct {
	tx      *Tx
	ctx     context.Context
	step    uint64
	tree    bool
	seen    map[string]bool
	objects []*pb.JournalObject
	spooled bool  // a file was put into the transaction's directory
	size    int   // of contents in the record
	disk    error // why something could not be kept, once it was known what
}

// maxInline bounds the contents in one record; what comes then is put into files.
const maxInline = 1 << 20

// add keeps what is at a path, and that the directories above it that are missing are.
func (k *keeper) add(path string) error {
	at, err := k.tx.journal.config.Root.At(path)
	if err == nil {
		defer at.Close()
		return k.here(at)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	root := k.tx.journal.config.Root
	missing, err := root.Missing(path)
	if err != nil {
		return err
	}
	resolved, err := root.Resolve(path, false)
	if err != nil {
		return err
	}
	for i, dir := range append(missing, resolved) {
		if err := k.absent(dir, i == 0); err != nil {
			return err
		}
	}
	return nil
}

// absent keeps that nothing is at a resolved path, in a directory that is there or not.
func (k *keeper) absent(path string, parent bool) error {
	if parent {
		at, err := k.tx.journal.config.Root.Exact(path)
		if err != nil {
			return err
		}
		defer at.Close()
		return k.here(at)
	}
	k.put(&pb.JournalObject{Path: path, State: toState(fsys.Meta{Kind: fsys.Absent}), Tree: k.tree})
	return nil
}

func (k *keeper) put(o *pb.JournalObject) {
	if !k.seen[o.Path] {
		k.seen[o.Path] = true
		k.objects = append(k.objects, o)
	}
}

// owned are the objects, a tree as one.
func (k *keeper) owned() []owned {
	var list []owned
	for _, o := range k.objects {
		if o.State.Mtime == nil || k.tree && len(list) > 0 && fsys.Within(o.Path, list[len(list)-1].path) {
			continue
		}
		list = append(list, owned{o.Path, k.tree})
	}
	return list
}

// here keeps what is at a place.
func (k *keeper) here(at *fsys.At) error {
	if k.seen[at.Path] {
		return nil
	}
	if len(k.objects) >= maxObjects {
		return fault.Wrapf(fault.ErrTooLarge, "more than %d objects would have to be kept", maxObjects)
	}
	if err := context.Cause(k.ctx); err != nil {
		return err
	}
	meta, err := at.Capture()
	if err != nil {
		return err
	}
	o := &pb.JournalObject{Path: at.Path, State: toState(meta), Tree: k.tree}
	pseudo, err := at.Pseudo()
	if err != nil {
		return err
	}
	if pseudo {
		o.State.Mtime = nil
	} else if o.ParentMtime, err = k.tx.journal.mtime(parent(at.Path)); err != nil {
		return err
	}
	if meta.Kind == fsys.File {
		if err := k.content(at, meta, o, pseudo); err != nil {
			return err
		}
	}
	k.put(o)
	if meta.Kind == fsys.Directory && k.tree {
		return k.children(at, meta)
	}
	return nil
}

// children keeps all that is in a directory.
func (k *keeper) children(at *fsys.At, meta fsys.Meta) error {
	if meta.Mounted && !at.IsRoot() {
		return fault.Refuse("a file system is mounted on %s", at.Path)
	}
	if own, err := k.tx.journal.owner(meta); own || err != nil {
		return errors.Join(err, fault.Refuse("%s is the agent's own", at.Path))
	}
	dir, err := at.OpenDir()
	if err != nil {
		return err
	}
	names, err := dir.Names()
	if err = errors.Join(err, dir.Close()); err != nil {
		return err
	}
	for _, name := range names {
		child, err := k.tx.journal.config.Root.Exact(below(at.Path, name))
		if err != nil {
			return err
		}
		if err := errors.Join(k.here(child), child.Close()); err != nil {
			return err
		}
	}
	return nil
}

// owner says whether a directory is the journal's.
func (j *Journal) owner(meta fsys.Meta) (bool, error) {
	at, err := j.state.At("/")
	if err != nil {
		return false, err
	}
	defer at.Close()
	own, err := at.Stat()
	return err == nil && own.Ino != 0 && own.Same(meta), err
}

// mtime is the time of a directory; nil for "".
func (j *Journal) mtime(dir string) (*pb.JournalTime, error) {
	if dir == "" {
		return nil, nil
	}
	at, err := j.config.Root.Exact(dir)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	meta, err := at.Stat()
	return toTime(meta.Mtime), err
}

// content keeps what is in a file: in the record if it is small, else in a file beside it. A copy, since what comes next
// may change the file in place. Where the file has other names, that it is the same file is kept too.
func (k *keeper) content(at *fsys.At, meta fsys.Meta, o *pb.JournalObject, setting bool) (err error) {
	if setting {
		o.Content, err = at.ReadFile(maxInline)
		return err
	}
	if meta.Links > 1 {
		if err := k.link(at, o); err != nil {
			return err
		}
	}
	if meta.Size <= inline && k.size < maxInline {
		data, err := at.ReadFile(inline)
		if err == nil {
			o.Content = append([]byte{}, data...)
			k.size += len(data)
			return nil
		}
		if !errors.Is(err, fault.ErrTooLarge) {
			return err
		}
	}
	o.Image = fmt.Sprintf("%d-%d", k.step, len(k.objects))
	image, err := k.own(o.Image)
	if err != nil {
		return err
	}
	defer image.Close()
	k.spooled = true
	if err := k.tx.journal.do("image.copy", func() error { return at.CopyContent(k.ctx, image) }); err != nil {
		return k.failed(err)
	}
	made, err := image.Stat()
	o.ImageIno = made.Ino
	return k.failed(err)
}

// failed notes that the disk failed, and not what was to be kept.
func (k *keeper) failed(err error) error {
	if err != nil && context.Cause(k.ctx) == nil && !errors.Is(err, fault.ErrChanged) {
		k.disk = err
	}
	return err
}

// link keeps a file by another name, so that a rollback can give its name back to the same file and not to a copy.
func (k *keeper) link(at *fsys.At, o *pb.JournalObject) error {
	name := fmt.Sprintf("%d-%d.link", k.step, len(k.objects))
	place, err := k.own(name)
	if err != nil {
		return err
	}
	defer place.Close()
	same, err := fsys.SameMount(at, place)
	if err != nil || !same {
		return err
	}
	err = k.tx.journal.do("image.link", func() error { return at.Link(place) })
	switch {
	case errors.Is(err, os.ErrPermission), errors.Is(err, syscall.EMLINK), errors.Is(err, errors.ErrUnsupported):
		return nil // then it is restored as a file of its own
	case err != nil:
		return k.failed(err)
	}
	o.Link, k.spooled = name, true
	return nil
}

// own is a place in the transaction's directory.
func (k *keeper) own(name string) (*fsys.At, error) {
	at, err := k.tx.journal.state.At(inState(k.tx.ID(), name))
	return at, k.failed(err)
}
