package account

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// machine stands for the accounts of Windows: of the calls that change them Wine knows a few, and ends the program on one.
type machine struct {
	users     map[string]*user
	passwords map[string]string
	groups    []string
	calls     int // of what changes something
}

func newMachine() *machine {
	return &machine{
		users: map[string]*user{
			"administrator": {name: "Administrator", rid: 500, groups: []string{"Administrators"}},
			"bob":           {name: "Bob", rid: 1001, fullName: "Bob B.", groups: []string{"Users"}},
		},
		passwords: map[string]string{}, groups: []string{"Administrators", "Users", "Remote Desktop Users"},
	}
}

func (m *machine) directory() directory {
	find := func(name string) (*user, error) {
		m.calls++
		if u := m.users[strings.ToLower(name)]; u != nil {
			return u, nil
		}
		return nil, errUserNotFound
	}
	return directory{
		get: func(name string) (*user, error) {
			u := m.users[strings.ToLower(name)]
			if u == nil {
				return nil, nil
			}
			copied := *u
			copied.groups = slices.Clone(u.groups)
			return &copied, nil
		},
		list: func() (list []*user, err error) {
			for _, u := range m.users {
				list = append(list, u)
			}
			slices.SortFunc(list, func(a, b *user) int { return strings.Compare(a.name, b.name) })
			return list, nil
		},
		add: func(name string, password []uint16, fullName string) error {
			m.calls++
			m.users[strings.ToLower(name)] = &user{name: name, fullName: fullName, rid: 1002}
			m.passwords[strings.ToLower(name)] = string(utf16.Decode(password[:len(password)-1]))
			return nil
		},
		remove: func(name string) error { m.calls++; delete(m.users, strings.ToLower(name)); return nil },
		setPassword: func(name string, password []uint16) error {
			u, err := find(name)
			if err == nil {
				m.passwords[strings.ToLower(u.name)] = string(utf16.Decode(password[:len(password)-1]))
			}
			return err
		},
		setExpired: func(name string, expired bool) error {
			u, err := find(name)
			if err == nil {
				u.expired = expired
			}
			return err
		},
		setFullName: func(name, fullName string) error {
			u, err := find(name)
			if err == nil {
				u.fullName = fullName
			}
			return err
		},
		hasGroup: func(group string) (bool, error) {
			return slices.ContainsFunc(m.groups, func(g string) bool { return strings.EqualFold(g, group) }), nil
		},
		usersGroup: func() (string, error) { return "Users", nil },
		join: func(group, name string) error {
			u, err := find(name)
			if err == nil {
				u.groups = append(u.groups, group)
			}
			return err
		},
		leave: func(group, name string) error {
			u, err := find(name)
			if err == nil {
				u.groups = slices.DeleteFunc(u.groups, func(g string) bool { return strings.EqualFold(g, group) })
			}
			return err
		},
	}
}

func (m *machine) call(t *testing.T, c *builtins.Call, name string, in proto.Message) (proto.Message, error) {
	t.Helper()
	r := New(&guest.Guest{Live: true})
	r.users = m.directory()
	for _, op := range r.Room().Ops {
		if op.Name == name {
			return op.Call(t.Context(), c, in)
		}
	}
	t.Fatal("there is no", name)
	return nil, nil
}

func (m *machine) changes(t *testing.T, c *builtins.Call, name string, in proto.Message, want bool) {
	t.Helper()
	out, err := m.call(t, c, name, in)
	if err != nil || out.(*pb.Changed).Changed != want {
		t.Fatalf("%s: %v, want %v: %v", name, out, want, err)
	}
}

// Users are made and changed once, and are then what was said.
func TestAccountsAreAsIsSaid(t *testing.T) {
	m := newMachine()
	c := &builtins.Call{}
	comment := "Alice ü"
	create := &pb.AccountCreateArgs{Name: "alice", Comment: &comment, Groups: []string{"Remote Desktop Users"}}
	m.changes(t, c, "account.create", create, true)
	m.changes(t, c, "account.create", create, false)
	if secret := m.passwords["alice"]; len(secret) < 40 {
		t.Error("a new account has the password", secret)
	}
	out, err := m.call(t, c, "account.get", &pb.AccountNameArgs{Name: "ALICE"})
	if err != nil {
		t.Fatal(err)
	}
	if a := out.(*pb.Account); a.Comment != comment || !slices.Equal(a.Groups, []string{"Users", "Remote Desktop Users"}) ||
		!a.Local {
		t.Error(a)
	}
	m.changes(t, c, "account.modify", &pb.AccountModifyArgs{Name: "alice", Groups: []string{"administrators"}}, true)
	m.changes(t, c, "account.modify", &pb.AccountModifyArgs{Name: "alice", Groups: []string{"Administrators"}}, false)
	changed, err := m.call(t, c, "account.groups", &pb.AccountGroupsArgs{Name: "alice", Groups: []string{"Users"},
		Exclusive: true})
	if err != nil || !proto.Equal(changed, yes(true)) {
		t.Error(changed, err)
	}
	if groups := m.users["alice"].groups; !slices.Equal(groups, []string{"Users"}) {
		t.Error(groups)
	}
	m.changes(t, c, "account.remove", &pb.AccountRemoveArgs{Name: "alice"}, true)
	m.changes(t, c, "account.remove", &pb.AccountRemoveArgs{Name: "alice"}, false)
	if exists, err := m.call(t, c, "account.exists", &pb.AccountNameArgs{Name: "alice"}); err != nil ||
		exists.(*pb.AccountExists).Exists {
		t.Error(exists, err)
	}
}

// What Windows does not know is refused by name, and nothing is done.
func TestRefusals(t *testing.T) {
	m := newMachine()
	uid := uint32(7)
	for _, c := range []struct {
		name string
		in   proto.Message
		want error
	}{
		{"account.create", &pb.AccountCreateArgs{Name: "x", Uid: &uid}, errors.ErrUnsupported},
		{"account.create", &pb.AccountCreateArgs{Name: "x", Home: `C:\x`}, errors.ErrUnsupported},
		{"account.create", &pb.AccountCreateArgs{Name: "x", Shell: "cmd"}, errors.ErrUnsupported},
		{"account.create", &pb.AccountCreateArgs{Name: "x", Groups: []string{"nosuch"}}, fs.ErrNotExist},
		{"account.create", &pb.AccountCreateArgs{Name: strings.Repeat("x", 21)}, fs.ErrInvalid},
		{"account.create", &pb.AccountCreateArgs{Name: `domain\x`}, fs.ErrInvalid},
		{"account.create", &pb.AccountCreateArgs{Name: ""}, fs.ErrInvalid},
		{"account.modify", &pb.AccountModifyArgs{Name: "nosuch"}, fs.ErrNotExist},
		{"account.remove", &pb.AccountRemoveArgs{Name: "Administrator"}, fault.ErrRefused},
		{"account.remove", &pb.AccountRemoveArgs{Name: "Bob", Home: true}, errors.ErrUnsupported},
		{"account.ssh_keys", &pb.AccountKeysArgs{Name: "Bob"}, errors.ErrUnsupported},
		{"reset_password", &pb.ResetPasswordRequest{Username: "nosuch", NewPassword: "x"}, fs.ErrNotExist},
		{"reset_password", &pb.ResetPasswordRequest{Username: "Bob", NewPassword: ""}, fs.ErrInvalid},
		{"reset_password", &pb.ResetPasswordRequest{Username: "Bob", NewPassword: "$6$x", Crypted: true}, errors.ErrUnsupported},
	} {
		if _, err := m.call(t, &builtins.Call{}, c.name, c.in); !errors.Is(err, c.want) {
			t.Errorf("%s %v: %v, want %v", c.name, c.in, err, c.want)
		}
	}
	if m.calls != 0 {
		t.Error("something was changed")
	}
}

// Any password arrives as it is, whatever it begins with and however long it is.
func TestPasswords(t *testing.T) {
	m := newMachine()
	for _, secret := range []string{"/add", "*", "twenty characters ok", strings.Repeat("ü", 256), "😀 & echo x", `"quoted"`} {
		out, err := m.call(t, &builtins.Call{}, "reset_password", &pb.ResetPasswordRequest{Username: "bob", NewPassword: secret})
		if err != nil || !out.(*pb.ResetPasswordResponse).Success || m.passwords["bob"] != secret {
			t.Errorf("%q is %q: %v %v", secret, m.passwords["bob"], out, err)
		}
	}
	out, err := m.call(t, &builtins.Call{}, "reset_password", &pb.ResetPasswordRequest{Username: "bob", NewPassword: "x",
		Expire: true})
	if err != nil || !out.(*pb.ResetPasswordResponse).MustChange || !m.users["bob"].expired {
		t.Error(out, err)
	}
	no := false
	m.changes(t, &builtins.Call{}, "account.password", &pb.AccountPasswordArgs{Name: "bob", Password: []byte("y"),
		Expire: &no}, true)
	if m.users["bob"].expired {
		t.Error("it must be changed still")
	}
}

// undos is a transaction that keeps what is announced to it.
type undos struct {
	builtins.Tx
	list    []*pb.AccountRestore
	forever []*pb.Change
}

func (u *undos) Undo(_ context.Context, op string, args proto.Message) error {
	if op != inverse {
		return errors.New(op)
	}
	u.list = append(u.list, proto.Clone(args).(*pb.AccountRestore))
	return nil
}

func (u *undos) Irreversible(_ context.Context, change *pb.Change) error {
	u.forever = append(u.forever, change)
	return nil
}

// The inverse of each operation restores the account, also when it runs twice; an operation without one is declared
// irreversible first.
func TestUndo(t *testing.T) {
	m := newMachine()
	tx := &undos{}
	c := &builtins.Call{Tx: tx}
	comment := "other"
	m.changes(t, c, "account.create", &pb.AccountCreateArgs{Name: "alice"}, true)
	m.changes(t, c, "account.modify", &pb.AccountModifyArgs{Name: "bob", Comment: &comment,
		Groups: []string{"Administrators"}}, true)
	if _, err := m.call(t, c, "account.groups", &pb.AccountGroupsArgs{Name: "bob", Exclusive: true}); err != nil {
		t.Fatal(err)
	}
	if len(tx.forever) != 0 {
		t.Error(tx.forever)
	}
	for _, undo := range slices.Backward(tx.list) {
		for range 2 {
			if _, err := m.call(t, &builtins.Call{Undo: true}, inverse, undo); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(m.users) != 2 || m.users["bob"].fullName != "Bob B." || !slices.Equal(m.users["bob"].groups, []string{"Users"}) {
		t.Errorf("%+v", m.users["bob"])
	}
	m.changes(t, c, "account.password", &pb.AccountPasswordArgs{Name: "bob", Password: []byte("x")}, true)
	m.changes(t, c, "account.remove", &pb.AccountRemoveArgs{Name: "bob"}, true)
	if len(tx.forever) != 2 || len(tx.list) != 3 {
		t.Error(tx.forever, tx.list)
	}
}

// A dry run predicts the run and changes nothing.
func TestDryRun(t *testing.T) {
	m := newMachine()
	steps := func(c *builtins.Call) {
		m.changes(t, c, "account.create", &pb.AccountCreateArgs{Name: "alice"}, true)
		m.changes(t, c, "account.create", &pb.AccountCreateArgs{Name: "alice", Groups: []string{"Users"}}, false)
		m.changes(t, c, "account.modify", &pb.AccountModifyArgs{Name: "alice", Groups: []string{"Administrators"}}, true)
		m.changes(t, c, "account.password", &pb.AccountPasswordArgs{Name: "alice", Password: []byte("x")}, true)
		m.changes(t, c, "account.remove", &pb.AccountRemoveArgs{Name: "alice"}, true)
		m.changes(t, c, "account.remove", &pb.AccountRemoveArgs{Name: "alice"}, false)
		m.changes(t, c, "account.remove", &pb.AccountRemoveArgs{Name: "bob"}, true)
	}
	steps(&builtins.Call{DryRun: &builtins.DryRun{}})
	if m.calls != 0 || len(m.users) != 2 {
		t.Errorf("%d calls, %d users", m.calls, len(m.users))
	}
	steps(&builtins.Call{})
}

// The accounts of the machine itself can be read; where Wine does not support that, an error is returned.
func TestAccountsOfThisMachine(t *testing.T) {
	users, err := localUsers().list()
	if err != nil {
		t.Skip("Wine does not tell all of an account: ", err)
	}
	if len(users) == 0 {
		t.Error("there is none")
	}
	if u, err := localUsers().get("quantix no such user"); u != nil || err != nil {
		t.Error(u, err)
	}
}
