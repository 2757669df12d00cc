package account

import (
	"bytes"
	"errors"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// The files of accounts, in the order in which they are written: who reads passwd finds the rest there already.
const (
	groupFile   = "/etc/group"
	gshadowFile = "/etc/gshadow"
	subuidFile  = "/etc/subuid"
	subgidFile  = "/etc/subgid"
	shadowFile  = "/etc/shadow"
	passwdFile  = "/etc/passwd"
)

// maxRecords bounds each of the files, in bytes: some 30,000 lines.
const maxRecords = 2 << 20

// records is one of the files. A line that is not changed stays byte for byte: comments, malformed lines, and those of NIS.
type records struct {
	path   string
	absent bool
	was    []byte
	lines  []string // with their line feeds
}

func readRecords(root *fsys.Root, path string) (*records, error) {
	data, err := root.ReadFile(path, maxRecords)
	if errors.Is(err, fs.ErrNotExist) {
		return &records{path: path, absent: true}, nil
	}
	if err != nil {
		return nil, fault.On(path, err)
	}
	r := &records{path: path, was: data}
	for line := range strings.Lines(string(data)) {
		r.lines = append(r.lines, line)
	}
	return r, nil
}

// bytes is what the file shall be.
func (r *records) bytes() []byte { return []byte(strings.Join(r.lines, "")) }

func (r *records) changed() bool { return !r.absent && !bytes.Equal(r.was, r.bytes()) }

// fieldsOf splits a line.
func fieldsOf(line string) []string { return strings.Split(strings.TrimRight(line, "\r\n"), ":") }

// find returns the fields of the line of a name, and where it stands; -1: nowhere. More than one line, or one that has not
// the number of fields, is an error: what is to be changed would be a guess.
func (r *records) find(name string, fields int) (line []string, at int, err error) {
	at = -1
	for i, text := range r.lines {
		if !strings.HasPrefix(text, name) {
			continue
		}
		switch have := fieldsOf(text); {
		case have[0] != name:
		case at >= 0:
			return nil, -1, fault.On(r.path, fault.Refuse("lines %d and %d are both of %s", at+1, i+1, name))
		case len(have) != fields:
			return nil, -1, fault.On(r.path, fault.Refuse("line %d, of %s, has %d fields and not %d", i+1, name, len(have), fields))
		default:
			line, at = have, i
		}
	}
	return line, at, nil
}

// each calls f with the fields of each line that has the number of them, but for comments and those of NIS.
func (r *records) each(fields int, f func(line []string)) {
	for _, text := range r.lines {
		if have := fieldsOf(text); len(have) == fields && have[0] != "" && !strings.ContainsAny(have[0][:1], "#+-") {
			f(have)
		}
	}
}

// put makes line i, or a new one where i is -1, these fields.
func (r *records) put(i int, fields ...string) {
	text := strings.Join(fields, ":") + "\n"
	if i >= 0 {
		r.lines[i] = text
		return
	}
	at := len(r.lines)
	for at > 0 && strings.ContainsAny(r.lines[at-1][:1], "+-") { // what is after a line of NIS is not always found
		at--
	}
	if at > 0 && !strings.HasSuffix(r.lines[at-1], "\n") {
		r.lines[at-1] += "\n"
	}
	r.lines = slices.Insert(r.lines, at, text)
}

// drop removes the lines of which f says so.
func (r *records) drop(f func(fields []string) bool) {
	r.lines = slices.DeleteFunc(r.lines, func(text string) bool { return f(fieldsOf(text)) })
}

// database is all of the files.
type database struct {
	passwd, shadow, group, gshadow, subuid, subgid *records
}

func readDatabase(root *fsys.Root) (*database, error) {
	db := &database{}
	for path, to := range map[string]**records{
		passwdFile: &db.passwd, shadowFile: &db.shadow, groupFile: &db.group,
		gshadowFile: &db.gshadow, subuidFile: &db.subuid, subgidFile: &db.subgid,
	} {
		read, err := readRecords(root, path)
		if err != nil {
			return nil, err
		}
		*to = read
	}
	for _, needed := range []*records{db.passwd, db.group} {
		if needed.absent {
			return nil, fault.On(needed.path, fs.ErrNotExist)
		}
	}
	return db, nil
}

// files are those that have been changed, in the order in which they are written.
func (db *database) files() (list []*records) {
	for _, r := range []*records{db.group, db.gshadow, db.subuid, db.subgid, db.shadow, db.passwd} {
		if r.changed() {
			list = append(list, r)
		}
	}
	return list
}

// user is a line of passwd.
type user struct {
	name, password, comment, shell string
	home                           string // without a slash at its end
	homeText                       string // as the line has it
	uid, gid                       uint32
	at                             int // which line; -1: a new one
}

// user returns the user of a name; nil where there is none.
func (db *database) user(name string) (*user, error) {
	line, at, err := db.passwd.find(name, 7)
	if err != nil || at < 0 {
		return nil, err
	}
	u, ok := userOf(line)
	if !ok {
		return nil, fault.On(passwdFile, fault.Refuse("line %d, of %s, has no numbers where they are due", at+1, name))
	}
	u.at = at
	return u, nil
}

func userOf(line []string) (*user, bool) {
	uid, ok1 := fsys.ParseID(line[2])
	gid, ok2 := fsys.ParseID(line[3])
	return &user{
		name: line[0], password: line[1], uid: uid, gid: gid, comment: line[4], home: cleanHome(line[5]), homeText: line[5],
		shell: line[6], at: -1,
	}, ok1 && ok2
}

// cleanHome is a home directory without the slash that may stand at its end.
func cleanHome(path string) string {
	if short := strings.TrimRight(path, "/"); short != "" {
		return short
	}
	return path
}

func (db *database) putUser(u *user) {
	home := u.home
	if cleanHome(u.homeText) == home {
		home = u.homeText
	}
	db.passwd.put(u.at, u.name, u.password, formatID(u.uid), formatID(u.gid), u.comment, home, u.shell)
}

// eachUser calls f with each user.
func (db *database) eachUser(f func(*user)) {
	db.passwd.each(7, func(line []string) {
		if u, ok := userOf(line); ok {
			f(u)
		}
	})
}

// group is a line of group.
type group struct {
	name    string
	gid     uint32
	members []string
}

// eachGroup calls f with each group.
func (db *database) eachGroup(f func(group)) {
	db.group.each(4, func(line []string) {
		if gid, ok := fsys.ParseID(line[2]); ok {
			f(group{line[0], gid, listOf(line[3])})
		}
	})
}

// groupWhere returns the first group of which f says so; nil: there is none.
func (db *database) groupWhere(f func(group) bool) (found *group) {
	db.eachGroup(func(g group) {
		if found == nil && f(g) {
			found = &g
		}
	})
	return found
}

// groupsOf are the names of the groups that have a user as a member.
func (db *database) groupsOf(name string) (names []string) {
	db.eachGroup(func(g group) {
		if slices.Contains(g.members, name) && !slices.Contains(names, g.name) {
			names = append(names, g.name)
		}
	})
	return names
}

// listOf are the names in a field. As the C library has it, there may be blanks before a name, and commas without any.
func listOf(field string) []string {
	names := strings.Split(field, ",")
	for i := range names {
		names[i] = strings.TrimLeft(names[i], " \t")
	}
	return slices.DeleteFunc(names, func(name string) bool { return name == "" })
}

// setMember makes a user a member of a group, or no longer one, in both of its files.
func (db *database) setMember(group, name string, member bool) error {
	line, at, err := db.group.find(group, 4)
	if err != nil {
		return err
	}
	if at < 0 {
		return fault.On(group, fault.Wrapf(fs.ErrNotExist, "there is no such group in %s", groupFile))
	}
	if list, changed := memberIn(line[3], name, member); changed {
		line[3] = list
		db.group.put(at, line...)
	}
	if line, at, err = db.gshadow.find(group, 4); err != nil || at < 0 {
		return err
	}
	if list, changed := memberIn(line[3], name, member); changed {
		line[3] = list
		db.gshadow.put(at, line...)
	}
	return nil
}

func memberIn(field, name string, member bool) (list string, changed bool) {
	names := listOf(field)
	if slices.Contains(names, name) == member {
		return field, false
	}
	if member {
		names = append(names, name)
	} else {
		names = slices.DeleteFunc(names, func(n string) bool { return n == name })
	}
	return strings.Join(names, ","), true
}

func formatID(id uint32) string { return strconv.FormatUint(uint64(id), 10) }
