package account

import (
	"cmp"
	"context"
	"io/fs"
	"slices"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// read returns what everybody may read of the accounts.
func (r *Room) read(call *builtins.Call) (*database, *fsys.Root, error) {
	root, err := r.files(call)
	if err != nil {
		return nil, nil, err
	}
	db := &database{}
	if db.passwd, err = readRecords(root, passwdFile); err != nil {
		return nil, nil, err
	}
	db.group, err = readRecords(root, groupFile)
	return db, root, err
}

func (r *Room) exists(ctx context.Context, call *builtins.Call, in *pb.AccountNameArgs) (*pb.AccountExists, error) {
	a, err := r.lookUp(ctx, call, in.Name)
	return &pb.AccountExists{Exists: a != nil}, err
}

func (r *Room) get(ctx context.Context, call *builtins.Call, in *pb.AccountNameArgs) (*pb.Account, error) {
	a, err := r.lookUp(ctx, call, in.Name)
	if err == nil && a == nil {
		err = fault.On(in.Name, fault.Wrapf(fs.ErrNotExist, "there is no such user"))
	}
	return a, err
}

// lookUp returns the user of a name; nil: there is none.
func (r *Room) lookUp(ctx context.Context, call *builtins.Call, name string) (*pb.Account, error) {
	if err := checkName(name); err != nil {
		return nil, fault.On(printable(name), err)
	}
	db, root, err := r.read(call)
	if err != nil {
		return nil, err
	}
	u, err := db.user(name)
	if err != nil {
		return nil, fault.On(name, err)
	}
	if u != nil {
		return db.account(u), nil
	}
	line, err := r.names(ctx, root).ask("passwd", name)
	if err != nil || len(line) != 7 {
		return nil, fault.On(name, err)
	}
	if u, ok := userOf(line); ok {
		a := db.account(u)
		a.Local = false
		return a, nil
	}
	return nil, nil
}

func (r *Room) list(_ context.Context, call *builtins.Call, in *pb.AccountListArgs) (*pb.AccountList, error) {
	db, root, err := r.read(call)
	if err != nil {
		return nil, err
	}
	names, groups := map[uint32]string{}, map[string][]string{}
	db.eachGroup(func(g group) {
		if names[g.gid] == "" {
			names[g.gid] = g.name
		}
		for _, member := range g.members {
			if !slices.Contains(groups[member], g.name) {
				groups[member] = append(groups[member], g.name)
			}
		}
	})
	out, first := &pb.AccountList{}, readDefaults(root).id("UID_MIN", 1000)
	db.eachUser(func(u *user) {
		if in.System == nil || *in.System == (u.uid < first) {
			out.Accounts = append(out.Accounts, accountOf(u, names[u.gid], groups[u.name]))
		}
	})
	return out, nil
}

// account describes a user of the files.
func (db *database) account(u *user) *pb.Account {
	primary := ""
	if g := db.groupWhere(func(g group) bool { return g.gid == u.gid }); g != nil {
		primary = g.name
	}
	return accountOf(u, primary, db.groupsOf(u.name))
}

// accountOf describes a user whose primary group has this name; empty: there is none.
func accountOf(u *user, primary string, groups []string) *pb.Account {
	return &pb.Account{
		Name: u.name, Uid: u.uid, Gid: u.gid, Group: cmp.Or(primary, formatID(u.gid)), Groups: groups,
		Home: u.home, Shell: u.shell, Comment: u.comment, Local: true,
	}
}
