package journal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// maxObjects bounds the objects of a step: a larger tree is not configuration, and one record must hold it.
const maxObjects = 20000

// maxDepth bounds how deep directories of a tree are nested: each is open while what is in it is kept, and a rollback walks to
// each object from the root.
const maxDepth = 256

// snapshotter collects the before-images of one step.
type snapshotter struct {
	tx          *Tx
	ctx         context.Context
	step        uint64
	tree        bool
	grows       bool // something is appended to the objects, and nothing else is changed
	depth       int  // of the directory in the tree that is being kept
	pending     int  // names that were read, and whose objects are not kept yet
	seen        map[string]bool
	objects     []*pb.JournalObject
	mounts      mountList // that they are on
	files       []string  // that were put into the transaction's directory
	inlineBytes int       // of contents in the record
	size        int       // of the objects in the record, in bytes
	diskErr     error     // why something could not be kept, once it was known what
}

// maxInlineTotal bounds the contents in one record, in bytes; further contents go into files.
const maxInlineTotal = 1 << 20

// add takes the before-image of a path, and of each directory above it that is missing.
func (s *snapshotter) add(path string) error {
	at, err := s.tx.journal.config.Root.At(path)
	if err == nil {
		defer at.Close()
		return s.addPlace(at)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	root := s.tx.journal.config.Root
	missing, err := root.Missing(path)
	if err != nil {
		return err
	}
	resolved, err := root.Resolve(path, false)
	if err != nil {
		return err
	}
	for i, dir := range append(missing, resolved) {
		if err := s.addAbsent(dir, i == 0); err != nil {
			return err
		}
	}
	return nil
}

// addAbsent records that nothing is at a resolved path. parent: its directory exists.
func (s *snapshotter) addAbsent(path string, parent bool) error {
	if parent {
		at, err := s.tx.journal.config.Root.Exact(path)
		if err != nil {
			return err
		}
		defer at.Close()
		return s.addPlace(at)
	}
	s.addObject(&pb.JournalObject{Path: path, State: toState(fsys.Meta{Kind: fsys.Absent}), Tree: s.tree})
	return nil
}

func (s *snapshotter) addObject(o *pb.JournalObject) {
	if !s.seen[o.Path] {
		s.seen[o.Path] = true
		s.objects = append(s.objects, o)
		s.size += proto.Size(o)
	}
}

// ownedPaths returns the paths of the objects, a tree as one path, without kernel settings.
func (s *snapshotter) ownedPaths() []ownedPath {
	var list []ownedPath
	for _, o := range s.objects {
		if o.State.Mtime == nil || s.tree && len(list) > 0 && fsys.Within(o.Path, list[len(list)-1].path) {
			continue
		}
		list = append(list, ownedPath{path: o.Path, tree: s.tree})
	}
	return list
}

// addPlace takes the before-image of what is at a place.
func (s *snapshotter) addPlace(at *fsys.At) error {
	if s.seen[at.Path] {
		return nil
	}
	if len(s.objects) >= maxObjects {
		return fault.Wrapf(fault.ErrTooLarge, "more than %d objects in one step", maxObjects)
	}
	if s.size > maxRecord {
		return fault.Wrapf(fault.ErrTooLarge, "the step's record has more than %d bytes", maxRecord)
	}
	if err := context.Cause(s.ctx); err != nil {
		return err
	}
	meta, err := at.Capture()
	if err == nil {
		err = s.mounts.add(at)
	}
	if err != nil {
		return err
	}
	o := &pb.JournalObject{Path: at.Path, State: toState(meta), Tree: s.tree}
	pseudo, err := at.Pseudo()
	if err != nil {
		return err
	}
	if pseudo {
		o.State.Mtime = nil
	} else if !at.IsRoot() {
		above, err := at.StatDir()
		if err != nil {
			return err
		}
		o.ParentMtime, o.ParentIno, o.ParentBorn = toTime(above.Mtime), above.Ino, bornTime(above)
	}
	if meta.Kind == fsys.File {
		if err := s.addContent(at, meta, o, pseudo); err != nil {
			return err
		}
	}
	s.addObject(o)
	if meta.Kind == fsys.Directory && s.tree {
		return s.addChildren(at, meta)
	}
	return nil
}

// addChildren takes the before-images of all that is in a directory.
func (s *snapshotter) addChildren(at *fsys.At, meta fsys.Meta) error {
	if meta.Mounted && !at.IsRoot() {
		return fault.Refuse("a file system is mounted on %s", at.Path)
	}
	if own, err := s.tx.journal.isOwnDir(meta); own || err != nil {
		return errors.Join(err, fault.Refuse("%s is the agent's state directory", at.Path))
	}
	if s.depth++; s.depth > maxDepth {
		return fault.Wrapf(fault.ErrTooLarge, "directories are nested more than %d deep", maxDepth)
	}
	defer func() { s.depth-- }()
	dir, err := at.OpenDir()
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Names(max(maxObjects-len(s.objects)-s.pending, 0))
	if err != nil {
		return err
	}
	s.pending += len(names)
	for _, name := range names {
		s.pending--
		child, err := dir.At(name)
		if err != nil {
			return err
		}
		if err := errors.Join(s.addPlace(child), child.Close()); err != nil {
			return err
		}
	}
	return nil
}

// isOwnDir reports whether a directory is the journal's own.
func (j *Journal) isOwnDir(meta fsys.Meta) (bool, error) {
	at, err := j.state.At("/")
	if err != nil {
		return false, err
	}
	defer at.Close()
	own, err := at.Stat()
	return err == nil && own.Ino != 0 && own.Same(meta), err
}

// mtime returns the modification time of a directory; nil for "".
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

// addContent stores the content of a file: in the record if it is small, else in an image file. It is a copy, since the
// change that follows may write the file in place. A file with other names gets one more, see addLink. It is the file that meta
// describes, or an error: a rollback would give its owner the content of another one.
func (s *snapshotter) addContent(at *fsys.At, meta fsys.Meta, o *pb.JournalObject, setting bool) (err error) {
	if setting {
		o.Content, err = at.ReadFile(maxInlineTotal)
		return err
	}
	if s.grows && meta.Size > maxInlineFile {
		o.Tail, err = tailAt(at, meta)
		return err
	}
	if meta.Links > 1 {
		if err := s.addLink(at, meta, o); err != nil {
			return err
		}
	}
	if meta.Size <= maxInlineFile && s.inlineBytes < maxInlineTotal {
		data, err := at.Of(meta).ReadFile(maxInlineFile)
		if err == nil {
			o.Content = append([]byte{}, data...)
			s.inlineBytes += len(data)
			return nil
		}
		if !errors.Is(err, fault.ErrTooLarge) {
			return err
		}
	}
	o.Image = fmt.Sprintf("%d-%d", s.step, len(s.objects))
	image, err := s.fileAt(o.Image)
	if err != nil {
		return err
	}
	defer image.Close()
	if err := s.tx.journal.do("image.copy", func() error { return at.Of(meta).CopyContent(s.ctx, image) }); err != nil {
		return s.noteDiskError(err)
	}
	s.files = append(s.files, o.Image)
	made, err := image.Stat()
	o.ImageIno = made.Ino
	o.ImageBorn = bornTime(made)
	return s.noteDiskError(err)
}

// noteDiskError notes an error of the journal's disk, in contrast to one of the object itself.
func (s *snapshotter) noteDiskError(err error) error {
	if err != nil && context.Cause(s.ctx) == nil && !errors.Is(err, fault.ErrChanged) {
		s.diskErr = err
	}
	return err
}

// addLink gives a file another name in the transaction's directory, so that a rollback restores the same file, not a copy.
func (s *snapshotter) addLink(at *fsys.At, meta fsys.Meta, o *pb.JournalObject) error {
	name := fmt.Sprintf("%d-%d.link", s.step, len(s.objects))
	place, err := s.fileAt(name)
	if err != nil {
		return err
	}
	defer place.Close()
	same, err := fsys.SameMount(at, place)
	if err != nil || !same {
		return err
	}
	err = s.tx.journal.do("image.link", func() error { return at.Link(place) })
	switch {
	case errors.Is(err, os.ErrPermission), errors.Is(err, syscall.EMLINK), errors.Is(err, errors.ErrUnsupported):
		return nil // then a rollback restores a copy
	case err != nil:
		return s.noteDiskError(err)
	}
	s.files = append(s.files, name)
	linked, err := place.Stat()
	if err != nil {
		return s.noteDiskError(err)
	}
	if same, err := sameInode(at, meta, linked); err != nil || !same {
		return errors.Join(err, fault.ErrChanged)
	}
	o.Link = name
	s.tx.hold(s.tx.journal.state, txFilePath(s.tx.ID(), name), linked)
	return nil
}

// removeFiles removes what was put into the transaction's directory.
func (s *snapshotter) removeFiles() {
	for _, name := range s.files {
		if at, err := s.fileAt(name); err == nil {
			_ = s.tx.journal.do("image.remove", at.Remove) // else the next step of that number fails
			_ = at.Close()
		}
	}
}

// fileAt returns a place in the transaction's directory.
func (s *snapshotter) fileAt(name string) (*fsys.At, error) {
	at, err := s.tx.journal.state.At(txFilePath(s.tx.ID(), name))
	return at, s.noteDiskError(ownError(err))
}
