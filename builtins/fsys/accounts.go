package fsys

import (
	"errors"
	"io/fs"
	"strconv"
	"strings"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Accounts are the users and groups of a root's /etc/passwd and /etc/group, as they were when they were read. Users of
// a directory service are known by their numbers alone: asking one could take for ever.
type Accounts struct {
	users, groups         map[string]uint32
	userNames, groupNames map[uint32]string
}

// maxAccounts bounds each of the files: some 200,000 lines.
const maxAccounts = 16 << 20

// Accounts reads the users and groups of the root. A missing file has none.
func (r *Root) Accounts() (*Accounts, error) {
	a := &Accounts{}
	var err1, err2 error
	a.users, a.userNames, err1 = r.readAccounts("/etc/passwd")
	a.groups, a.groupNames, err2 = r.readAccounts("/etc/group")
	return a, errors.Join(err1, err2)
}

func (r *Root) readAccounts(path string) (map[string]uint32, map[uint32]string, error) {
	ids, names := map[string]uint32{}, map[uint32]string{}
	data, err := r.ReadFile(path, maxAccounts)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errors.ErrUnsupported) {
		err = nil
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(line, ":", 4) // name:password:number:…
		if len(fields) < 4 || fields[0] == "" {
			continue
		}
		id, err := strconv.ParseUint(fields[2], 10, 32)
		if err != nil {
			continue
		}
		if _, known := ids[fields[0]]; !known { // the first line of a name counts, as in the C library
			ids[fields[0]] = uint32(id)
		}
		if _, known := names[uint32(id)]; !known {
			names[uint32(id)] = fields[0]
		}
	}
	if err != nil {
		err = fault.On(path, err)
	}
	return ids, names, err
}

// UserName is the name of a user, or the number as text where there is none.
func (a *Accounts) UserName(uid uint32) string { return nameOr(a.userNames, uid) }

// GroupName is the name of a group, or the number as text where there is none.
func (a *Accounts) GroupName(gid uint32) string { return nameOr(a.groupNames, gid) }

func nameOr(names map[uint32]string, id uint32) string {
	if name, ok := names[id]; ok {
		return name
	}
	return strconv.FormatUint(uint64(id), 10)
}

// UID finds a user by name or number.
func (a *Accounts) UID(user string) (uint32, error) { return idOf(a.users, "user", user) }

// GID finds a group by name or number.
func (a *Accounts) GID(group string) (uint32, error) { return idOf(a.groups, "group", group) }

func idOf(ids map[string]uint32, what, name string) (uint32, error) {
	if id, ok := ids[name]; ok {
		return id, nil
	}
	id, err := strconv.ParseUint(name, 10, 32)
	if err != nil || id == 1<<32-1 { // that number means "leave it" to the kernel
		return 0, fault.Invalid("there is no %s %q", what, name)
	}
	return uint32(id), nil
}
