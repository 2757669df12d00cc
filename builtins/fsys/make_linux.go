package fsys

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// made is a making by descriptors. Where others may exchange names of the directory:
//
//	dir/TEMP          the agent's own directory, mode 0700: nobody else can put another object into it
//	dir/TEMP/name     made, opened, and given its attributes by the descriptor
//	dir/name          renamed to, and held against the descriptor once more
//
// What is in TEMP inherits of it what TEMP has inherited of dir: group, default ACL, label, flags and project. A crash may
// leave TEMP.
type made struct {
	descriptor
	root       *realRoot
	kind       Kind
	dir, in    handle // in is dir, or TEMP
	name, temp string // temp is its name in in
	own        string // the name of TEMP; empty: there is none
	watched    bool   // others may exchange names of dir
	lent       bool   // the file system gives new objects another owner than the agent
	unplaced   bool   // it is there, under the name temp
}

// beginAttempts is how often TEMP is made again that a rollback of another request has taken for a dead agent's.
const beginAttempts = 20

func (d *realDir) begin(name string, meta Meta, aside bool) (making, error) {
	in, err := d.stat(".")
	if err != nil {
		return nil, err
	}
	for again := beginAttempts; ; again-- {
		m := &made{descriptor: descriptor{fd: -1}, root: d.root, kind: meta.Kind, dir: d.handle, in: d.handle, name: name, temp: name}
		if aside {
			m.temp = tempName()
		}
		m.watched = in.exchangeable()
		if err = m.make(meta); err == nil {
			return m, nil
		}
		if err = errors.Join(err, m.end()); !m.watched || !errors.Is(err, fs.ErrNotExist) || again == 0 {
			return nil, err
		}
	}
}

// exchangeable reports whether others may give what the agent makes in a directory another name, and its name to another
// object. With the sticky bit alone its owner may.
func (m Meta) exchangeable() bool {
	if m.Mode&unix.S_ISVTX != 0 {
		m.Mode &^= 0o022
	}
	return !m.AppendOnly && m.foreign()
}

func (m *made) make(meta Meta) error {
	var lender Meta
	if m.watched {
		switch _, err := statAt(m.dir, m.name); {
		case err == nil:
			return unix.EEXIST
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
		own, err := m.enclose()
		if err != nil {
			return err
		}
		if m.lent {
			lender = own
		}
	}
	if err := makeAt(m.in, m.temp, meta); err != nil {
		if m.own != "" && err == unix.EEXIST { // in a directory that was just made
			err = errChangedName
		}
		return err
	}
	m.unplaced = true
	o, err := openDescriptor(m.in, m.temp)
	if err != nil {
		return err
	}
	m.descriptor = o
	if m.lent {
		return m.checkLent(lender)
	}
	return nil
}

// enclose makes TEMP. On a file system that gives new objects an owner of its own choice it is of no use, and m.lent is set.
func (m *made) enclose() (own Meta, err error) {
	temp := tempName()
	if err := mkdirAt(m.dir, temp); err != nil {
		return Meta{}, err
	}
	in, err := openDir(m.dir, temp)
	switch {
	case err == unix.ENOTDIR || err == unix.ELOOP:
		return Meta{}, errChangedName
	case err == nil:
		if own, err = (descriptor{fd: in}).stat(); err != nil || own.foreign() {
			err = errors.Join(err, unix.Close(in))
			m.lent = true
		}
	}
	if err != nil || m.lent {
		return own, errors.Join(err, ignoreAbsent(unlinkAt(m.dir, temp, true)))
	}
	m.in, m.own, m.temp = in, temp, m.name
	return own, nil
}

// checkLent returns why an object in a directory where names may be exchanged is not the one that was made. It has the owner
// that TEMP had, and is no older and empty; and it does not get another owner.
func (m *made) checkLent(own Meta) error {
	is, err := m.stat()
	if err != nil {
		return err
	}
	empty := true
	if is.Kind == Directory {
		err := eachName(m.fd, func(string) error { empty = false; return errEnough })
		if err != nil && err != errEnough {
			return err
		}
	}
	older := is.Born != Time{} && own.Born != Time{} && is.Born.Time().Before(own.Born.Time())
	if is.Kind != m.kind || is.UID != own.UID || !is.foreign() || older || !empty {
		m.unplaced = false // it is not ours to remove
		return errChangedName
	}
	return nil
}

func (m *made) setAttr(attr Attr) error {
	now, err := m.stat()
	if err == nil {
		err = m.checkOwner(now, valueOr(attr.UID, now.UID), valueOr(attr.GID, now.GID))
	}
	if err != nil {
		return err
	}
	return m.descriptor.setAttr(now, attr)
}

func (m *made) apply(meta Meta) error {
	now, err := m.stat()
	if err == nil {
		err = m.checkOwner(now, meta.UID, meta.GID)
	}
	if err != nil {
		return err
	}
	meta.of = nil
	return m.descriptor.apply(meta)
}

func (m *made) checkOwner(now Meta, uid, gid uint32) error {
	if m.lent && (now.UID != uid || now.GID != gid) {
		return fault.Wrapf(os.ErrPermission, "the file system gives what is made there the owner %d:%d", now.UID, now.GID)
	}
	return nil
}

func (m *made) openDir() (directory, error) {
	h, err := openDir(m.fd, ".")
	if err != nil {
		return nil, err
	}
	return &realDir{root: m.root, handle: h}, nil
}

func (m *made) place() error {
	if m.in != m.dir || m.temp != m.name {
		if err := renameAt(m.in, m.temp, m.dir, m.name, false); err != nil {
			return err
		}
	}
	m.unplaced = false
	if !m.watched {
		return nil
	}
	is, err := m.stat()
	if err != nil {
		return err
	}
	if have, err := statAt(m.dir, m.name); err != nil || !have.Same(is) {
		return errors.Join(errChangedName, ignoreAbsent(err))
	}
	return nil
}

func (m *made) end() (err error) {
	if m.unplaced {
		err = ignoreAbsent(unlinkAt(m.in, m.temp, m.kind == Directory))
	}
	if m.fd >= 0 {
		m.close()
	}
	if m.own != "" {
		_ = unlinkAt(m.dir, m.own, true) // where others have moved it, it stays, and is empty
		err = errors.Join(err, unix.Close(m.in))
	}
	return err
}
