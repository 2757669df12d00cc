package fsys

import (
	"encoding/binary"
	"maps"
	"math"
	"os"
	"strings"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Modes of new objects for which nobody says one: that of open(2) and mkdir(2), of which a default ACL of the directory
// gives away what it allows, and what is left of it without an ACL.
const (
	askedOfFile, modeOfFile = 0o666, 0o644
	askedOfDir, modeOfDir   = 0o777, 0o755
)

// defaultACL is the extended attribute with what new objects in a directory inherit.
const defaultACL = "system.posix_acl_default"

// Tags of the entries of an ACL, each of 8 bytes after a head of 4: tag, permissions and the id of a user or group.
const (
	aclOwner, aclGroup, aclMask, aclOther = 0x01, 0x04, 0x10, 0x20
)

// inheritedMode returns the permission bits that the kernel gives a new object in a directory with a default ACL, if asked for
// asked. Without an ACL they are plain.
func inheritedMode(acl []byte, asked, plain uint32) uint32 {
	if len(acl) < 4 {
		return plain
	}
	allowed := map[uint16]uint32{aclMask: math.MaxUint32}
	for entry := acl[4:]; len(entry) >= 8; entry = entry[8:] {
		allowed[binary.LittleEndian.Uint16(entry)] = uint32(binary.LittleEndian.Uint16(entry[2:]))
	}
	group := allowed[aclMask]
	if group == math.MaxUint32 {
		group = allowed[aclGroup]
	}
	return asked & (allowed[aclOwner]<<6 | group<<3 | allowed[aclOther])
}

// IsCopied reports whether a copy of a file keeps its extended attribute of a name: what users put there, ACLs and file
// capabilities. All others, such as labels, belong to the system that the file is on.
func IsCopied(name string) bool {
	switch name {
	case "security.capability", "system.posix_acl_access", defaultACL:
		return true
	}
	return strings.HasPrefix(name, "user.")
}

// withCopied returns extended attributes with those in place of the ones that a copy keeps.
func withCopied(have, copied map[string][]byte) map[string][]byte {
	all := map[string][]byte{}
	for name, value := range have {
		if !IsCopied(name) {
			all[name] = value
		}
	}
	maps.Copy(all, copied)
	return all
}

// CheckLocked returns why an object, in the words of what, cannot be changed: chattr(1) set a flag. Nil: it has none of those.
func (m Meta) CheckLocked(what string) error {
	flag := "a"
	switch {
	case m.Immutable:
		flag = "i"
	case !m.AppendOnly:
		return nil
	}
	return &fault.Error{
		Err:  fault.Wrapf(os.ErrPermission, "%s has the flag %s of chattr", what, flag),
		Hint: "take the flag off first, with chattr -" + flag + ", if that is meant",
	}
}

// locked reports whether the object has a flag of chattr(1) that forbids to change it.
func (m Meta) locked() bool { return m.AppendOnly || m.Immutable }

// Unlocked returns the state without the flags of chattr(1) that forbid to change or rename the object.
func (m Meta) Unlocked() Meta {
	m.Xattrs, m.AppendOnly, m.Immutable = unlocked(m.Xattrs), false, false
	return m
}

// newFileMode is the mode of a new file for which attr says none, in a directory with this default ACL or nil.
func newFileMode(acl []byte, attr Attr) uint32 {
	if attr.Create != nil {
		return inheritedMode(acl, *attr.Create, *attr.Create)
	}
	return inheritedMode(acl, askedOfFile, modeOfFile)
}

// NewFileMode returns the mode that a new file gets here for which nobody says one.
func (a *At) NewFileMode() (uint32, error) {
	dir, err := a.dir.capture(".")
	return newFileMode(dir.Xattrs[defaultACL], Attr{}), err
}
