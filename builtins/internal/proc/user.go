package proc

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// User is an identity to run as.
type User struct {
	Name     string
	UID, GID uint32
	// Groups are the supplementary groups, all of them: the agent's own are never passed on.
	Groups      []uint32
	Home, Shell string
}

// LookupUser finds who user and group are, by name or number, in the accounts of files. An empty user is the agent's own; an
// empty group is the user's primary one. A name counts more than a number, and a number needs no account. On Windows the
// account is one of Windows, and a group is refused: a logon has those of the user.
// supplementary adds the groups that list the user. An error is a *StartError, and wraps fs.ErrNotExist for a name that
// is not there.
func LookupUser(files *fsys.Root, user, group string, supplementary bool) (*User, error) {
	if found, err := systemUser(user, group); found != nil || err != nil {
		return found, err
	}
	accounts, err := files.Accounts()
	if err != nil {
		return nil, &StartError{Stage: "user", Object: unreadObject(err, user, group), Err: err}
	}
	found, err := findUser(accounts, user)
	if err != nil {
		return nil, err
	}
	if group != "" {
		if found.GID, err = accounts.GID(group); err != nil {
			return nil, &StartError{Stage: "user", Object: "group " + group, Err: fault.Wrapf(fs.ErrNotExist, "there is no such group")}
		}
	}
	if supplementary {
		found.Groups = accounts.GroupsOf(found.Name)
	}
	return found, nil
}

// findUser is LookupUser without the groups.
func findUser(accounts *fsys.Accounts, user string) (*User, error) {
	number, isNumber := fsys.ParseID(user)
	if user == "" {
		number, isNumber = uint32(os.Getuid()), true
	}
	account, known := accounts.User(user)
	if !known && isNumber {
		account, known = accounts.UserByID(number)
	}
	switch {
	case known:
		return &User{Name: account.Name, UID: account.UID, GID: account.GID, Home: account.Home, Shell: account.Shell}, nil
	case !isNumber:
		return nil, &StartError{Stage: "user", Object: user, Err: fault.Wrapf(fs.ErrNotExist, "there is no such user")}
	case user == "":
		return &User{Name: strconv.Itoa(int(number)), UID: number, GID: uint32(os.Getgid())}, nil
	}
	return &User{Name: user, UID: number, GID: number}, nil
}

// unreadObject returns what an error in reading the accounts kept from being found: the group if only the groups are
// missing, else the user.
func unreadObject(err error, user, group string) string {
	var first *fault.Error
	if errors.As(err, &first) && fsys.Base(first.Object) == "group" {
		return group
	}
	return user
}

// The lists of directories in which a login looks for programs.
const (
	userPath = "/usr/local/bin:/usr/bin:/bin"
	rootPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// SearchPaths returns the values that PATH may have for a command with these values in its environment, whoever it runs
// as. A program without a slash in its name is looked for in one of them.
func SearchPaths(env map[string]string) []string {
	if path, said := env["PATH"]; said {
		return []string{path}
	}
	return []string{rootPath, userPath}
}

// LoginEnv returns the environment of a fresh login of u: PATH, HOME, USER, LOGNAME, SHELL and LANG, and nothing of the
// agent's. nil is the user that the agent runs as. On Windows, where there is no such login, it is what programs need of the
// agent's own; that of another user the logon adds when the command is started.
func LoginEnv(u *User) []string {
	if env := systemEnv(u); env != nil {
		return env
	}
	if u == nil {
		u = self()
	}
	home, shell := u.Home, u.Shell
	if home == "" {
		home = "/"
	}
	if shell == "" {
		shell = "/bin/sh"
	}
	path := userPath
	if u.UID == 0 {
		path = rootPath
	}
	return []string{"PATH=" + path, "HOME=" + home, "USER=" + u.Name, "LOGNAME=" + u.Name, "SHELL=" + shell, "LANG=C.UTF-8"}
}

// LoginEnv returns what the function LoginEnv does. It reads the accounts only where they have changed.
func (r *Runner) LoginEnv(u *User) []string {
	if r == nil {
		return LoginEnv(u)
	}
	return r.login.env(u)
}

// self returns the user of this process; one without a name if the accounts cannot be read.
func self() *User {
	if files, err := fsys.Open("/"); err == nil {
		defer files.Close()
		if u, err := LookupUser(files, "", "", false); err == nil {
			return u
		}
	}
	return &User{Name: strconv.Itoa(os.Getuid()), UID: uint32(max(os.Getuid(), 0))}
}

// Environ returns an environment in which values replace what it has of the same names. They come last, in the order of
// names.
func Environ(env []string, values map[string]string) []string {
	env = slices.DeleteFunc(slices.Clone(env), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		_, given := values[name]
		return given
	})
	names := make([]string, 0, len(values))
	for name := range values {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		env = append(env, name+"="+values[name])
	}
	return env
}
