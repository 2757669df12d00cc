package fsys

import (
	"encoding/binary"
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// bornTells: the time that an object was made distinguishes it from another one with its number.
const bornTells = true

const statMask = unix.STATX_BASIC_STATS | unix.STATX_BTIME

func statAt(dir handle, name string) (Meta, error) {
	var x unix.Statx_t
	if err := unix.Statx(dir, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, statMask, &x); err != nil {
		return Meta{}, err
	}
	meta := metaOf(&x)
	if meta.Kind == Symlink {
		target, err := readlinkat(dir, name)
		if err != nil {
			return Meta{}, err
		}
		meta.Target = target
	}
	return meta, nil
}

func statFile(file *os.File) (Meta, error) { return opened(file).stat() }

// changeTime returns when a file was changed last, its attributes and names included.
func changeTime(file *os.File) (Time, error) {
	var stat unix.Stat_t
	err := unix.Fstat(int(file.Fd()), &stat)
	return Time{int64(stat.Ctim.Sec), uint32(stat.Ctim.Nsec)}, err
}

func metaOf(x *unix.Statx_t) Meta {
	meta := Meta{
		Kind: kindOfMode(x.Mode), Mode: uint32(x.Mode) & 0o7777, UID: x.Uid, GID: x.Gid, Size: int64(x.Size),
		Mtime: Time{x.Mtime.Sec, x.Mtime.Nsec},
		Dev:   unix.Mkdev(x.Dev_major, x.Dev_minor), Ino: x.Ino, Links: x.Nlink,
		Mounted:    x.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0,
		AppendOnly: x.Attributes&unix.STATX_ATTR_APPEND != 0,
		Immutable:  x.Attributes&unix.STATX_ATTR_IMMUTABLE != 0,
	}
	if x.Mask&unix.STATX_BTIME != 0 {
		meta.Born = Time{x.Btime.Sec, x.Btime.Nsec}
	}
	if meta.Kind == BlockDevice || meta.Kind == CharDevice {
		meta.Rdev = unix.Mkdev(x.Rdev_major, x.Rdev_minor)
	}
	return meta
}

func kindOfMode(mode uint16) Kind {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return File
	case unix.S_IFDIR:
		return Directory
	case unix.S_IFLNK:
		return Symlink
	case unix.S_IFIFO:
		return Fifo
	case unix.S_IFSOCK:
		return Socket
	case unix.S_IFCHR:
		return CharDevice
	}
	return BlockDevice
}

// descriptor stands for an object, O_PATH or not, which is looked at and changed itself: never what it links to.
type descriptor struct {
	fd   int
	open bool // it is known not to be O_PATH, so that all calls take it, which cost less than those by its path
}

// opened is the descriptor of an open file.
func opened(file *os.File) descriptor { return descriptor{fd: int(file.Fd()), open: true} }

func openDescriptor(dir handle, name string) (descriptor, error) {
	fd, err := unix.Openat(dir, name, pathOnly, 0)
	return descriptor{fd: fd}, err
}

func (o descriptor) close() { _ = unix.Close(o.fd) }

// path returns a path of the object, for calls that take no O_PATH descriptor. The kernel goes straight to the object
// and follows nothing behind it, also where it is a link.
func (o descriptor) path() string { return "/proc/self/fd/" + strconv.Itoa(o.fd) }

func (o descriptor) stat() (Meta, error) {
	var x unix.Statx_t
	if err := unix.Statx(o.fd, "", unix.AT_EMPTY_PATH|unix.AT_NO_AUTOMOUNT, statMask, &x); err != nil {
		return Meta{}, err
	}
	return metaOf(&x), nil
}

func captureAt(dir handle, name string) (Meta, error) {
	o, err := openDescriptor(dir, name)
	if err != nil {
		return Meta{}, err
	}
	defer o.close()
	return o.capture()
}

func (o descriptor) capture() (Meta, error) {
	meta, err := o.stat()
	if err != nil {
		return Meta{}, err
	}
	if meta.Kind == Symlink {
		if meta.Target, err = readlinkat(o.fd, ""); err != nil {
			return Meta{}, err
		}
	}
	if meta.Xattrs, err = o.xattrs(); err != nil && !errors.Is(err, fault.ErrTooLarge) {
		return meta, err
	}
	if flags, ok := o.flags(meta.Kind); ok && flags != 0 {
		if meta.Xattrs == nil {
			meta.Xattrs = map[string][]byte{}
		}
		meta.Xattrs[inodeFlags] = binary.LittleEndian.AppendUint32(nil, flags)
	}
	return meta, err
}

func applyAt(dir handle, name string, meta Meta) error {
	o, err := openDescriptor(dir, name)
	if err != nil {
		return err
	}
	defer o.close()
	return o.apply(meta)
}

func applyFile(_ handle, _ string, file *os.File, meta Meta) error {
	return opened(file).apply(meta)
}

// apply sets owner, xattrs, mode and mtime in this order, since setting one may change a later one: a new owner drops
// setuid and file capabilities, and an ACL contains the group's bits of the mode. Only content changes mtime. Flags come
// last: one of them forbids all of it.
func (o descriptor) apply(meta Meta) error {
	now, err := o.stat()
	if err != nil {
		return err
	}
	if now.Kind != meta.Kind {
		return fault.Wrapf(fault.ErrChanged, "is a %s, and was a %s", now.Kind, meta.Kind)
	}
	if meta.of != nil && !(now.Same(*meta.of) && now.SameInode(*meta.of)) {
		return fault.ErrChanged
	}
	if now.locked() {
		if now, err = o.capture(); err != nil { // what has more attributes than are read is not as it was
			if !errors.Is(err, fault.ErrTooLarge) {
				return err
			}
		} else if sameAttributes(now, meta) {
			return nil
		}
		if err := o.setFlags(now.Kind, unlocked(now.Xattrs)); err != nil {
			return err
		}
	}
	if err := o.chown(now, meta.UID, meta.GID); err != nil {
		return err
	}
	if err := o.setXattrs(meta.Xattrs); err != nil {
		return err
	}
	if err := o.chmod(meta.Mode); err != nil {
		return err
	}
	if err := o.setMtime(now, &meta.Mtime); err != nil {
		return err
	}
	return o.setFlags(now.Kind, meta.Xattrs)
}

func (o descriptor) chown(now Meta, uid, gid uint32) error {
	if now.UID == uid && now.GID == gid {
		return nil
	}
	return unix.Fchownat(o.fd, "", int(uid), int(gid), unix.AT_EMPTY_PATH)
}

// chmod looks again at the mode that is there, since a change of owner or ACL may have changed it.
func (o descriptor) chmod(mode uint32) error {
	now, err := o.stat()
	if err != nil || now.Mode == mode || now.Kind == Symlink {
		return err
	}
	if o.open {
		err = unix.Fchmod(o.fd, mode)
	} else {
		err = unix.Chmod(o.path(), mode)
	}
	if err != nil {
		return err
	}
	// The kernel silently drops setgid where the caller is not in the group.
	if now, err = o.stat(); err == nil && now.Mode != mode {
		err = fault.Wrapf(os.ErrPermission, "the mode became %04o instead of %04o", now.Mode, mode)
	}
	return err
}

func setAttr(dir handle, name string, kind Kind, attr Attr) error {
	o, err := openDescriptor(dir, name)
	if err != nil {
		return err
	}
	defer o.close()
	now, err := o.stat()
	if err != nil {
		return err
	}
	if now.Kind != kind || attr.of != nil && !now.Same(*attr.of) {
		return fault.ErrChanged
	}
	return o.setAttr(now, attr)
}

func setAttrFile(_ handle, _ string, file *os.File, attr Attr) error {
	o := opened(file)
	now, err := o.stat()
	if err != nil {
		return err
	}
	return o.setAttr(now, attr)
}

func (o descriptor) setAttr(now Meta, attr Attr) error {
	uid, gid := valueOr(attr.UID, now.UID), valueOr(attr.GID, now.GID)
	keep := attr.KeepSpecial && now.Kind != Symlink && (now.UID != uid || now.GID != gid)
	var capability []byte
	if keep && attr.Copied == nil {
		capability = o.capability()
	}
	if err := o.chown(now, uid, gid); err != nil {
		return err
	}
	if len(capability) > 0 {
		if err := unix.Setxattr(o.path(), capabilityXattr, capability, 0); err != nil {
			return fault.On("attribute "+capabilityXattr, err)
		}
	}
	if err := o.setCopied(attr.Copied); err != nil {
		return err
	}
	switch {
	case attr.Mode != nil:
		if err := o.chmod(*attr.Mode); err != nil {
			return err
		}
	case keep && now.Mode&0o6000 != 0:
		// An ACL that was just set decides about the permissions; a new owner only about these bits.
		after, err := o.stat()
		if err != nil {
			return err
		}
		if err := o.chmod(after.Mode | now.Mode&0o6000); err != nil {
			return err
		}
	}
	return o.setMtime(now, attr.Mtime)
}

// capabilityXattr has the capabilities of a file.
const capabilityXattr = "security.capability"

// capability returns the file capabilities; empty: it has none.
func (o descriptor) capability() []byte {
	value, err := readSized(func(buffer []byte) (int, error) { return o.getxattr(capabilityXattr, buffer) })
	if err != nil {
		return nil
	}
	return value
}

func (o descriptor) setMtime(now Meta, want *Time) error {
	if want == nil || *want == now.Mtime {
		return nil
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unixTime(*want)}
	return unix.UtimesNanoAt(unix.AT_FDCWD, o.path(), times, 0)
}

// copyAttrs gives a staged file the attributes of the file that it replaces, but for what attr says. One that replaces none
// keeps what it inherits of its directory.
func copyAttrs(dir handle, file *os.File, old Meta, attr Attr) error {
	o := opened(file)
	now, err := o.stat()
	if err != nil {
		return err
	}
	var mode uint32
	if old.Kind == File {
		mode = old.Mode
		if err := o.chown(now, valueOr(attr.UID, old.UID), valueOr(attr.GID, old.GID)); err != nil {
			return err
		}
		if err := o.setXattrs(keptXattrs(old.Xattrs)); err != nil {
			return err
		}
		if err := o.setFlags(File, old.Xattrs); err != nil {
			return err
		}
	} else {
		if err := o.chown(now, valueOr(attr.UID, now.UID), valueOr(attr.GID, now.GID)); err != nil {
			return err
		}
		mode = newFileMode(defaultACLOf(dir), attr)
	}
	if err := o.setCopied(attr.Copied); err != nil {
		return err
	}
	if err := o.chmod(valueOr(attr.Mode, mode)); err != nil {
		return err
	}
	return o.setMtime(now, attr.Mtime)
}

// defaultACLOf returns the default ACL of a directory; nil: it has none, or the file system has no ACLs.
func defaultACLOf(dir handle) []byte {
	acl, err := readSized(func(buffer []byte) (int, error) { return descriptor{fd: dir}.getxattr(defaultACL, buffer) })
	if err != nil {
		return nil
	}
	return acl
}
