package fsys

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// overlay is a file system with changes that are kept beside the real files. It knows what differs, and asks the real
// one for all else:
//
//	overlayNode "/" ─ etc ─ motd: other content, in a file of the scratch directory
//	                   ├── new: a directory that exists in the overlay alone
//	                   └── old: removed (nil)
type overlay struct {
	real    *Root
	tops    map[string]*overlayNode // the roots, by the volume, folded; of a system without volumes by ""
	scratch string                  // the directory of contents, made with the first of them
	files   int                     // how many contents were made
	inodes  uint64                  // how many objects were made
	// linked are the files with several names, by device and inode: what is changed by one name shows by all.
	linked map[[2]uint64]*overlayNode
}

// overlayNode is an object of an overlay.
type overlayNode struct {
	meta     Meta
	realPath string                  // the resolved path of the real object, with all that is in it; empty: there is none
	content  string                  // the file of the content, where that differs from the real one
	changed  map[string]overlayEntry // the names of a directory that differ, by the names folded
	reowned  bool                    // mode or owner may differ from the real ones
}

// overlayEntry is what a name of a directory stands for.
type overlayEntry struct {
	name string       // as it is written
	node *overlayNode // nil: removed
}

// checkMode returns why an ordinary user could not do what the bits of a mode stand for. It says nothing about an object
// that is as the real one, of which the real file system is asked.
func (n *overlayNode) checkMode(bits uint32) error {
	uid, gid := agentIDs()
	granted := n.meta.Mode
	switch {
	case uid == 0 || n.realPath != "" && !n.reowned:
		return nil
	case uid == n.meta.UID:
		granted >>= 6
	case gid == n.meta.GID:
		granted >>= 3
	}
	if granted&bits != bits {
		return syscall.EACCES
	}
	return nil
}

// The bits of a mode, for checkMode.
const mayRead, mayWrite, maySearch = 4, 2, 1

// Overlay returns a root on which changes are made beside the files of r, and not to them: whoever uses it finds them
// made. It predicts what a kernel refuses, as far as that is known beforehand: rights, owners, other file systems; not
// a full disk. Contents are kept below the directory scratch, which is made when it is needed and removed by Close;
// close the overlay before r. Unlike r it is for one goroutine at a time.
func (r *Root) Overlay(scratch string) (*Root, error) {
	o := &overlay{real: r, scratch: scratch, tops: map[string]*overlayNode{}}
	if _, err := o.top(o.volume("/")); err != nil {
		return nil, err
	}
	return &Root{fs: o}, nil
}

// volume returns the volume of a path; a tree that is not the host has none, as the real one.
func (o *overlay) volume(path string) string {
	if !o.isHost() {
		return ""
	}
	return filepath.VolumeName(withVolume(path))
}

// rootOf returns the root of a volume.
func rootOf(volume string) string { return volume + string(filepath.Separator) }

// top returns the root of a volume as a directory.
func (o *overlay) top(volume string) (*overlayNode, error) {
	if known := o.tops[fold(volume)]; known != nil {
		return known, nil
	}
	root, err := o.real.Follow(rootOf(volume))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	meta, err := root.Capture()
	if err != nil {
		return nil, err
	}
	top := &overlayNode{meta: meta, realPath: rootOf(volume)}
	o.tops[fold(volume)] = top
	return top, nil
}

func (o *overlay) isHost() bool { return o.real.fs.isHost() }

func (o *overlay) identify(string) (Meta, error) {
	return Meta{}, fault.Unsupported("the identity of a path in an overlay")
}

// syncAll has nothing to do: nothing of an overlay lasts.
func (o *overlay) syncAll() error { return nil }

func (o *overlay) close() error {
	if o.files == 0 {
		return nil
	}
	return os.RemoveAll(o.scratch)
}

// child returns the object that has a name in a directory.
func (o *overlay) child(dir *overlayNode, name string) (*overlayNode, error) {
	if name == "." {
		return dir, nil
	}
	if dir.meta.Kind != Directory {
		return nil, syscall.ENOTDIR
	}
	if err := dir.checkMode(maySearch); err != nil {
		return nil, err
	}
	if dir.realPath != "" {
		name = longName(dir.realPath, name)
	}
	if known, ok := dir.changed[fold(name)]; ok {
		if known.node == nil {
			return nil, syscall.ENOENT
		}
		return known.node, nil
	}
	if dir.realPath == "" {
		return nil, syscall.ENOENT
	}
	at, err := o.real.Exact(appendName(dir.realPath, text.EscapePath(name)))
	if err != nil {
		return nil, err
	}
	defer at.Close()
	meta, err := at.Capture()
	switch {
	case err != nil:
		return nil, err
	case meta.Kind == Absent:
		return nil, syscall.ENOENT
	case meta.Kind == File && meta.Links > 1:
		return o.shared(&overlayNode{meta: meta, realPath: at.Path}), nil
	}
	return &overlayNode{meta: meta, realPath: at.Path}, nil
}

// shared returns the one node that all names of a file stand for.
func (o *overlay) shared(node *overlayNode) *overlayNode {
	key := [2]uint64{node.meta.Dev, node.meta.Ino}
	if known := o.linked[key]; known != nil {
		return known
	}
	if o.linked == nil {
		o.linked = map[[2]uint64]*overlayNode{}
	}
	o.linked[key] = node
	return node
}

// maxCounted bounds how deep below a directory that is removed the names of files are counted.
const maxCounted = 64

// countUnlink lowers the number of names of what is at a name, and of all that is below it, as far as that can be seen.
func (o *overlay) countUnlink(dir *overlayNode, name string) { o.countUnlinkBelow(dir, name, 0) }

func (o *overlay) countUnlinkBelow(dir *overlayNode, name string, depth int) {
	node, err := o.child(dir, name)
	if err != nil {
		return
	}
	if node.meta.Kind != Directory {
		node.meta.Links--
		return
	}
	if depth == maxCounted {
		return
	}
	_ = o.each(node, func(name string) error {
		o.countUnlinkBelow(node, name, depth+1)
		return nil
	})
}

// set changes what a name of the directory stands for; nil for nothing.
func (n *overlayNode) set(name string, child *overlayNode) {
	if n.changed[fold(name)].node != child || child == nil {
		n.meta.Mtime = now()
	}
	delete(n.changed, fold(name)) // the name is as it is written now
	n.keep(name, child)
}

// keep stores a child that is about to be changed itself, so that child returns the same one again.
func (n *overlayNode) keep(name string, child *overlayNode) {
	if n.changed == nil {
		n.changed = map[string]overlayEntry{}
	}
	if child == n { // "."
		return
	}
	if known, ok := n.changed[fold(name)]; ok {
		name = known.name
	}
	n.changed[fold(name)] = overlayEntry{name, child}
}

func now() Time {
	t := time.Now()
	return Time{t.Unix(), uint32(t.Nanosecond())}
}

func (o *overlay) resolve(path string, links follow) (*At, error) {
	volume := o.volume(path)
	top, err := o.top(volume)
	if err != nil {
		return nil, err
	}
	dirs, names := []*overlayNode{top}, []string{}
	rest, followed := Elements(path), 0
	for len(rest) > 0 {
		name, last := rest[0], len(rest) == 1
		rest = rest[1:]
		dir := dirs[len(dirs)-1]
		if name == ".." {
			dirs, names = dirs[:max(len(dirs)-1, 1)], names[:max(len(names)-1, 0)]
			continue
		}
		if last && links != followAll {
			return o.at(volume, dirs, append(names, name))
		}
		node, err := o.child(dir, name)
		switch {
		case last && errors.Is(err, fs.ErrNotExist):
			return o.at(volume, dirs, append(names, name))
		case err != nil:
			return nil, err
		case node.meta.Kind == Symlink && links == followNone:
			return nil, fault.Wrapf(fault.ErrChanged, "the directory %s has become a link", text.EscapePath(name))
		case node.meta.Kind == Symlink:
			if followed++; followed > maxLinks {
				return nil, syscall.ELOOP
			}
			if err := o.checkLink(dir, node, name); err != nil {
				return nil, err
			}
			if IsAbs(node.meta.Target) {
				volume = o.volume(node.meta.Target)
				if top, err = o.top(volume); err != nil {
					return nil, err
				}
				dirs, names = []*overlayNode{top}, names[:0]
			}
			rest = append(Elements(node.meta.Target), rest...)
		case last:
			return o.at(volume, dirs, append(names, name))
		case node.meta.Kind != Directory:
			return nil, syscall.ENOTDIR
		default:
			dir.keep(name, node)
			dirs, names = append(dirs, node), append(names, name)
		}
	}
	if len(names) == 0 {
		return o.at(volume, dirs, []string{"."})
	}
	return o.at(volume, dirs[:len(dirs)-1], names)
}

// maxLinks is how many links one path may lead through: the kernel's own number.
const maxLinks = 40

// maxName is the kernel's NAME_MAX.
const maxName = 255

// at returns the entry of the last of names, in the last of dirs; dirs begins with the root of the volume and names below it.
func (o *overlay) at(volume string, dirs []*overlayNode, names []string) (*At, error) {
	name := names[len(names)-1]
	if len(name) > maxName {
		return nil, syscall.ENAMETOOLONG
	}
	dir := dirs[len(dirs)-1]
	if dir.meta.Kind != Directory {
		return nil, syscall.ENOTDIR
	}
	at := &At{Path: rootOf(volume), Name: name, Public: modesTellRights, dir: &overlayDir{o, dir}}
	for i, parent := range names[:len(names)-1] {
		at.Path = appendName(at.Path, text.EscapePath(parent))
		at.Public = at.Public && dirs[i+1].meta.Mode&0o001 != 0
	}
	if name != "." {
		at.Path = appendName(at.Path, text.EscapePath(name))
	}
	return at, nil
}

// checkLink returns why a link is not followed. Of a real link the real file system says it.
func (o *overlay) checkLink(dir, link *overlayNode, name string) error {
	if link.realPath != "" {
		at, err := o.real.Exact(link.realPath)
		if err != nil {
			return err
		}
		defer at.Close()
		return at.dir.checkLink(at.Name)
	}
	others := modesTellRights && dir.meta.Mode&0o022 != 0 && dir.meta.Mode&0o1000 == 0
	if o.isHost() && (others || modesTellRights && !TrustedUser(dir.meta.UID)) {
		return fault.Refuse("the link %s is not followed: others can write to the directory that it is in", text.EscapePath(name))
	}
	return nil
}

// describe returns the state of an object. Whoever has its content open may have changed its size.
func (o *overlay) describe(node *overlayNode) (Meta, error) {
	meta := node.meta
	meta.Xattrs = maps.Clone(meta.Xattrs)
	if node.content == "" {
		return meta, nil
	}
	info, err := os.Stat(node.content)
	if err != nil {
		return Meta{}, fault.Cause(err)
	}
	meta.Size = info.Size()
	return meta, nil
}

// each calls f with each name in a directory, in no order, whether or not the agent may read it.
func (o *overlay) each(dir *overlayNode, f func(name string) error) error {
	changed := maps.Clone(dir.changed) // f may change it
	if dir.realPath != "" {
		err := o.eachReal(dir.realPath, func(name string) error {
			if _, is := changed[fold(name)]; is {
				return nil
			}
			return f(name)
		})
		if err != nil {
			return err
		}
	}
	for _, entry := range changed {
		if entry.node == nil {
			continue
		}
		if err := f(entry.name); err != nil {
			return err
		}
	}
	return nil
}

func (o *overlay) eachReal(path string, f func(name string) error) error {
	at, err := o.real.Exact(path)
	if err != nil {
		return err
	}
	defer at.Close()
	dir, err := at.OpenDir()
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Each(f)
}

// copyUp gives a real file a content in the scratch directory, which can be written to.
func (o *overlay) copyUp(node *overlayNode) error {
	real, err := o.openReal(node)
	if err != nil {
		return err
	}
	defer real.Close()
	content, err := o.newContent()
	if err != nil {
		return err
	}
	err = CopyFitting(context.Background(), content, real)
	if err = errors.Join(err, fault.Cause(content.Close())); err != nil {
		return err
	}
	node.content = content.Name()
	return nil
}

func (o *overlay) openReal(node *overlayNode) (*os.File, error) {
	at, err := o.real.Exact(node.realPath)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	at.checked = &Found{Meta: node.meta}
	return at.Open()
}

// newContent makes a file for a content. It is readable by the agent alone.
func (o *overlay) newContent() (*os.File, error) {
	if o.files == 0 {
		if err := os.MkdirAll(filepath.Dir(o.scratch), 0o700); err != nil {
			return nil, fault.Cause(err)
		}
		if err := os.Mkdir(o.scratch, 0o700); err != nil {
			return nil, fault.Cause(err)
		}
	}
	o.files++
	path := filepath.Join(o.scratch, strconv.Itoa(o.files))
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	return file, fault.Cause(err)
}
