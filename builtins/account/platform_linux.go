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

// platform is what the room needs on Linux.
type platform struct {
	edit *edit.Editor
	now  func() time.Time
	proc string // where the processes of the guest are seen
}

func newPlatform(g *guest.Guest) platform {
	return platform{edit: &edit.Editor{Guest: g, Guard: g.Guard}, now: time.Now, proc: "/proc"}
}

// features says that this agent takes a hash for a password.
func features() func() map[string]string {
	return func() map[string]string { return map[string]string{"reset_password": "crypted"} }
}

func listAccess() builtins.Access { return builtins.Access{Reads: public} }

// public are the files that everybody reads: what is changed in them is shown.
var public = []string{passwdFile, groupFile}

// shownFiles are those of all: the list of changes shows what was in them.
var shownFiles = []string{passwdFile, groupFile, subuidFile, subgidFile}

// all are the files that a new or a removed user changes.
var all = []string{passwdFile, groupFile, shadowFile, gshadowFile, subuidFile, subgidFile}

func nameAccess(in *pb.AccountNameArgs) builtins.Access {
	return builtins.Access{Objects: []builtins.Object{object(in.Name)}, Reads: public}
}

func passwordAccess(name string) builtins.Access {
	access := resetAccess(&pb.ResetPasswordRequest{Username: name})
	access.Reads = []string{passwdFile}
	return access
}

func inverseAccess(in *pb.JournalObject) builtins.Access {
	switch {
	case in.MovedTo != "":
		return builtins.Access{Writes: []string{in.MovedTo, in.Path}, Trees: []string{in.MovedTo}}
	case in.Path == "":
		return builtins.Access{Writes: public}
	}
	return builtins.Access{Writes: []string{in.Path}}
}

// resetAccess is that of a host, which is shown no changes.
func resetAccess(in *pb.ResetPasswordRequest) builtins.Access {
	return builtins.Access{Objects: []builtins.Object{object(in.Username)}, Writes: []string{passwdFile, shadowFile}}
}

func groupsAccess(in *pb.AccountGroupsArgs) builtins.Access {
	access := builtins.Access{Objects: append(groupObjects(in.Groups), object(in.Name)), Reads: public}
	if len(in.Groups) > 0 || in.Exclusive {
		access.Writes = []string{groupFile, gshadowFile}
	}
	return access
}

// wishAccess is that of making a user what is wished. home is the directory that may be made, or is written down; empty: none.
func (r *Room) wishAccess(files *fsys.Root, w *wish, writes []string, home string) builtins.Access {
	access := builtins.Access{
		Objects: append(groupObjects(append([]string{w.group}, w.groups...)), object(w.name)),
		Reads:   append(slices.Clone(shownFiles), loginDefs, useraddFile, vendorDir+loginDefs, vendorDir+useraddFile),
		Writes:  slices.Clone(writes),
	}
	if home != "" {
		access.Writes = append(access.Writes, home)
	}
	if w.uid == nil && w.gid == nil && w.group == "" && !w.moveHome || checkName(w.name) != nil {
		return access
	}
	if owned := r.homeOf(files, w.name); checkPath("home", owned) == nil { // what is in it may get another owner, or goes away
		access.Writes, access.Trees = append(access.Writes, owned), []string{owned}
	}
	return access
}

// createAccess has the skeleton, which is copied to where its user reads it, and the mail spool.
func (r *Room) createAccess(files *fsys.Root, in *pb.AccountCreateArgs) builtins.Access {
	w, home, d := createWish(in), cleanHome(in.Home), r.defaults(files)
	named := checkNewName(w.name) == nil
	if home == "" && named {
		home = r.homeOf(files, w.name)
	}
	access := r.wishAccess(files, w, all, home)
	if w.wantsHome() {
		access.Reads, access.Trees = append(access.Reads, d.skeleton()), append(access.Trees, d.skeleton())
	}
	if named && d.makesMail(w.system) {
		access.Writes = append(access.Writes, d.mailOf(w.name))
	}
	return access
}

func (r *Room) modifyAccess(files *fsys.Root, in *pb.AccountModifyArgs) builtins.Access {
	return r.wishAccess(files, modifyWish(in), []string{passwdFile, groupFile, gshadowFile}, cleanHome(in.Home))
}

func (r *Room) removeAccess(files *fsys.Root, in *pb.AccountRemoveArgs) builtins.Access {
	access := builtins.Access{Objects: []builtins.Object{object(in.Name)}, Reads: shownFiles, Writes: all}
	if !in.Home || checkName(in.Name) != nil {
		return access
	}
	access.Writes = append(slices.Clone(all), r.defaults(files).mailOf(in.Name))
	if home := r.homeOf(files, in.Name); checkPath("home", home) == nil {
		access.Writes, access.Trees = append(access.Writes, home), []string{home}
	}
	return access
}

func (r *Room) keysAccess(files *fsys.Root, in *pb.AccountKeysArgs) builtins.Access {
	access := builtins.Access{Objects: []builtins.Object{object(in.Name)}, Reads: public}
	if checkName(in.Name) != nil {
		return access
	}
	home := r.homeOf(files, in.Name)
	if checkPath("home", home) != nil {
		return access
	}
	file := fsys.Join(home, keysFile)
	access.Reads = append(slices.Clone(public), file)
	if len(in.Keys) > 0 || in.Exclusive {
		access.Writes = []string{file}
	}
	return access
}

// homeOf is the home directory of a user, or what it would be, in the files that a call acts on; nil: the guest's own.
func (r *Room) homeOf(files *fsys.Root, name string) string {
	if files == nil {
		files = r.guest.Files
	}
	if files != nil {
		if passwd, err := readRecords(files, passwdFile); err == nil {
			if line, at, err := passwd.find(name, 7); err == nil && at >= 0 {
				return cleanHome(line[5])
			}
		}
	}
	return r.defaults(files).home(name)
}

func (r *Room) defaults(files *fsys.Root) defaults {
	if files == nil {
		files = r.guest.Files
	}
	if files == nil {
		return defaults{}
	}
	return readDefaults(files)
}

// available reports whether accounts can be changed here at all.
func (r *Room) available() bool {
	if r.guest.Files == nil {
		return false
	}
	passwd, err := readRecords(r.guest.Files, passwdFile)
	return err == nil && !passwd.absent
}

// files is the file system that a call acts on.
func (r *Room) files(call *builtins.Call) (*fsys.Root, error) {
	root := r.guest.Of(call)
	if root == nil {
		return nil, fault.Unsupported("accounts are not supported here")
	}
	return root, nil
}

func createWish(in *pb.AccountCreateArgs) *wish {
	return &wish{
		name: in.Name, uid: in.Uid, gid: in.Gid, group: in.Group, groups: in.Groups, home: cleanHome(in.Home), shell: in.Shell,
		comment: in.Comment, system: in.System, createHome: in.CreateHome, nonUnique: in.NonUnique, force: in.Force,
	}
}

func modifyWish(in *pb.AccountModifyArgs) *wish {
	return &wish{
		name: in.Name, uid: in.Uid, gid: in.Gid, group: in.Group, groups: in.Groups, home: cleanHome(in.Home), shell: in.Shell,
		comment: in.Comment, moveHome: in.MoveHome, nonUnique: in.NonUnique, force: in.Force,
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
		if err := p.furnish(root, u, w); err != nil {
			return err
		}
		if p.home != nil && !call.Checked.IsAbout(p.home.skeleton) {
			return fault.On(useraddFile, fault.Wrapf(fault.ErrChanged, "it names another skeleton now"))
		}
		return nil
	})
}

func (r *Room) modify(ctx context.Context, call *builtins.Call, in *pb.AccountModifyArgs) (*pb.Changed, error) {
	w := modifyWish(in)
	if err := w.check(false); err != nil {
		return nil, fault.On(printable(in.Name), err)
	}
	return r.change(ctx, call, "account.modify", in.Name, func(root *fsys.Root, p *plan) error {
		u, err := p.existing(w.name)
		if err != nil {
			return err
		}
		was := *u
		if err := p.modify(u, w); err != nil {
			return err
		}
		if w.moveHome {
			if err := p.moveHome(root, &was, u); err != nil {
				return err
			}
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

// longestShown is how much of a name an error repeats.
const longestShown = 64

// printable is a name for an error: whatever was asked for is no name, it may be long.
func printable(name string) string {
	if checkName(name) == nil && len(name) <= longestShown {
		return name
	}
	return ""
}
