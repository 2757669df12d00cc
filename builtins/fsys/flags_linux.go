package fsys

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"os"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Flags of an inode in linux/fs.h, FS_SECRM_FL and so on, by the letters of chattr(1).
const (
	flagS, flagU, flagC, flagSync, flagI, flagA, flagD, flagAtime = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5, 1 << 6, 1 << 7

	flagJ, flagT, flagDirSync, flagTop, flagNoCOW, flagProject = 1 << 14, 1 << 15, 1 << 16, 1 << 17, 1 << 23, 1 << 29

	// keptFlags are those that a user sets, and that say something of an object and not of its blocks.
	keptFlags = flagS | flagU | flagC | flagSync | flagI | flagA | flagD | flagAtime |
		flagJ | flagT | flagDirSync | flagTop | flagNoCOW | flagProject
	// lockFlags are those that forbid to change the object.
	lockFlags = flagI | flagA
)

// inodeFlags is the name in Meta.Xattrs under which the flags of an inode are, as four bytes: no extended attribute has a name
// without a namespace of its own.
const inodeFlags = "inode.flags"

// openForFlags opens a file or directory, which the calls for flags need, until done is called; false: it has none that can
// be read. O_NONBLOCK is for a file on which others hold a lease.
func (o descriptor) openForFlags(kind Kind) (fd int, done func(), ok bool) {
	if kind != File && kind != Directory {
		return -1, nil, false
	}
	if o.open {
		return o.fd, func() {}, true
	}
	if pseudo, err := pseudo(o.fd); err != nil || pseudo { // to open a file of /proc or /sys may do something
		return -1, nil, false
	}
	fd, err := unix.Open(o.path(), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	return fd, func() { unix.Close(fd) }, err == nil
}

// flags returns the kept flags of a file or directory; false: they are not known.
func (o descriptor) flags(kind Kind) (uint32, bool) {
	fd, done, ok := o.openForFlags(kind)
	if !ok {
		return 0, false
	}
	defer done()
	flags, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	return flags & keptFlags, err == nil
}

// setFlags sets the kept flags that extended attributes of a Meta hold; none where they hold none.
func (o descriptor) setFlags(kind Kind, xattrs map[string][]byte) error {
	want := flagsOf(xattrs)
	fd, done, ok := o.openForFlags(kind)
	if !ok {
		return nil // they were not read either
	}
	defer done()
	now, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	if err != nil || now&keptFlags == want {
		if want != 0 && err != nil {
			return fault.On("inode flags", err)
		}
		return nil
	}
	if err := unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(now&^keptFlags|want)); err != nil {
		return fault.On("inode flags", err)
	}
	return nil
}

// unlockAt takes the flags from an object that forbid to change it. Where there is none nothing is done.
func unlockAt(dir handle, name string) error {
	o, err := openDescriptor(dir, name)
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	}
	defer o.close()
	meta, err := o.stat()
	if err != nil || !meta.locked() {
		return err
	}
	if meta, err = o.capture(); err != nil && !errors.Is(err, fault.ErrTooLarge) {
		return err
	}
	return o.setFlags(meta.Kind, unlocked(meta.Xattrs))
}

// sameAttributes reports whether nothing of what apply sets differs.
func sameAttributes(a, b Meta) bool {
	return a.UID == b.UID && a.GID == b.GID && a.Mode == b.Mode && a.Mtime == b.Mtime &&
		maps.EqualFunc(a.Xattrs, b.Xattrs, bytes.Equal)
}

func flagsOf(xattrs map[string][]byte) uint32 {
	if value := xattrs[inodeFlags]; len(value) == 4 {
		return binary.LittleEndian.Uint32(value) & keptFlags
	}
	return 0
}

// unlocked returns extended attributes without the flags that forbid to change the object.
func unlocked(xattrs map[string][]byte) map[string][]byte {
	flags := flagsOf(xattrs)
	if flags&lockFlags == 0 {
		return xattrs
	}
	rest := maps.Clone(xattrs)
	delete(rest, inodeFlags)
	if flags &^= lockFlags; flags != 0 {
		rest[inodeFlags] = binary.LittleEndian.AppendUint32(nil, flags)
	}
	return rest
}

// openAppend opens for writing at the end alone, which a file with the flag a allows.
func openAppend(dir handle, name string) (*os.File, error) {
	const flags = unix.O_RDWR | unix.O_APPEND | unix.O_NONBLOCK | unix.O_NOFOLLOW | unix.O_NOCTTY | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, name, flags, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}
