// Package account makes, changes and removes the local users of the guest, sets their passwords, and the keys by which they
// log in.
//
//	passwd, shadow, group, gshadow, subuid, subgid ─► records ─► plan (what shall be) ─► what differs
//	                                                                                        │ locked, kept by the
//	home directory, mail spool, authorized_keys ◄───────────── written ◄────────────────────┘ transaction
//
// The files are changed by the agent itself, the way shadow-utils changes them: under the locks of lckpwdf(3) and of
// shadow-utils, each replaced in one step, with the numbers and defaults of login.defs and useradd. So it is the same in a
// guest with shadow-utils, in one with BusyBox, and in a tree that is not booted, a dry run predicts the result, and all that
// is changed was kept before. No password is ever an argument or in the environment of a program.
//
// Users and groups of a directory service, such as LDAP, are seen, and not changed.
//
// On Windows the accounts are those of its security database, by the NetUser functions: see platform_windows.go for what it
// does not know.
//
// Not here: groups that are no user's own, what a user has outside of the home directory, and processes of users (process).
package account

import (
	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
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
	platform
}

// New makes the room.
func New(g *guest.Guest) *Room { return &Room{guest: g, platform: newPlatform(g)} }

// Room is what the table, the executor and the agent know of the room.
func (r *Room) Room() builtins.Room {
	room := builtins.Room{Name: "account", Scope: kind, Ops: append(r.looking(), r.changing()...)}
	capability := ""
	if r.available() {
		capability, room.Features = "reset_password", features()
	}
	room.Ops = append(room.Ops, builtins.Op{
		Name: "reset_password", Capability: capability, Summary: "set the password of a local user",
		Mutates: true, Transaction: true, Inverse: inverse,
		Access: builtins.Of(resetAccess), Handler: builtins.Handle(r.resetPassword),
	})
	return room
}

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
			Access:  builtins.Of(func(*pb.AccountListArgs) builtins.Access { return listAccess() }),
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
			AccessIn: builtins.In(r.createAccess), Handler: builtins.Handle(r.create),
		},
		{
			Name: "account.modify", Usage: "(name) changed", Summary: "change a user",
			Mutates: true, Predictable: true, Inverse: inverse,
			AccessIn: builtins.In(r.modifyAccess), Handler: builtins.Handle(r.modify),
		},
		{
			Name: "account.remove", Usage: "(name) changed", Summary: "remove a user",
			Mutates: true, Predictable: true, Inverse: inverse,
			AccessIn: builtins.In(r.removeAccess), Handler: builtins.Handle(r.remove),
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
			AccessIn: builtins.In(r.keysAccess), Handler: builtins.Handle(r.keys),
		},
		{
			Name: "account.groups", Usage: "(name, [groups])",
			Summary: "the supplementary groups of a user; with groups, or exclusive, whether setting them changed anything",
			Mutates: true, Predictable: true, Inverse: inverse,
			Readonly: builtins.Of(func(in *pb.AccountGroupsArgs) bool { return len(in.Groups) == 0 && !in.Exclusive }),
			Access:   builtins.Of(groupsAccess), Handler: builtins.Handle(r.groups),
		},
		{
			Name: inverse, Usage: "()", Summary: "put back a home directory or the owner of a file, or have caches forget a change",
			Mutates: true, Internal: true, Access: builtins.Of(inverseAccess), Handler: builtins.Handle(r.takeBack),
		},
	}
}

func object(name string) builtins.Object { return builtins.Object{Kind: kind, Name: name} }

func groupObjects(names []string) (list []builtins.Object) {
	for _, name := range names {
		if name != "" {
			list = append(list, builtins.Object{Kind: groupKind, Name: name})
		}
	}
	return list
}

func texts(list []string) *pb.LuaValue {
	table := &pb.LuaTable{List: true}
	for _, text := range list {
		table.Array = append(table.Array, &pb.LuaValue{Kind: &pb.LuaValue_String_{String_: []byte(text)}})
	}
	return &pb.LuaValue{Kind: &pb.LuaValue_Table{Table: table}}
}

func yes(b bool) *pb.LuaValue { return &pb.LuaValue{Kind: &pb.LuaValue_Boolean{Boolean: b}} }
