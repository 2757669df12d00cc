package account

import (
	"cmp"
	"io/fs"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// wish is what a user shall be; what is not said stays as it is, or is as the guest's defaults say.
type wish struct {
	name        string
	uid, gid    *uint32
	group       string
	groups      []string
	home, shell string
	moveHome    bool
	comment     *string
	system      bool
	createHome  *bool
	nonUnique   bool
	force       bool
}

// wantsHome reports whether a user who is not there yet is to have a home directory.
func (w *wish) wantsHome() bool {
	if w.createHome != nil {
		return *w.createHome
	}
	return !w.system || w.home != ""
}

// check refuses a wish that cannot be met anywhere.
func (w *wish) check(create bool) error {
	name := checkName
	if create {
		name = checkNewName
	}
	if err := name(w.name); err != nil {
		return err
	}
	if w.gid != nil && w.group != "" {
		return fault.Invalid("the primary group is given by gid and by group")
	}
	for _, id := range []*uint32{w.uid, w.gid} {
		if id != nil && (*id == math.MaxUint32 || *id == math.MaxUint16) {
			return fault.Invalid("%d is no number of a user or group", *id)
		}
	}
	groups := w.groups
	if w.group != "" {
		groups = append(slices.Clone(groups), w.group)
	}
	for _, group := range groups {
		if err := checkName(group); err != nil {
			return err
		}
	}
	for what, path := range map[string]string{"home": w.home, "shell": w.shell} {
		if path == "" {
			continue
		}
		if err := checkPath(what, path); err != nil {
			return err
		}
	}
	if w.moveHome && w.home == "" {
		return fault.Invalid("move_home without home: it is not said where to")
	}
	if w.comment != nil {
		return checkField("comment", *w.comment)
	}
	return nil
}

// plan is what is to be done for one call.
type plan struct {
	db       *database
	defaults defaults
	names    names
	today    int64 // in days since 1970

	home  *newHome // to be made
	mail  *newMail
	move  *homeMove
	owner *newOwner
	take  []string // paths that go with all that is below
	taken uint32   // the user that they must belong to
}

// names asks the name service for what the files do not have. A user or group that is in there belongs to a directory service.
type names interface {
	// has reports whether a database, passwd or group, has a name or a number.
	has(database, key string) (bool, error)
}

func (p *plan) empty() bool {
	return len(p.db.files()) == 0 && p.home == nil && p.mail == nil && p.move == nil && p.owner == nil && len(p.take) == 0
}

// errElsewhere is the refusal of a user whom this agent does not change.
func errElsewhere(what string) error {
	return fault.Refuse("the %s is of a directory service that the name service asks, and not of /etc/%s", what, map[string]string{
		"user": "passwd", "group": "group",
	}[what])
}

// existing returns a user of the files, who must be there.
func (p *plan) existing(name string) (*user, error) {
	u, err := p.db.user(name)
	if err != nil || u != nil {
		return u, err
	}
	elsewhere, err := p.names.has("passwd", name)
	switch {
	case err != nil:
		return nil, err
	case elsewhere:
		return nil, errElsewhere("user")
	}
	return nil, fault.Wrapf(fs.ErrNotExist, "there is no such user")
}

// create makes a user, or makes one that is there what is wished.
func (p *plan) create(w *wish) (*user, error) {
	u, err := p.db.user(w.name)
	if err != nil {
		return nil, err
	}
	if u != nil {
		return u, p.modify(u, w)
	}
	elsewhere, err := p.names.has("passwd", w.name)
	switch {
	case err != nil:
		return nil, err
	case elsewhere:
		return nil, errElsewhere("user")
	}
	u = &user{
		name: w.name, password: "x", at: -1, shell: cmp.Or(w.shell, p.defaults.said("SHELL", "/bin/sh")),
		home: cmp.Or(w.home, p.defaults.home(w.name)),
	}
	if w.comment != nil {
		u.comment = *w.comment
	}
	if u.uid, err = p.newUID(w); err != nil {
		return nil, err
	}
	if u.gid, err = p.primary(u, w); err != nil {
		return nil, err
	}
	if err := p.join(w); err != nil {
		return nil, err
	}
	if err := p.subordinate(u, w); err != nil {
		return nil, err
	}
	if p.db.shadow.absent {
		u.password = "!"
	} else if err := p.newShadow(u.name, "!", w.system); err != nil {
		return nil, err
	}
	p.db.putUser(u)
	return u, nil
}

// newShadow adds a line of shadow; one that somebody left there is replaced.
func (p *plan) newShadow(name, hash string, system bool) error {
	_, at, err := p.db.shadow.find(name, 9)
	if err != nil {
		return err
	}
	p.db.shadow.put(at, append([]string{name, hash, strconv.FormatInt(p.today, 10)}, p.defaults.days(system)...)...)
	return nil
}

// newUID is the number that is wished, or the one after the highest that is used, as useradd has it: numbers are not used
// again as long as there are others. Those for the system go downwards.
func (p *plan) newUID(w *wish) (uint32, error) {
	used := map[uint32]bool{}
	p.db.eachUser(func(u *user) { used[u.uid] = true })
	if w.uid != nil {
		return *w.uid, p.freeUID(*w.uid, "", w)
	}
	first, last := p.defaults.ids("UID", w.system)
	return p.nextID("user", "passwd", used, first, last, w.system)
}

// freeUID refuses a number that another user than name has.
func (p *plan) freeUID(uid uint32, name string, w *wish) (err error) {
	if w.nonUnique {
		return nil
	}
	p.db.eachUser(func(u *user) {
		if u.uid == uid && u.name != name && err == nil {
			err = &fault.Error{
				Err: fault.Wrapf(fs.ErrExist, "the uid %d is that of %s", uid, u.name), Hint: "say non_unique = true if both shall have it",
			}
		}
	})
	if err != nil {
		return err
	}
	elsewhere, err := p.names.has("passwd", formatID(uid))
	if err == nil && elsewhere {
		err = fault.Wrapf(fs.ErrExist, "the uid %d is that of a user of a directory service", uid)
	}
	return err
}

// nextID finds a number that is neither used nor known to the name service: after the used ones, else in a gap of them. down
// is downwards from the last.
func (p *plan) nextID(what, database string, used map[uint32]bool, first, last uint32, down bool) (uint32, error) {
	const tries = 1000 // numbers that a directory service has
	begin, end, step := int64(first), int64(last), int64(1)
	if down {
		begin, end, step = end, begin, -1
	}
	behind := begin
	for id := range used {
		if id >= first && id <= last && (int64(id)-behind)*step >= 0 {
			behind = int64(id) + step
		}
	}
	tried := 0
	for _, from := range []int64{behind, begin} {
		for id := from; (end-id)*step >= 0 && tried < tries; id += step {
			if used[uint32(id)] {
				continue
			}
			tried++
			if elsewhere, err := p.names.has(database, strconv.FormatInt(id, 10)); err != nil || !elsewhere {
				return uint32(id), err
			}
		}
	}
	return 0, fault.Refuse("no number between %d and %d is free for a new %s", first, last, what)
}

// primary is the number of the primary group of a new user. It makes the user's own group where that is due.
func (p *plan) primary(u *user, w *wish) (uint32, error) {
	gid, said, err := p.saidPrimary(w)
	switch {
	case said && (err == nil || w.gid == nil):
		return gid, err
	case !said && p.defaults.login["USERGROUPS_ENAB"] == "no":
		return p.defaultGroup()
	}
	if g := p.db.groupWhere(func(g group) bool { return g.name == u.name }); g != nil {
		return 0, &fault.Error{
			Err:  fault.Wrapf(fs.ErrExist, "there is a group %s already, with the gid %d", g.name, g.gid),
			Hint: "say group = \"" + g.name + "\" if it shall be the primary one",
		}
	}
	elsewhere, err := p.names.has("group", u.name)
	if err == nil && elsewhere {
		err = fault.Wrapf(fs.ErrExist, "there is a group %s already, of a directory service", u.name)
	}
	if err != nil {
		return 0, err
	}
	if gid, err = p.newGID(u.uid, w); err != nil {
		return 0, err
	}
	p.db.group.put(-1, u.name, "x", formatID(gid), "")
	if !p.db.gshadow.absent {
		p.db.gshadow.drop(func(line []string) bool { return line[0] == u.name })
		p.db.gshadow.put(-1, u.name, "!", "", "")
	}
	return gid, nil
}

// saidPrimary is the group that a wish names. An error says that there is none.
func (p *plan) saidPrimary(w *wish) (gid uint32, said bool, err error) {
	switch {
	case w.gid != nil:
		if p.db.groupWhere(func(g group) bool { return g.gid == *w.gid }) == nil {
			return 0, true, fault.Wrapf(fs.ErrNotExist, "no group has the gid %d", *w.gid)
		}
		return *w.gid, true, nil
	case w.group != "":
		g := p.db.groupWhere(func(g group) bool { return g.name == w.group })
		if g == nil {
			return 0, true, fault.Wrapf(fs.ErrNotExist, "there is no group %s in %s", w.group, groupFile)
		}
		return g.gid, true, nil
	}
	return 0, false, nil
}

// defaultGroup returns the gid of the primary group of users without a group of their own: GROUP of /etc/default/useradd, a
// number or a name.
func (p *plan) defaultGroup() (uint32, error) {
	text := p.defaults.said("GROUP", "100")
	g := p.db.groupWhere(func(g group) bool { return g.name == text || formatID(g.gid) == text })
	if g == nil {
		return 0, fault.Wrapf(fs.ErrNotExist, "there is no group %s, which %s names as that of new users", text, useraddFile)
	}
	return g.gid, nil
}

// newGID is the number for the group of a new user: that of the user if it is free.
func (p *plan) newGID(uid uint32, w *wish) (uint32, error) {
	if w.gid != nil {
		elsewhere, err := p.names.has("group", formatID(*w.gid))
		if err == nil && elsewhere {
			err = fault.Wrapf(fs.ErrExist, "the gid %d is that of a group of a directory service", *w.gid)
		}
		return *w.gid, err
	}
	used := map[uint32]bool{}
	p.db.eachGroup(func(g group) { used[g.gid] = true })
	first, last := p.defaults.ids("GID", w.system)
	if uid >= first && uid <= last && !used[uid] {
		if elsewhere, err := p.names.has("group", formatID(uid)); err != nil || !elsewhere {
			return uid, err
		}
	}
	return p.nextID("group", "group", used, first, last, w.system)
}

// join makes the user a member of the groups that are wished.
func (p *plan) join(w *wish) error {
	for _, group := range w.groups {
		if err := p.db.setMember(group, w.name, true); err != nil {
			return err
		}
	}
	return nil
}

// subordinate allocates ranges of subordinate uids and gids (subuid(5), subgid(5)) to a new user, where the guest has these
// files.
func (p *plan) subordinate(u *user, w *wish) error {
	if first, last := p.defaults.ids("UID", false); w.system || u.uid < first || u.uid > last {
		return nil
	}
	for _, of := range []struct {
		records *records
		prefix  string
	}{{p.db.subuid, "SUB_UID"}, {p.db.subgid, "SUB_GID"}} {
		count := p.defaults.number(of.prefix+"_COUNT", 65536)
		taken := [][2]int64{}
		has := false
		of.records.each(3, func(line []string) {
			start, err1 := strconv.ParseInt(line[1], 10, 64)
			size, err2 := strconv.ParseInt(line[2], 10, 64)
			if err1 == nil && err2 == nil && size > 0 {
				taken = append(taken, [2]int64{start, start + size})
			}
			has = has || line[0] == u.name
		})
		if of.records.absent || has || count <= 0 {
			continue
		}
		start := p.defaults.number(of.prefix+"_MIN", 100_000)
		slices.SortFunc(taken, func(a, b [2]int64) int { return cmp.Compare(a[0], b[0]) })
		for _, t := range taken {
			if t[1] > start && t[0] < start+count {
				start = t[1]
			}
		}
		if last := p.defaults.number(of.prefix+"_MAX", 600_100_000); start+count-1 > last {
			return fault.On(of.records.path, fault.Refuse("there are no %d numbers left up to %d", count, last))
		}
		of.records.put(-1, u.name, strconv.FormatInt(start, 10), strconv.FormatInt(count, 10))
	}
	return nil
}

// modify makes a user what is wished.
func (p *plan) modify(u *user, w *wish) error {
	was := *u
	if w.uid != nil && *w.uid != u.uid {
		if u.uid == 0 {
			return fault.Refuse("the uid of the superuser stays 0")
		}
		if err := p.freeUID(*w.uid, u.name, w); err != nil {
			return err
		}
		u.uid = *w.uid
	}
	if gid, said, err := p.saidPrimary(w); err != nil {
		return err
	} else if said {
		u.gid = gid
	}
	u.home, u.shell = cmp.Or(w.home, u.home), cmp.Or(w.shell, u.shell)
	if w.comment != nil {
		u.comment = *w.comment
	}
	if *u != was {
		p.db.putUser(u)
	}
	if u.uid != was.uid || u.gid != was.gid {
		p.owner = &newOwner{home: was.home, uid: was.uid, gid: was.gid, newUID: u.uid, newGID: u.gid}
	}
	return p.join(w)
}

// remove takes a user out of all files, and the user's own group where nobody else is in it.
func (p *plan) remove(u *user) {
	is := func(line []string) bool { return line[0] == u.name }
	for _, r := range []*records{p.db.passwd, p.db.shadow, p.db.subuid, p.db.subgid} {
		r.drop(is)
	}
	p.leave(u.name, nil)
	own := p.db.groupWhere(func(g group) bool { return g.name == u.name && g.gid == u.gid })
	if own == nil || len(own.members) > 0 || p.defaults.login["USERGROUPS_ENAB"] == "no" {
		return
	}
	needed := false
	p.db.eachUser(func(other *user) { needed = needed || other.gid == own.gid })
	if !needed {
		p.db.group.drop(is)
		p.db.gshadow.drop(is)
	}
}

// leave takes a user out of all groups but those that are kept.
func (p *plan) leave(name string, kept []string) {
	for _, r := range []*records{p.db.group, p.db.gshadow} {
		for i, text := range r.lines {
			line := fieldsOf(text)
			if len(line) != 4 || text[0] == '#' || !strings.Contains(text, name) || slices.Contains(kept, line[0]) {
				continue
			}
			var left, alsoLeft bool
			line[3], left = memberIn(line[3], name, false)
			if r == p.db.gshadow { // who administers it
				line[2], alsoLeft = memberIn(line[2], name, false)
			}
			if left || alsoLeft {
				r.put(i, line...)
			}
		}
	}
}

// groupsToBe makes a user a member of groups, and of no others if the list is exclusive.
func (p *plan) groupsToBe(name string, groups []string, exclusive bool) error {
	if exclusive {
		p.leave(name, groups)
	}
	return p.join(&wish{name: name, groups: groups})
}

// homeOfOther returns the name of a user other than name whose home directory is path, or in it.
func (p *plan) homeOfOther(name, path string) (other string) {
	p.db.eachUser(func(u *user) {
		if u.name != name && strings.HasPrefix(u.home, "/") && fsys.Within(fsys.Clean(u.home), path) {
			other = u.name
		}
	})
	return other
}
