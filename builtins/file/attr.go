package file

import (
	"errors"
	"strconv"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// attr reads the mode, owner and group that a caller wants; empty texts leave what is there.
func (r *Room) attr(call *builtins.Call, mode, owner, group string) (fsys.Attr, error) {
	attr, err := r.ownersOf(call, owner, group)
	if err == nil && mode != "" {
		attr.Mode, err = parseMode(mode)
	}
	return attr, err
}

// plannedID stands in a dry run for the number of a user or group that a command would make.
const plannedID = 1<<32 - 2

// ownersOf looks up an owner and a group as a call sees them. In a dry run one that is not there may be what a command makes.
func (r *Room) ownersOf(call *builtins.Call, owner, group string) (attr fsys.Attr, err error) {
	for _, part := range []struct {
		owner, group string
		id           **uint32
	}{{owner, "", &attr.UID}, {"", group, &attr.GID}} {
		found, err := owners(r.guest.Of(call), part.owner, part.group)
		switch {
		case err == nil && part.owner != "":
			*part.id = found.UID
		case err == nil:
			*part.id = found.GID
		case errors.Is(err, fsys.ErrNoAccount) && call.DryRun != nil && call.DryRun.Planned:
			*part.id = new(uint32(plannedID))
		default:
			return fsys.Attr{}, err
		}
	}
	return attr, nil
}

func (r *Room) owners(owner, group string) (fsys.Attr, error) {
	return owners(r.guest.Files, owner, group)
}

// owners looks up an owner and a group, each a name or a number, in the files of a root.
func owners(root *fsys.Root, owner, group string) (attr fsys.Attr, err error) {
	if owner == "" && group == "" {
		return attr, nil
	}
	accounts, err := root.Accounts()
	if err != nil {
		return attr, err
	}
	if owner != "" {
		uid, err := accounts.UID(owner)
		if err != nil {
			return attr, err
		}
		attr.UID = &uid
	}
	if group != "" {
		gid, err := accounts.GID(group)
		if err != nil {
			return attr, err
		}
		attr.GID = &gid
	}
	return attr, nil
}

// parseMode reads a mode as octal text: 644, 0644 or 0o644. Setuid, setgid and sticky need a fourth digit, so nobody
// sets them by chance.
func parseMode(text string) (*uint32, error) {
	digits := strings.TrimPrefix(text, "0o")
	mode, err := strconv.ParseUint(digits, 8, 32)
	if err != nil || len(digits) < 3 || len(digits) > 5 || mode > 0o7777 {
		return nil, fault.Invalid("mode %q is not octal like 0644", text)
	}
	return new(uint32(mode)), nil
}

// nativeMode reads the mode of a host's request, in which 0 says nothing. A host may send back the mode that an older
// agent gave it, with the bits of the type of a file.
func nativeMode(mode uint32) (*uint32, error) {
	const regular = 0o100000
	mode &^= regular
	switch {
	case mode == 0:
		return nil, nil
	case mode > 0o7777:
		return nil, fault.Invalid("mode %o has more than permission bits", mode)
	}
	return &mode, nil
}

// typeAndMode returns the mode of an object as hosts have it from stat(2), with the bits of its type.
func typeAndMode(meta fsys.Meta) uint32 {
	bits := map[fsys.Kind]uint32{
		fsys.Fifo: 0o010000, fsys.CharDevice: 0o020000, fsys.Directory: 0o040000, fsys.BlockDevice: 0o060000,
		fsys.File: 0o100000, fsys.Symlink: 0o120000, fsys.Socket: 0o140000,
	}
	return bits[meta.Kind] | meta.Mode
}

// octal writes permission bits for people.
func octal(mode uint32) string {
	text := strconv.FormatUint(uint64(mode), 8)
	return strings.Repeat("0", max(4-len(text), 0)) + text
}
