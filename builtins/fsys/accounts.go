package fsys

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Accounts are the users and groups of a root's /etc/passwd and /etc/group, as they were when they were read. Users of
// a directory service are known by their numbers alone: asking one could take for ever.
type Accounts struct {
	// Users and Groups are in the order of the files, and names may repeat. The functions of Accounts take the first
	// line of a name or number, as the C library does. They are not to be changed.
	Users  []User
	Groups []Group

	userNames, groupNames map[string]int // indices of the first line
	userIDs, groupIDs     map[uint32]int
}

// User is a line of /etc/passwd. What a line has no field for is empty.
type User struct {
	Name     string
	UID, GID uint32 // GID is of the primary group
	// Comment is the GECOS field: the real name, and more.
	Comment string
	// Home and Shell are paths, not escaped.
	Home, Shell string
}

// Group is a line of /etc/group.
type Group struct {
	Name string
	GID  uint32
	// Members are the names of users that have it as a supplementary group.
	Members []string
}

// Bounds of each of the files: in bytes, in lines, and in members of a group. Whoever writes them decides how much is held.
const (
	maxAccounts = 2 << 20
	maxLines    = 40_000
	maxMembers  = 100_000
)

// The files of Accounts.
const (
	passwdFile = "/etc/passwd"
	groupFile  = "/etc/group"
)

// Accounts reads the users and groups of the root. A file that is missing has none, and so has a line that is
// malformed. An error is a *fault.Error whose Object is the file that cannot be read, or several of them joined; what
// could be read is returned with it.
func (r *Root) Accounts() (*Accounts, error) {
	a := &Accounts{
		userNames: map[string]int{}, groupNames: map[string]int{}, userIDs: map[uint32]int{}, groupIDs: map[uint32]int{},
	}
	err := errors.Join(r.eachAccount(passwdFile, a.addUser), r.eachAccount(groupFile, a.addGroup))
	return a, err
}

// eachAccount calls add with the fields of each line that has a name and a number. All such files have these first:
// name:password:number:…
func (r *Root) eachAccount(path string, add func(fields []string, id uint32)) error {
	data, err := r.ReadFile(path, maxAccounts)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	if err != nil {
		return fault.On(path, err)
	}
	if bytes.Count(data, []byte("\n")) > maxLines {
		return fault.On(path, fault.Wrapf(fault.ErrTooLarge, "the file has more than %d lines", maxLines))
	}
	if path == groupFile && bytes.Count(data, []byte(",")) > maxMembers {
		return fault.On(path, fault.Wrapf(fault.ErrTooLarge, "the groups have more than %d members", maxMembers))
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.SplitN(strings.TrimRight(line, "\r\n"), ":", 8) // seven are read
		if len(fields) < 4 || fields[0] == "" {
			continue
		}
		if id, ok := ParseID(fields[2]); ok {
			add(fields, id)
		}
	}
	return nil
}

func (a *Accounts) addUser(fields []string, uid uint32) {
	gid, ok := ParseID(fields[3])
	if !ok {
		return
	}
	fields = append(fields, "", "", "")
	addIndex(a.userNames, fields[0], len(a.Users))
	addIndex(a.userIDs, uid, len(a.Users))
	a.Users = append(a.Users,
		User{Name: fields[0], UID: uid, GID: gid, Comment: fields[4], Home: fields[5], Shell: fields[6]})
}

func (a *Accounts) addGroup(fields []string, gid uint32) {
	var members []string
	if fields[3] != "" {
		members = strings.Split(fields[3], ",")
	}
	addIndex(a.groupNames, fields[0], len(a.Groups))
	addIndex(a.groupIDs, gid, len(a.Groups))
	a.Groups = append(a.Groups, Group{Name: fields[0], GID: gid, Members: members})
}

// addIndex keeps the first index of a key.
func addIndex[K comparable](index map[K]int, key K, i int) {
	if _, known := index[key]; !known {
		index[key] = i
	}
}

// User returns the user of a name.
func (a *Accounts) User(name string) (User, bool) { return entryOf(a.Users, a.userNames, name) }

// UserByID returns the user of a number.
func (a *Accounts) UserByID(uid uint32) (User, bool) { return entryOf(a.Users, a.userIDs, uid) }

// Group returns the group of a name.
func (a *Accounts) Group(name string) (Group, bool) { return entryOf(a.Groups, a.groupNames, name) }

// GroupByID returns the group of a number.
func (a *Accounts) GroupByID(gid uint32) (Group, bool) { return entryOf(a.Groups, a.groupIDs, gid) }

func entryOf[K comparable, E any](entries []E, index map[K]int, key K) (entry E, ok bool) {
	i, ok := index[key]
	if ok {
		entry = entries[i]
	}
	return entry, ok
}

// GroupsOf returns the numbers of the groups that have the user of a name as a member, each once. The primary group is
// not among them unless it lists the user too.
func (a *Accounts) GroupsOf(user string) []uint32 {
	var ids []uint32
	for _, group := range a.Groups {
		if slices.Contains(group.Members, user) && !slices.Contains(ids, group.GID) {
			ids = append(ids, group.GID)
		}
	}
	return ids
}

// UserName returns the name of a user, or the number as text where there is none.
func (a *Accounts) UserName(uid uint32) string {
	if user, ok := a.UserByID(uid); ok {
		return user.Name
	}
	return formatID(uid)
}

// GroupName returns the name of a group, or the number as text where there is none.
func (a *Accounts) GroupName(gid uint32) string {
	if group, ok := a.GroupByID(gid); ok {
		return group.Name
	}
	return formatID(gid)
}

// UID returns the number of a user that is given by name or number. A name counts more than a number, and a number
// needs no user. The error is fs.ErrInvalid.
func (a *Accounts) UID(user string) (uint32, error) {
	if found, ok := a.User(user); ok {
		return found.UID, nil
	}
	return unnamedID("user", user)
}

// GID returns the number of a group, as UID does of a user.
func (a *Accounts) GID(group string) (uint32, error) {
	if found, ok := a.Group(group); ok {
		return found.GID, nil
	}
	return unnamedID("group", group)
}

func unnamedID(what, text string) (uint32, error) {
	id, ok := ParseID(text)
	if !ok {
		return 0, noAccount{what, text}
	}
	return id, nil
}

// ErrNoAccount is what the error about a user or group that the files do not have is, beside fs.ErrInvalid.
var ErrNoAccount = errors.New("no such user or group")

type noAccount struct{ what, name string }

func (e noAccount) Error() string { return fmt.Sprintf("there is no %s %q", e.what, e.name) }

// Is says that it is both errors.
func (e noAccount) Is(target error) bool { return target == ErrNoAccount || target == fs.ErrInvalid }

// ParseID parses the decimal number of a user or group. 4294967295 is none: it means "leave it" to the kernel.
func ParseID(text string) (id uint32, ok bool) {
	n, err := strconv.ParseUint(text, 10, 32)
	return uint32(n), err == nil && n != 1<<32-1
}

func formatID(id uint32) string { return strconv.FormatUint(uint64(id), 10) }
