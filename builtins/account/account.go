// Package account makes, changes and removes the local users of the guest, sets their passwords, and the keys by which they
// log in.
//
//	passwd, shadow, group, gshadow, subuid, subgid ─► records ─► plan (what shall be) ─► what differs
//	                                                                                        │ locked, kept by the
//	home directory, mail spool, authorized_keys ◄───────────── written ◄────────────────────┘ transaction
//
// The files are changed by the agent itself, the way shadow-utils changes them: under the locks of lckpwdf(3) and of
// shadow-utils, each replaced in one step, with the numbers and defaults of login.defs and useradd. So it is the same in a
// guest with shadow-utils, in one with BusyBox, and in a tree that is not booted, a dry run tells what would be, and all that
// is changed was kept before. No password is ever an argument or in the environment of a program.
//
// Users and groups of a directory service, such as LDAP, are seen, and not changed.
//
// Not here: groups that are no user's own, what a user has outside of the home directory, and processes of users (process).
package account

import (
	"context"
	"slices"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/edit"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// The kinds of the objects in Access.
const (
	kind      = "account"
	groupKind = "group"
)

// Room holds the operations. It is safe for concurrent use.
type Room struct {
	guest *guest.Guest
	edit  *edit.Editor
	now   func() time.Time
	proc  string // where the processes of the guest are seen
}

// New makes the room.
func New(g *guest.Guest) *Room {
	return &Room{guest: g, edit: &edit.Editor{Guest: g, Guard: g.Guard}, now: time.Now, proc: "/proc"}
}

// Room is what the table, the executor and the agent know of the room.
func (r *Room) Room() builtins.Room {
	room := builtins.Room{Name: "account", Scope: kind, Ops: append(r.looking(), r.changing()...)}
	capability := ""
	if r.available() {
		capability, room.Features = "reset_password", features
	}
	room.Ops = append(room.Ops, builtins.Op{
		Name: "reset_password", Capability: capability, Summary: "set the password of a local user",
		Mutates: true, Transaction: true, Inverse: inverse,
		Access: builtins.Of(resetAccess), Handler: builtins.Handle(r.resetPassword),
	})
	return room
}

// features tells a host that this agent takes a hash for a password.
func features() map[string]string { return map[string]string{"reset_password": "crypted"} }

// looking are the rows that change nothing.
func (r *Room) looking() []builtins.Op {
	return []builtins.Op{
		{
			Name: "account.exists", Usage: "(name) exists", Summary: "whether there is a user, also of a directory service",
			Access: builtins.Of(nameAccess), Handler: builtins.Handle(r.exists),
		},
		{
			Name: "account.get", Usage: "(name)", Summary: "a user, also of a directory service",
			Access: builtins.Of(nameAccess), Handler: builtins.Handle(r.get),
		},
		{
			Name: "account.list", Usage: "() accounts", Summary: "the users of /etc/passwd",
			Access:  builtins.Of(func(*pb.AccountListArgs) builtins.Access { return builtins.Access{Reads: public} }),
			Handler: builtins.Handle(r.list),
		},
	}
}

// changing are the rows that change something.
func (r *Room) changing() []builtins.Op {
	return []builtins.Op{
		{
			Name: "account.create", Usage: "(name) changed", Summary: "make a user, or make one that is there what is said",
			Mutates: true, Predictable: true, Inverse: inverse,
			Access: builtins.Of(r.createAccess), Handler: builtins.Handle(r.create),
		},
		{
			Name: "account.modify", Usage: "(name) changed", Summary: "change a user",
			Mutates: true, Predictable: true, Inverse: inverse,
			Access: builtins.Of(r.modifyAccess), Handler: builtins.Handle(r.modify),
		},
		{
			Name: "account.remove", Usage: "(name) changed", Summary: "remove a user",
			Mutates: true, Predictable: true, Inverse: inverse,
			Access: builtins.Of(r.removeAccess), Handler: builtins.Handle(r.remove),
		},
		{
			Name: "account.password", Usage: "(name, password) changed", Summary: "set the password of a user",
			Mutates: true, Predictable: true, Inverse: inverse,
			Access:  builtins.Of(func(in *pb.AccountPasswordArgs) builtins.Access { return passwordAccess(in.Name) }),
			Handler: builtins.Handle(r.password),
		},
		{
			Name: "account.ssh_keys", Usage: "(name, [keys])",
			Summary: "the keys by which a user may log in; with keys, or exclusive, whether setting them changed anything",
			Mutates: true, Predictable: true,
			Readonly: builtins.Of(func(in *pb.AccountKeysArgs) bool { return len(in.Keys) == 0 && !in.Exclusive }),
			Access:   builtins.Of(r.keysAccess), Handler: builtins.Handle(r.keys),
		},
		{
			Name: "account.groups", Usage: "(name, [groups])",
			Summary: "the supplementary groups of a user; with groups, or exclusive, whether setting them changed anything",
			Mutates: true, Predictable: true, Inverse: inverse,
			Readonly: builtins.Of(func(in *pb.AccountGroupsArgs) bool { return len(in.Groups) == 0 && !in.Exclusive }),
			Access:   builtins.Of(groupsAccess), Handler: builtins.Handle(r.groups),
		},
		{
			Name: inverse, Usage: "()", Summary: "put back the owner of a file, or have caches forget what was changed",
			Mutates: true, Internal: true, Access: builtins.Of(inverseAccess), Handler: builtins.Handle(r.takeBack),
		},
	}
}

// public are the files that everybody reads: what is changed in them is shown.
var public = []string{passwdFile, groupFile}

// all are the files that a new or a removed user changes.
var all = []string{passwdFile, groupFile, shadowFile, gshadowFile, subuidFile, subgidFile}

func object(name string) builtins.Object { return builtins.Object{Kind: kind, Name: name} }

func nameAccess(in *pb.AccountNameArgs) builtins.Access {
	return builtins.Access{Objects: []builtins.Object{object(in.Name)}, Reads: public}
}

func passwordAccess(name string) builtins.Access {
	return builtins.Access{Objects: []builtins.Object{object(name)}, Writes: []string{passwdFile, shadowFile}}
}

func inverseAccess(in *pb.JournalObject) builtins.Access {
	if in.Path == "" {
		return builtins.Access{Writes: public}
	}
	return builtins.Access{Writes: []string{in.Path}}
}

func resetAccess(in *pb.ResetPasswordRequest) builtins.Access { return passwordAccess(in.Username) }

func groupsAccess(in *pb.AccountGroupsArgs) builtins.Access {
	access := builtins.Access{Objects: append(groupObjects(in.Groups), object(in.Name)), Reads: public}
	if len(in.Groups) > 0 || in.Exclusive {
		access.Writes = []string{groupFile, gshadowFile}
	}
	return access
}

func groupObjects(names []string) (list []builtins.Object) {
	for _, name := range names {
		if name != "" {
			list = append(list, builtins.Object{Kind: groupKind, Name: name})
		}
	}
	return list
}

// wishAccess is that of making a user what is wished. home is the directory that may be made, or is written down; empty: none.
func (r *Room) wishAccess(w *wish, files []string, home string) builtins.Access {
	access := builtins.Access{
		Objects: append(groupObjects(append([]string{w.group}, w.groups...)), object(w.name)),
		Reads:   public, Writes: slices.Clone(files),
	}
	if home != "" {
		access.Writes = append(access.Writes, home)
	}
	if w.uid == nil && w.gid == nil && w.group == "" || checkName(w.name) != nil {
		return access
	}
	if owned := r.homeOf(w.name); checkPath("home", owned) == nil { // what is in it may get another owner
		access.Writes, access.Trees = append(access.Writes, owned), []string{owned}
	}
	return access
}

func (r *Room) createAccess(in *pb.AccountCreateArgs) builtins.Access {
	w := createWish(in)
	home := w.home
	if home == "" && checkNewName(w.name) == nil {
		home = r.homeOf(w.name)
	}
	return r.wishAccess(w, all, home)
}

func (r *Room) modifyAccess(in *pb.AccountModifyArgs) builtins.Access {
	return r.wishAccess(modifyWish(in), []string{passwdFile, groupFile, gshadowFile}, in.Home)
}

func (r *Room) removeAccess(in *pb.AccountRemoveArgs) builtins.Access {
	access := builtins.Access{Objects: []builtins.Object{object(in.Name)}, Reads: public, Writes: all}
	if !in.Home || checkName(in.Name) != nil {
		return access
	}
	access.Writes = append(slices.Clone(all), r.defaults().mailOf(in.Name))
	if home := r.homeOf(in.Name); checkPath("home", home) == nil {
		access.Writes, access.Trees = append(access.Writes, home), []string{home}
	}
	return access
}

func (r *Room) keysAccess(in *pb.AccountKeysArgs) builtins.Access {
	access := builtins.Access{Objects: []builtins.Object{object(in.Name)}, Reads: public}
	if checkName(in.Name) != nil {
		return access
	}
	home := r.homeOf(in.Name)
	if checkPath("home", home) != nil {
		return access
	}
	if file := fsys.Join(home, keysFile); len(in.Keys) == 0 && !in.Exclusive {
		access.Reads = append(slices.Clone(public), file)
	} else {
		access.Writes = []string{file}
	}
	return access
}

// homeOf is the home directory of a user, or what it would be. What a dry run pretends it does not see.
func (r *Room) homeOf(name string) string {
	if r.guest.Files != nil {
		if passwd, err := readRecords(r.guest.Files, passwdFile); err == nil {
			if line, at, err := passwd.find(name, 7); err == nil && at >= 0 {
				return line[5]
			}
		}
	}
	return r.defaults().home(name)
}

func (r *Room) defaults() defaults {
	if r.guest.Files == nil {
		return defaults{}
	}
	return readDefaults(r.guest.Files)
}

// available says whether accounts can be changed here at all.
func (r *Room) available() bool {
	if r.guest.Files == nil || !supported {
		return false
	}
	passwd, err := readRecords(r.guest.Files, passwdFile)
	return err == nil && !passwd.absent
}

// files is the file system that a call acts on.
func (r *Room) files(call *builtins.Call) (*fsys.Root, error) {
	root := r.guest.Of(call)
	if root == nil || !supported {
		return nil, fault.Unsupported("accounts are not supported here")
	}
	return root, nil
}

func createWish(in *pb.AccountCreateArgs) *wish {
	return &wish{
		name: in.Name, uid: in.Uid, gid: in.Gid, group: in.Group, groups: in.Groups, home: in.Home, shell: in.Shell,
		comment: in.Comment, system: in.System, createHome: in.CreateHome, nonUnique: in.NonUnique, force: in.Force,
	}
}

func modifyWish(in *pb.AccountModifyArgs) *wish {
	return &wish{
		name: in.Name, uid: in.Uid, gid: in.Gid, group: in.Group, groups: in.Groups, home: in.Home, shell: in.Shell,
		comment: in.Comment, nonUnique: in.NonUnique, force: in.Force,
	}
}

func (r *Room) create(ctx context.Context, call *builtins.Call, in *pb.AccountCreateArgs) (*pb.Changed, error) {
	w := createWish(in)
	if err := w.check(true); err != nil {
		return nil, fault.On(printable(in.Name), err)
	}
	return r.change(ctx, call, "account.create", in.Name, func(root *fsys.Root, p *plan) error {
		u, err := p.create(w)
		if err != nil {
			return err
		}
		if err := r.mayRenumber(p, w); err != nil {
			return err
		}
		return p.furnish(root, u, w)
	})
}

func (r *Room) modify(ctx context.Context, call *builtins.Call, in *pb.AccountModifyArgs) (*pb.Changed, error) {
	w := modifyWish(in)
	if err := w.check(false); err != nil {
		return nil, fault.On(printable(in.Name), err)
	}
	return r.change(ctx, call, "account.modify", in.Name, func(_ *fsys.Root, p *plan) error {
		u, err := p.existing(w.name)
		if err != nil {
			return err
		}
		if err := p.modify(u, w); err != nil {
			return err
		}
		return r.mayRenumber(p, w)
	})
}

// mayRenumber refuses another uid or gid for a user who has processes: they would go on with the old one.
func (r *Room) mayRenumber(p *plan, w *wish) error {
	if p.owner == nil || w.force {
		return nil
	}
	return r.idle(p.owner.uid)
}

func (r *Room) remove(ctx context.Context, call *builtins.Call, in *pb.AccountRemoveArgs) (*pb.Changed, error) {
	if err := checkName(in.Name); err != nil {
		return nil, fault.On(printable(in.Name), err)
	}
	return r.change(ctx, call, "account.remove", in.Name, func(root *fsys.Root, p *plan) error {
		u, err := p.db.user(in.Name)
		if err != nil {
			return err
		}
		if u == nil {
			if elsewhere, err := p.names.has("passwd", in.Name); err != nil || !elsewhere {
				return err
			}
			return errElsewhere("user")
		}
		if u.uid == 0 || u.name == "root" {
			return fault.Refuse("the superuser is not removed")
		}
		if !in.Force {
			if err := r.idle(u.uid); err != nil {
				return err
			}
		}
		p.remove(u)
		if in.Home {
			return p.clear(root, u)
		}
		return nil
	})
}

func (r *Room) groups(ctx context.Context, call *builtins.Call, in *pb.AccountGroupsArgs) (*pb.LuaValue, error) {
	if err := checkName(in.Name); err != nil {
		return nil, fault.On(printable(in.Name), err)
	}
	for _, group := range in.Groups {
		if err := checkName(group); err != nil {
			return nil, fault.On(printable(group), err)
		}
	}
	if len(in.Groups) == 0 && !in.Exclusive {
		a, err := r.get(ctx, call, &pb.AccountNameArgs{Name: in.Name})
		if err != nil {
			return nil, err
		}
		return texts(a.Groups), nil
	}
	out, err := r.change(ctx, call, "account.groups", in.Name, func(_ *fsys.Root, p *plan) error {
		if _, err := p.existing(in.Name); err != nil {
			return err
		}
		return p.groupsToBe(in.Name, in.Groups, in.Exclusive)
	})
	return yes(out.GetChanged()), err
}

func texts(list []string) *pb.LuaValue {
	table := &pb.LuaTable{List: true}
	for _, text := range list {
		table.Array = append(table.Array, &pb.LuaValue{Kind: &pb.LuaValue_String_{String_: []byte(text)}})
	}
	return &pb.LuaValue{Kind: &pb.LuaValue_Table{Table: table}}
}

func yes(b bool) *pb.LuaValue { return &pb.LuaValue{Kind: &pb.LuaValue_Boolean{Boolean: b}} }

// shown is how much of a name an error repeats.
const shown = 64

// printable is a name for an error: whatever was asked for is no name, it may be long.
func printable(name string) string {
	if checkName(name) == nil && len(name) <= shown {
		return name
	}
	return ""
}
