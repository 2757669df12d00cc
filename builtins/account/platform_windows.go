package account

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// What Windows does not know of what scripts may say, or has its own rules for: uids, gids and primary groups, shells, home
// directories, which it makes at the first login, and the keys of its OpenSSH. It is refused by name.

// inverse is the operation that takes changes back.
const inverse = "account.take_back"

const (
	maxName     = 20  // characters of a new name (LM20_UNLEN)
	maxAnyName  = 256 // of one that is looked up (UNLEN)
	maxComment  = 256
	maxPassword = 256 // characters (PWLEN)

	firstUser = 1000 // RIDs below it are those of accounts that Windows makes itself
)

// platform is what the room needs on Windows: the accounts of this machine.
type platform struct{ users directory }

func newPlatform(*guest.Guest) platform { return platform{users: localUsers()} }

// directory are the accounts of a machine. Tests have their own: Wine does not know most of the calls.
type directory struct {
	// get returns an account; nil: there is none.
	get func(name string) (*user, error)
	// list returns all accounts.
	list func() ([]*user, error)
	// add makes an account with a password.
	add func(name string, password []uint16, fullName string) error
	// remove removes one.
	remove func(name string) error
	// setPassword sets the password of one, and setExpired whether another must be chosen at the next login.
	setPassword func(name string, password []uint16) error
	setExpired  func(name string, expired bool) error
	setFullName func(name, fullName string) error
	// hasGroup reports whether there is a local group, and usersGroup is the name of that which all users are in.
	hasGroup   func(group string) (bool, error)
	usersGroup func() (string, error)
	join       func(group, name string) error
	leave      func(group, name string) error
}

// user is one account.
type user struct {
	name, fullName, home string
	rid                  uint32
	expired              bool
	groups               []string // local ones
}

func (u *user) message() *pb.Account {
	return &pb.Account{
		Name: u.name, Uid: u.rid, Comment: u.fullName, Home: u.home, Groups: slices.Clone(u.groups), Local: true,
	}
}

// features: Windows takes no hash for a password.
func features() func() map[string]string { return nil }

// available reports whether accounts can be changed here at all.
func (r *Room) available() bool { return r.guest.Live }

// of is what the accounts are to a call.
func (r *Room) of(call *builtins.Call) (directory, error) {
	if !r.guest.Live {
		return directory{}, fault.Unsupported("the accounts of a Windows that does not run are not supported")
	}
	if call.DryRun != nil {
		return pretended(call, r.users), nil
	}
	return r.users, nil
}

func listAccess() builtins.Access { return builtins.Access{} }

func nameAccess(in *pb.AccountNameArgs) builtins.Access { return of(in.Name, nil) }

// of is the access to an account and to groups.
func of(name string, groups []string, homes ...string) builtins.Access {
	access := builtins.Access{Objects: append(groupObjects(groups), object(name))}
	for _, home := range homes {
		if home != "" { // which is refused
			access.Writes = append(access.Writes, home)
		}
	}
	return access
}

func (r *Room) createAccess(_ *fsys.Root, in *pb.AccountCreateArgs) builtins.Access {
	return of(in.Name, append([]string{in.Group}, in.Groups...), in.Home)
}

func (r *Room) modifyAccess(_ *fsys.Root, in *pb.AccountModifyArgs) builtins.Access {
	return of(in.Name, append([]string{in.Group}, in.Groups...), in.Home)
}

func (r *Room) removeAccess(_ *fsys.Root, in *pb.AccountRemoveArgs) builtins.Access {
	return of(in.Name, nil)
}
func passwordAccess(name string) builtins.Access              { return of(name, nil) }
func resetAccess(in *pb.ResetPasswordRequest) builtins.Access { return of(in.Username, nil) }
func (r *Room) keysAccess(_ *fsys.Root, in *pb.AccountKeysArgs) builtins.Access {
	return of(in.Name, nil)
}
func groupsAccess(in *pb.AccountGroupsArgs) builtins.Access { return of(in.Name, in.Groups) }
func inverseAccess(in *pb.AccountRestore) builtins.Access   { return of(in.Name, in.Groups) }

// checkName refuses what cannot be the name of a user or a group (NetUserAdd has the list of characters).
func checkName(name string) error {
	switch {
	case name == "":
		return fault.Invalid("the name is empty")
	case utf8.RuneCountInString(name) > maxAnyName || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) ||
		strings.ContainsAny(name, `"/\[]:;|=,+*?<>@`) || strings.Trim(name, " .") == "":
		return fault.Invalid("it is no name")
	}
	return nil
}

func checkGroups(groups []string) error {
	for _, group := range groups {
		if err := checkName(group); err != nil {
			return fault.On(shownName(group), err)
		}
	}
	return nil
}

// shownName is how much of a name an error repeats.
func shownName(name string) string {
	if checkName(name) != nil || len(name) > 64 {
		return ""
	}
	return name
}

func (r *Room) exists(ctx context.Context, call *builtins.Call, in *pb.AccountNameArgs) (*pb.AccountExists, error) {
	_, err := r.get(ctx, call, in)
	if errors.Is(err, fs.ErrNotExist) {
		return &pb.AccountExists{}, nil
	}
	return &pb.AccountExists{Exists: err == nil}, err
}

func (r *Room) get(_ context.Context, call *builtins.Call, in *pb.AccountNameArgs) (*pb.Account, error) {
	if err := checkName(in.Name); err != nil {
		return nil, fault.On(shownName(in.Name), err)
	}
	_, u, err := r.existing(call, in.Name)
	if err != nil {
		return nil, fault.On(in.Name, err)
	}
	return u.message(), nil
}

// existing returns an account that must be there.
func (r *Room) existing(call *builtins.Call, name string) (directory, *user, error) {
	d, err := r.of(call)
	if err != nil {
		return d, nil, err
	}
	u, err := d.get(name)
	if err == nil && u == nil {
		err = fault.Wrapf(fs.ErrNotExist, "there is no such user")
	}
	return d, u, err
}

func (r *Room) list(_ context.Context, call *builtins.Call, in *pb.AccountListArgs) (*pb.AccountList, error) {
	d, err := r.of(call)
	if err != nil {
		return nil, err
	}
	users, err := d.list()
	if err != nil {
		return nil, err
	}
	out := &pb.AccountList{}
	for _, u := range users {
		if in.System == nil || *in.System == (u.rid < firstUser) {
			out.Accounts = append(out.Accounts, u.message())
		}
	}
	return out, nil
}

// foreign refuses what Windows does not know.
func foreign(given map[string]bool) error {
	var names []string
	for name, is := range given {
		if is {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	return fault.Unsupported("Windows has no %s of this kind", strings.Join(names, ", "))
}

func (r *Room) create(ctx context.Context, call *builtins.Call, in *pb.AccountCreateArgs) (*pb.Changed, error) {
	err := checkName(in.Name)
	if err == nil && utf8.RuneCountInString(in.Name) > maxName {
		err = fault.Invalid("the name has more than %d characters", maxName)
	}
	if err == nil {
		err = foreign(map[string]bool{
			"uid": in.Uid != nil, "gid": in.Gid != nil, "group": in.Group != "", "home": in.Home != "", "shell": in.Shell != "",
			"system": in.System, "non_unique": in.NonUnique, "create_home": in.GetCreateHome(),
		})
	}
	if err == nil {
		err = r.checkWish(call, in.Groups, in.Comment)
	}
	if err != nil {
		return nil, fault.On(shownName(in.Name), err)
	}
	changed, err := r.make(ctx, call, in)
	return &pb.Changed{Changed: changed}, fault.On(in.Name, err)
}

func (r *Room) checkWish(call *builtins.Call, groups []string, comment *string) error {
	if comment != nil && (utf8.RuneCountInString(*comment) > maxComment || strings.ContainsFunc(*comment, unicode.IsControl)) {
		return fault.Invalid("the comment is longer than %d characters, or has control characters", maxComment)
	}
	if err := checkGroups(groups); err != nil {
		return err
	}
	d, err := r.of(call)
	if err != nil {
		return err
	}
	for _, group := range groups {
		there, err := d.hasGroup(group)
		if err == nil && !there {
			err = fault.Wrapf(fs.ErrNotExist, "there is no such local group")
		}
		if err != nil {
			return fault.On(group, err)
		}
	}
	return nil
}

// make creates the account, with a random password that is not returned, or changes an existing one to what the request says.
func (r *Room) make(ctx context.Context, call *builtins.Call, in *pb.AccountCreateArgs) (bool, error) {
	d, err := r.of(call)
	if err != nil {
		return false, err
	}
	u, err := d.get(in.Name)
	if err != nil {
		return false, err
	}
	if u != nil {
		return r.become(ctx, call, "account.create", d, u, in.Comment, in.Groups, false)
	}
	users, err := d.usersGroup()
	if err != nil {
		return false, err
	}
	if err := announce(ctx, call, &pb.AccountRestore{Name: in.Name, Remove: true}); err != nil {
		return false, err
	}
	secret := encode([]byte(rand.Text() + "a-A1" + rand.Text())) // of all kinds of characters, whatever the policy asks for
	defer clear(secret)
	comment := ""
	if in.Comment != nil {
		comment = *in.Comment
	}
	if err := d.add(in.Name, secret, comment); err != nil {
		return false, err
	}
	for _, group := range append([]string{users}, in.Groups...) {
		if err := d.join(group, in.Name); err != nil {
			return false, fault.On(group, err)
		}
	}
	if u, err = d.get(in.Name); err == nil && u == nil {
		err = fault.Wrapf(fault.ErrOutput, "Windows has not made it")
	}
	if err != nil {
		return false, err
	}
	call.ReportApplied(&pb.Change{Op: "account.create", Target: in.Name, Action: "created"})
	return true, nil
}

// announce records in the transaction how to go back.
func announce(ctx context.Context, call *builtins.Call, was *pb.AccountRestore) error {
	if call.Tx == nil {
		return nil
	}
	return call.Tx.Undo(ctx, inverse, was)
}

// become sets the comment and the groups of an account; exclusive removes it from all groups that are not listed.
func (r *Room) become(
	ctx context.Context, call *builtins.Call, op string, d directory, u *user, comment *string, groups []string, exclusive bool,
) (bool, error) {
	has := func(list []string, name string) bool {
		return slices.ContainsFunc(list, func(other string) bool { return strings.EqualFold(other, name) })
	}
	var join, leave []string
	for _, group := range groups {
		if !has(u.groups, group) && !has(join, group) {
			join = append(join, group)
		}
	}
	for _, group := range u.groups {
		if exclusive && !has(groups, group) {
			leave = append(leave, group)
		}
	}
	rename := comment != nil && *comment != u.fullName
	if !rename && len(join)+len(leave) == 0 {
		return false, nil
	}
	if err := announce(ctx, call, &pb.AccountRestore{Name: u.name, Comment: []byte(u.fullName), Groups: u.groups}); err != nil {
		return false, err
	}
	if rename {
		if err := d.setFullName(u.name, *comment); err != nil {
			return false, err
		}
	}
	for _, group := range join {
		if err := d.join(group, u.name); err != nil {
			return false, fault.On(group, err)
		}
	}
	for _, group := range leave {
		if err := d.leave(group, u.name); err != nil {
			return false, fault.On(group, err)
		}
	}
	call.ReportApplied(&pb.Change{Op: op, Target: u.name, Action: "modified"})
	return true, nil
}

func (r *Room) modify(ctx context.Context, call *builtins.Call, in *pb.AccountModifyArgs) (*pb.Changed, error) {
	err := checkName(in.Name)
	if err == nil {
		err = foreign(map[string]bool{
			"uid": in.Uid != nil, "gid": in.Gid != nil, "group": in.Group != "", "home": in.Home != "", "shell": in.Shell != "",
			"non_unique": in.NonUnique, "move_home": in.MoveHome,
		})
	}
	if err == nil {
		err = r.checkWish(call, in.Groups, in.Comment)
	}
	if err != nil {
		return nil, fault.On(shownName(in.Name), err)
	}
	d, u, err := r.existing(call, in.Name)
	changed := false
	if err == nil {
		changed, err = r.become(ctx, call, "account.modify", d, u, in.Comment, in.Groups, false)
	}
	return &pb.Changed{Changed: changed}, fault.On(in.Name, err)
}

// remove removes an account, which nothing brings back: one of the same name would have another SID.
func (r *Room) remove(ctx context.Context, call *builtins.Call, in *pb.AccountRemoveArgs) (*pb.Changed, error) {
	if err := checkName(in.Name); err != nil {
		return nil, fault.On(shownName(in.Name), err)
	}
	if in.Home {
		return nil, fault.On(in.Name, fault.Unsupported("the profile of a user is not removed on Windows"))
	}
	changed, err := r.drop(ctx, call, in.Name)
	return &pb.Changed{Changed: changed}, fault.On(in.Name, err)
}

func (r *Room) drop(ctx context.Context, call *builtins.Call, name string) (bool, error) {
	d, u, err := r.existing(call, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	case u.rid < firstUser:
		return false, fault.Refuse("it is an account of Windows itself")
	}
	change := &pb.Change{Op: "account.remove", Target: name, Action: "deleted"}
	if err := irreversible(ctx, call, change); err != nil {
		return false, err
	}
	if err := d.remove(name); err != nil {
		return false, err
	}
	if u, err := d.get(name); err != nil || u != nil {
		return false, errors.Join(fault.Wrapf(fault.ErrOutput, "it is there still"), err)
	}
	report(call, change)
	return true, nil
}

// irreversible records in the transaction a change that nothing undoes.
func irreversible(ctx context.Context, call *builtins.Call, change *pb.Change) error {
	if call.Tx == nil {
		return nil
	}
	return call.Tx.Irreversible(ctx, change)
}

// report reports a change that nothing takes back.
func report(call *builtins.Call, change *pb.Change) {
	change.State = pb.ChangeState_CHANGE_STATE_APPLIED
	if call.DryRun != nil {
		change.State = pb.ChangeState_CHANGE_STATE_WOULD
	}
	call.Report(change)
}

func (r *Room) groups(ctx context.Context, call *builtins.Call, in *pb.AccountGroupsArgs) (*pb.LuaValue, error) {
	err := checkName(in.Name)
	if err == nil {
		err = r.checkWish(call, in.Groups, nil)
	}
	if err != nil {
		return nil, fault.On(shownName(in.Name), err)
	}
	d, u, err := r.existing(call, in.Name)
	if err != nil {
		return nil, fault.On(in.Name, err)
	}
	if len(in.Groups) == 0 && !in.Exclusive {
		return texts(u.groups), nil
	}
	changed, err := r.become(ctx, call, "account.groups", d, u, nil, in.Groups, in.Exclusive)
	return yes(changed), fault.On(in.Name, err)
}

func (r *Room) keys(_ context.Context, _ *builtins.Call, in *pb.AccountKeysArgs) (*pb.LuaValue, error) {
	return nil, fault.On(shownName(in.Name), fault.Unsupported("account.ssh_keys is not there on Windows"))
}

// takeBack is the inverse. It bears that nothing was changed.
func (r *Room) takeBack(_ context.Context, call *builtins.Call, in *pb.AccountRestore) (*pb.Changed, error) {
	changed, err := r.bringBack(call, in)
	return &pb.Changed{Changed: changed}, fault.On(in.Name, err)
}

func (r *Room) bringBack(call *builtins.Call, in *pb.AccountRestore) (bool, error) {
	d, u, err := r.existing(call, in.Name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	case in.Remove:
		return true, d.remove(in.Name)
	}
	comment := string(in.Comment)
	return r.become(context.Background(), &builtins.Call{Undo: true}, inverse, d, u, &comment, in.Groups, true)
}
