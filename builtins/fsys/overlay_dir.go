package fsys

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// overlayDir is an open directory of an overlay.
type overlayDir struct {
	overlay *overlay
	node    *overlayNode
}

func (d *overlayDir) close() error { return nil }

func (d *overlayDir) dup() (directory, error) { return d, nil }

// child returns the object that has a name in the directory.
func (d *overlayDir) child(name string) (*overlayNode, error) { return d.overlay.child(d.node, name) }

// checkFree returns why a name cannot be given to something new.
func (d *overlayDir) checkFree(name string) error {
	switch _, err := d.child(name); {
	case err == nil:
		return syscall.EEXIST
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	return d.checkNames(nil)
}

// checkNames returns why no name can be given in the directory; or why the one of an object cannot be taken away: the kernel
// asks for the flags of chattr(1) first.
func (d *overlayDir) checkNames(taken *overlayNode) error {
	if d.node.meta.Immutable || taken != nil && (d.node.meta.AppendOnly || taken.meta.locked()) {
		return syscall.EPERM
	}
	return d.checkWrite(".")
}

func (d *overlayDir) each(f func(name string) error) error {
	if err := d.node.checkMode(mayRead); err != nil {
		return err
	}
	return d.overlay.each(d.node, f)
}

func (d *overlayDir) syncAll() error { return nil }

func (d *overlayDir) stat(name string) (Meta, error) {
	node, err := d.child(name)
	if err != nil {
		return Meta{}, err
	}
	return d.overlay.describe(node)
}

func (d *overlayDir) capture(name string) (Meta, error) { return d.stat(name) }

func (d *overlayDir) checkLink(name string) error {
	node, err := d.child(name)
	if err != nil {
		return err
	}
	return d.overlay.checkLink(d.node, node, name)
}

func (d *overlayDir) checkWrite(name string) error {
	node, err := d.child(name)
	if err != nil {
		return err
	}
	err = d.askReal(node, func(at *At) error { return at.dir.checkWrite(at.Name) })
	if node.realPath != "" && !node.reowned || errors.Is(err, syscall.EROFS) {
		return err
	}
	if node.meta.Kind == Directory {
		return node.checkMode(mayWrite | maySearch)
	}
	return node.checkMode(mayWrite)
}

// askReal calls f with the real entry of an object, if it has one.
func (d *overlayDir) askReal(node *overlayNode, f func(*At) error) error {
	if node.realPath == "" {
		return nil
	}
	at, err := d.overlay.real.Exact(node.realPath)
	if err != nil {
		return err
	}
	defer at.Close()
	return f(at)
}

func (d *overlayDir) checkMounts(name string) error {
	node, err := d.child(name)
	if err != nil {
		return err
	}
	return d.askReal(node, (*At).NoMountsBelow)
}

func (d *overlayDir) sameMount(directory) (bool, error) {
	return false, errOverlayMounts
}

func (d *overlayDir) mountNumber(string) (uint64, error) { return 0, errOverlayMounts }

func (d *overlayDir) mount(string) (Mount, error) { return Mount{}, errOverlayMounts }

var errOverlayMounts = fault.Unsupported("the mounts of an overlay")

// pseudo asks the real directory. One that exists in the overlay alone was not made below /proc, which refuses it.
func (d *overlayDir) pseudo() (bool, error) {
	if d.node.realPath == "" {
		return false, nil
	}
	at, err := d.overlay.real.Exact(appendName(d.node.realPath, "any")) // whose directory is this one
	if err != nil {
		return false, err
	}
	defer at.Close()
	return at.Pseudo()
}

func (d *overlayDir) copyCost(name string) (int64, error) {
	node, err := d.child(name)
	if err != nil || node.content != "" || node.realPath == "" {
		return 0, err
	}
	file, err := d.overlay.openReal(node)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	if sharesBlocks(file, filepath.Dir(filepath.Dir(d.overlay.scratch))) {
		return 0, nil
	}
	return node.meta.Size, nil
}

func (d *overlayDir) pretended(name string) bool {
	node, err := d.child(name)
	return err == nil && node.content != ""
}

// openAppend opens a copy for writing anywhere: that of a file with the flag a grows at its end alone as its opener asks
// for it.
func (d *overlayDir) openAppend(name string) (*os.File, error) {
	node, err := d.child(name)
	if err != nil {
		return nil, err
	}
	if node.meta.Immutable {
		return nil, os.ErrPermission
	}
	if node.content == "" {
		if err := d.overlay.copyUp(node); err != nil {
			return nil, err
		}
		d.node.keep(name, node)
	}
	file, err := os.OpenFile(node.content, os.O_RDWR|os.O_APPEND, 0)
	return file, fault.Cause(err)
}

func (d *overlayDir) unlock(string) error { return fault.Unsupported("flags of an overlay") }

func (d *overlayDir) openLeased(name string) (*os.File, error) { return d.open(name, true) }

func (d *overlayDir) openSink(string, Kind) (*os.File, error) {
	return nil, fault.Unsupported("writing to a device or to the kernel is not pretended")
}

func (d *overlayDir) stableInodes() (bool, error) { return false, nil }

// open opens the content of a file. One that is to be written gets a content in the scratch directory first.
func (d *overlayDir) open(name string, write bool) (*os.File, error) {
	node, err := d.child(name)
	if err != nil {
		return nil, err
	}
	if err := node.checkMode(mayRead); err != nil {
		return nil, err
	}
	flags := os.O_RDONLY
	if write {
		flags = os.O_RDWR
		if err := d.checkWrite(name); err != nil {
			return nil, err
		}
	}
	if node.content == "" {
		if !write {
			return d.overlay.openReal(node)
		}
		if err := d.overlay.copyUp(node); err != nil {
			return nil, err
		}
		d.node.keep(name, node)
	}
	file, err := os.OpenFile(node.content, flags, 0)
	return file, fault.Cause(err)
}

func (d *overlayDir) openDir(name string) (directory, error) {
	node, err := d.child(name)
	switch {
	case err != nil:
		return nil, err
	case node.meta.Kind != Directory:
		return nil, syscall.ENOTDIR
	}
	dir := &overlayDir{d.overlay, node}
	if err := dir.each(func(string) error { return errEnough }); err != nil && err != errEnough { // whether it can be read
		return nil, err
	}
	d.node.keep(name, node) // something may be made in it
	return dir, nil
}

func (d *overlayDir) create(name string) (*os.File, error) {
	if err := d.checkFree(name); err != nil {
		return nil, err
	}
	content, err := d.overlay.newContent()
	if err != nil {
		return nil, err
	}
	d.node.set(name, &overlayNode{meta: d.newMeta(File, 0o600), content: content.Name()})
	return content, nil
}

// closeNew closes the file alone: nothing of an overlay lasts.
func (d *overlayDir) closeNew(file *os.File) error { return fault.Cause(file.Close()) }

func (d *overlayDir) make(name string, meta Meta) error {
	if err := d.checkFree(name); err != nil {
		return err
	}
	made := d.newMeta(meta.Kind, 0o600)
	switch meta.Kind {
	case Directory:
		if acl := d.node.meta.Xattrs[defaultACL]; acl != nil {
			made.Xattrs = map[string][]byte{defaultACL: acl}
		}
		made.Mode = 0o700 | d.node.meta.Mode&0o2000
	case Symlink:
		if len(meta.Target) > maxPath {
			return syscall.ENAMETOOLONG
		}
		made.Mode, made.Target, made.Size = 0o777, meta.Target, int64(len(meta.Target))
	case BlockDevice, CharDevice:
		if uid, _ := agentIDs(); uid != 0 {
			return syscall.EPERM
		}
		made.Rdev = meta.Rdev
	}
	d.node.set(name, &overlayNode{meta: made})
	return nil
}

func (d *overlayDir) begin(name string, meta Meta, aside bool) (making, error) {
	return beginNamed(d, name, meta, aside)
}

// newMeta returns the state of a new object in the directory.
func (d *overlayDir) newMeta(kind Kind, mode uint32) Meta {
	d.overlay.inodes++
	uid, gid := agentIDs()
	if d.node.meta.Mode&0o2000 != 0 { // what is made in a setgid directory is of its group
		gid = d.node.meta.GID
	}
	return Meta{
		Kind: kind, Mode: mode, UID: uid, GID: gid, Mtime: now(),
		Dev: d.node.meta.Dev, Ino: ^d.overlay.inodes, Links: 1,
	}
}

// change changes the state of an object. On an error it stays as it was.
func (d *overlayDir) change(name string, change func(*Meta) error) error {
	node, err := d.child(name)
	if err != nil {
		return err
	}
	meta := node.meta
	if err := change(&meta); err != nil {
		return err
	}
	node.meta, node.reowned = meta, true
	d.node.keep(name, node)
	return nil
}

func (d *overlayDir) setAttr(name string, kind Kind, attr Attr) error {
	if err := d.checkWrite(name); errors.Is(err, syscall.EROFS) {
		return err
	}
	return d.change(name, func(m *Meta) error {
		if m.Kind != kind {
			return fault.ErrChanged
		}
		if uid, _ := agentIDs(); m.locked() || uid != 0 && m.UID != uid {
			return syscall.EPERM
		}
		return m.setAttr(attr)
	})
}

func (d *overlayDir) apply(name string, want Meta) error {
	return d.change(name, func(m *Meta) error { return m.setMeta(want) })
}

func (d *overlayDir) setAttrFile(name string, _ *os.File, attr Attr) error {
	return d.setAttr(name, File, attr)
}

func (d *overlayDir) applyFile(name string, _ *os.File, want Meta) error { return d.apply(name, want) }

func (d *overlayDir) copyAttrs(name string, _ *os.File, old Meta, attr Attr) error {
	return d.change(name, func(m *Meta) error { return m.copyAttrs(old, attr, d.node.meta.Xattrs[defaultACL]) })
}

// setAttr sets attributes as far as the kernel would for an object of the agent's own.
func (m *Meta) setAttr(attr Attr) error {
	uid, gid := valueOr(attr.UID, m.UID), valueOr(attr.GID, m.GID)
	if uid != m.UID || gid != m.GID {
		if err := checkChown(m, uid, gid); err != nil {
			return err
		}
		if m.Kind == File && m.Mode&0o111 != 0 && !attr.KeepSpecial { // a new owner drops setuid and setgid
			m.Mode &^= 0o6000
		}
		m.UID, m.GID = uid, gid
	}
	m.Mode = valueOr(attr.Mode, m.Mode)
	if attr.Mtime != nil {
		m.Mtime = *attr.Mtime
	}
	if attr.Copied != nil {
		m.Xattrs = withCopied(m.Xattrs, attr.Copied)
	}
	return nil
}

// setMeta takes over all of want that can be restored.
func (m *Meta) setMeta(want Meta) error {
	if m.Kind != want.Kind {
		return fault.Wrapf(fault.ErrChanged, "is a %s, and was a %s", m.Kind, want.Kind)
	}
	if err := m.setAttr(Attr{Mode: &want.Mode, UID: &want.UID, GID: &want.GID}); err != nil {
		return err
	}
	m.Xattrs, m.Mtime = want.Xattrs, want.Mtime
	return nil
}

// copyAttrs is what copyAttrs of a real file does to its state.
func (m *Meta) copyAttrs(old Meta, attr Attr, acl []byte) error {
	want := Attr{Mode: new(newFileMode(acl, attr)), UID: attr.UID, GID: attr.GID}
	if old.Kind == File {
		m.Xattrs = keptXattrs(old.Xattrs)
		want = Attr{Mode: &old.Mode, UID: new(valueOr(attr.UID, old.UID)), GID: new(valueOr(attr.GID, old.GID))}
	}
	if attr.Mode != nil {
		want.Mode = attr.Mode
	}
	return m.setAttr(want)
}

func valueOr(value *uint32, otherwise uint32) uint32 {
	if value != nil {
		return *value
	}
	return otherwise
}

// keptXattrs returns the extended attributes that stay true when the content changes.
func keptXattrs(all map[string][]byte) map[string][]byte {
	kept := map[string][]byte{}
	for name, value := range all {
		switch name {
		case "security.capability", "security.ima", "security.evm":
		default:
			kept[name] = value
		}
	}
	return kept
}

func (d *overlayDir) remove(name string, isDir bool) error {
	node, err := d.child(name)
	if err != nil {
		return err
	}
	if err := d.checkNames(node); err != nil {
		return err
	}
	switch {
	case node.meta.Kind == Directory && !isDir:
		return syscall.EISDIR
	case node.meta.Kind != Directory && isDir:
		return syscall.ENOTDIR
	case isDir:
		if err := d.overlay.each(node, func(string) error { return syscall.ENOTEMPTY }); err != nil {
			return err
		}
	}
	d.unlink(name)
	return nil
}

func (d *overlayDir) removeAll(_ context.Context, name string, _ func(dir Meta) bool) error {
	node, err := d.child(name)
	if err != nil {
		return err
	}
	if err := d.checkNames(node); err != nil {
		return err
	}
	d.unlink(name)
	return nil
}

// unlink removes a name with all that is below it.
func (d *overlayDir) unlink(name string) {
	d.overlay.countUnlink(d.node, name)
	d.node.set(name, nil)
}

func (d *overlayDir) rename(name string, to directory, toName string, replace bool) error {
	target, ok := to.(*overlayDir)
	if !ok || target.overlay != d.overlay {
		return errMixed
	}
	node, err := d.child(name)
	if err != nil {
		return err
	}
	there, err := target.child(toName)
	switch {
	case err == nil && !replace:
		return syscall.EEXIST
	case err == nil && there.meta.Same(node.meta):
		return nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	case d.node.meta.Dev != target.node.meta.Dev:
		return syscall.EXDEV
	}
	if err := cmp.Or(d.checkNames(node), target.checkNames(there)); err != nil {
		return err
	}
	target.overlay.countUnlink(target.node, toName)
	d.node.set(name, nil)
	target.node.set(toName, node)
	return nil
}

func (d *overlayDir) link(string, directory, string) error {
	return fault.Unsupported("another name for a file in an overlay")
}

// sync has nothing to do: nothing of an overlay lasts.
func (d *overlayDir) sync(string) error { return nil }

func (d *overlayDir) sweep() (int, error) {
	return 0, fault.Unsupported("looking for left temporary files in an overlay")
}
