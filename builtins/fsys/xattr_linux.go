package fsys

import (
	"bytes"
	"errors"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// maxXattrs bounds the values of an object's extended attributes that are read, in bytes. Those of real files, a label, an ACL,
// a capability, have less than 4 KiB, which is all that ext4 takes; on xfs a user can give a file of his a gigabyte.
const maxXattrs = 256 << 10

// unlisted stands among extended attributes for those that cannot be listed. None has an empty name.
const unlisted = ""

// xattrs reads all extended attributes; nil where the file system has none. Where they have more than maxXattrs it returns
// those that were read before the bound, the one that is beyond it as an empty one, and fault.ErrTooLarge.
func (o descriptor) xattrs() (map[string][]byte, error) {
	names, err := o.xattrNames()
	if errors.Is(err, fault.ErrTooLarge) {
		return map[string][]byte{unlisted: nil}, err
	}
	if len(names) == 0 || err != nil {
		return nil, err
	}
	all, left := map[string][]byte{}, maxXattrs
	for _, name := range names {
		value, err := o.xattr(name, left)
		if errors.Is(err, unix.ENODATA) {
			continue // gone between the two calls
		}
		if errors.Is(err, fault.ErrTooLarge) {
			all[name] = nil
			return all, err
		}
		if err != nil {
			return nil, fault.On("attribute "+name, err)
		}
		all[name] = value
		left -= len(value)
	}
	return all, nil
}

// xattrNames lists the names of the extended attributes; none where the file system has none. The kernel lists no more than 64
// KiB.
func (o descriptor) xattrNames() ([]string, error) {
	list, err := readSized(func(buffer []byte) (int, error) { return o.listxattr(buffer) })
	switch {
	case errors.Is(err, unix.EOPNOTSUPP) || err == nil && len(list) == 0:
		return nil, nil
	case errors.Is(err, unix.E2BIG):
		return nil, fault.Wrapf(fault.ErrTooLarge, "it has more extended attributes than can be listed")
	case err != nil:
		return nil, err
	}
	return strings.Split(strings.TrimRight(string(list), "\x00"), "\x00"), nil
}

// xattr reads the value of an extended attribute, and none of more than most bytes.
func (o descriptor) xattr(name string, most int) ([]byte, error) {
	for {
		n, err := o.getxattr(name, nil)
		if err != nil || n == 0 {
			return []byte{}, err
		}
		if n > most {
			return nil, fault.Wrapf(fault.ErrTooLarge, "its extended attributes have more than %d KiB", maxXattrs>>10)
		}
		buffer := make([]byte, n)
		if n, err = o.getxattr(name, buffer); !errors.Is(err, unix.ERANGE) {
			return buffer[:max(n, 0)], err
		}
	}
}

func (o descriptor) listxattr(buffer []byte) (int, error) {
	if o.open {
		return unix.Flistxattr(o.fd, buffer)
	}
	return unix.Listxattr(o.path(), buffer)
}

func (o descriptor) getxattr(name string, buffer []byte) (int, error) {
	if o.open {
		return unix.Fgetxattr(o.fd, name, buffer)
	}
	return unix.Getxattr(o.path(), name, buffer)
}

// hasXattr reports whether an extended attribute has a value.
func (o descriptor) hasXattr(name string, want []byte) bool {
	have, err := o.xattr(name, len(want))
	return err == nil && bytes.Equal(have, want)
}

// readSized calls a function that says how big a buffer it needs, until the buffer is big enough.
func readSized(read func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := read(nil)
		if err != nil || n == 0 {
			return []byte{}, err
		}
		buffer := make([]byte, n)
		n, err = read(buffer)
		if !errors.Is(err, unix.ERANGE) {
			return buffer[:max(n, 0)], err
		}
	}
}

// setXattrs gives the object these extended attributes and no others. Of what goes no value is read.
func (o descriptor) setXattrs(want map[string][]byte) error {
	return o.replaceXattrs(want, func(string) bool { return true })
}

// setCopied sets the attributes that a copy keeps; nil: they stay.
func (o descriptor) setCopied(want map[string][]byte) error {
	if want == nil {
		return nil
	}
	return o.replaceXattrs(want, IsCopied)
}

// replaceXattrs sets extended attributes, and removes all others for which mine is true.
func (o descriptor) replaceXattrs(want map[string][]byte, mine func(name string) bool) error {
	have, err := o.xattrNames()
	if err != nil {
		return err
	}
	for _, name := range have {
		if _, wanted := want[name]; wanted || !mine(name) {
			continue
		}
		if err := unix.Removexattr(o.path(), name); err != nil && !errors.Is(err, unix.ENODATA) {
			return fault.On("attribute "+name, err)
		}
	}
	for name, value := range want {
		if name == inodeFlags || name == unlisted || o.hasXattr(name, value) {
			continue
		}
		if err := unix.Setxattr(o.path(), name, value, 0); err != nil {
			return fault.On("attribute "+name, err)
		}
	}
	return nil
}
