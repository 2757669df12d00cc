package fsys

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// realRoot is the file system below a directory of the agent's own.
type realRoot struct {
	dir    string
	host   bool // dir is the agent's own root
	handle handle
}

func (r *realRoot) isHost() bool { return r.host }

func (r *realRoot) close() error { return closeHandle(r.handle) }

func (r *realRoot) syncAll() error { return syncAll(r.handle) }

// realDir is an open directory of a realRoot.
type realDir struct {
	root   *realRoot
	handle handle
	pin    pin
}

func (d *realDir) close() error { return errors.Join(d.pin.close(), closeHandle(d.handle)) }

func (d *realDir) dup() (directory, error) {
	h, err := dupHandle(d.handle)
	if err != nil {
		return nil, err
	}
	return &realDir{root: d.root, handle: h}, nil
}

func (d *realDir) each(f func(name string) error) error { return eachName(d.handle, f) }

func (d *realDir) stat(name string) (Meta, error) { return statAt(d.handle, name) }

func (d *realDir) capture(name string) (Meta, error) { return captureAt(d.handle, name) }

func (d *realDir) checkLink(name string) error {
	_, _, err := readLink(d.root, d.handle, name)
	return err
}

func (d *realDir) checkWrite(name string) error { return checkWriteAt(d.handle, name) }

func (d *realDir) checkMounts(name string) error { return noMountsBelow(d.handle, name) }

func (d *realDir) sameMount(other directory) (bool, error) {
	o, err := d.peer(other)
	if err != nil {
		return false, err
	}
	return sameMount(d.handle, o.handle)
}

// peer is another directory that the kernel can name together with this one.
func (d *realDir) peer(other directory) (*realDir, error) {
	if o, ok := other.(*realDir); ok {
		return o, nil
	}
	return nil, errMixed
}

var errMixed = fault.Unsupported("between an overlay and another file system")

func (d *realDir) pseudo() (bool, error) { return pseudo(d.handle) }

func (d *realDir) stableInodes() (bool, error) { return stableInodes(d.handle) }

func (d *realDir) open(name string, write bool) (*os.File, error) {
	file, err := openFile(d.handle, name, write)
	if err != nil {
		return nil, err
	}
	if err := checkRegular(file); err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}

func (d *realDir) copyCost(string) (int64, error) {
	return 0, fault.Unsupported("the cost of a copy that is not pretended")
}

func (d *realDir) pretended(string) bool { return false }

func (d *realDir) openAppend(name string) (*os.File, error) {
	file, err := openAppend(d.handle, name)
	if err != nil {
		return nil, err
	}
	if err := checkRegular(file); err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}

func (d *realDir) unlock(name string) error { return unlockAt(d.handle, name) }

func (d *realDir) openLeased(name string) (*os.File, error) { return openLeased(d.handle, name) }

func (d *realDir) openSink(name string, kind Kind) (*os.File, error) {
	return openSink(d.handle, name, kind)
}

func (d *realDir) openDir(name string) (directory, error) {
	h, err := openDir(d.handle, name)
	if err != nil {
		return nil, err
	}
	return &realDir{root: d.root, handle: h}, nil
}

func (d *realDir) create(name string) (*os.File, error) {
	file, err := createAt(d.handle, name)
	if err != nil {
		return nil, err
	}
	if err := d.pin.holds(d.handle, file); err != nil {
		return nil, errors.Join(err, file.Close(), unlinkAt(d.handle, name, false))
	}
	return file, nil
}

func (d *realDir) closeNew(file *os.File) error { return syncAndClose(file) }

// syncAndClose makes a file durable and closes it. A sync that failed is not tried again: the kernel would call the
// second one a success, with the data lost.
func syncAndClose(file *os.File) error {
	err := fault.Cause(file.Sync())
	return errors.Join(err, fault.Cause(file.Close()))
}

func (d *realDir) make(name string, meta Meta) error {
	if err := makeAt(d.handle, name, meta); err != nil {
		return err
	}
	if err := d.pin.leads(d.handle); err != nil {
		return errors.Join(err, unlinkAt(d.handle, name, meta.Kind == Directory))
	}
	return nil
}

func (d *realDir) setAttr(name string, kind Kind, attr Attr) error {
	return setAttr(d.handle, name, kind, attr)
}

func (d *realDir) apply(name string, meta Meta) error { return applyAt(d.handle, name, meta) }

func (d *realDir) setAttrFile(name string, file *os.File, attr Attr) error {
	return setAttrFile(d.handle, name, file, attr)
}

func (d *realDir) applyFile(name string, file *os.File, meta Meta) error {
	return applyFile(d.handle, name, file, meta)
}

func (d *realDir) copyAttrs(_ string, file *os.File, old Meta, attr Attr) error {
	return copyAttrs(d.handle, file, old, attr)
}

func (d *realDir) remove(name string, isDir bool) error { return unlinkAt(d.handle, name, isDir) }

func (d *realDir) removeAll(ctx context.Context, name string, own func(dir Meta) bool) error {
	return removeTree(ctx, d.handle, name, own)
}

func (d *realDir) rename(name string, to directory, toName string, replace bool) error {
	target, err := d.peer(to)
	if err != nil {
		return err
	}
	return renameAt(d.handle, name, target.handle, toName, replace)
}

func (d *realDir) link(name string, to directory, toName string) error {
	target, err := d.peer(to)
	if err != nil {
		return err
	}
	return linkAt(d.handle, name, target.handle, toName)
}

func (d *realDir) syncAll() error { return syncAll(d.handle) }

func (d *realDir) sync(name string) error {
	if name == "." {
		return syncDir(d.handle)
	}
	meta, err := d.stat(name)
	if err != nil {
		return err
	}
	switch meta.Kind {
	case Directory:
		dir, err := openDir(d.handle, name)
		if err != nil {
			return err
		}
		return errors.Join(syncDir(dir), closeHandle(dir))
	case File:
		file, err := d.open(name, false)
		if errors.Is(err, syscall.EAGAIN) { // a lease of others, which any owner of a file can take
			return syncAll(d.handle)
		}
		if err != nil {
			return err
		}
		return syncAndClose(file)
	}
	return syncDir(d.handle) // a link or a special file lives in its inode, which goes with the directory
}

func (d *realDir) sweep() (int, error) {
	swept := 0
	var failed error // the first of them: there may be any number of such names
	err := d.each(func(name string) error {
		if !IsTemp(name) {
			return nil
		}
		removed, err := d.sweepFile(name)
		if err != nil && failed == nil {
			failed = fmt.Errorf("%s: %w", name, err)
		}
		if removed {
			swept++
		}
		return nil
	})
	return swept, errors.Join(err, failed)
}

// sweepFile removes a temporary file that nobody has locked.
func (d *realDir) sweepFile(name string) (removed bool, err error) {
	meta, err := d.stat(name)
	if err != nil || meta.Kind != File {
		return false, nil
	}
	return sweepTemp(d, name)
}
