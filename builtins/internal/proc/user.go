package proc

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
)

// User is an identity to run as.
type User struct {
	Name     string
	UID, GID uint32
	// Groups are the supplementary groups, all of them: the agent's own are never passed on.
	Groups      []uint32
	Home, Shell string
}

// LookupUser finds who user and group are, by name or number, in the passwd and group files under root. An empty user is
// the agent's own; an empty group is the user's primary one. supplementary adds the groups that list the user. The error
// wraps fs.ErrNotExist for a name that is not there.
func LookupUser(root, user, group string, supplementary bool) (*User, error) {
	if err := checkIdentities(); err != nil {
		return nil, err
	}
	found := &User{Name: user}
	number, isNumber := parseID(user)
	if user == "" {
		number, isNumber = uint32(os.Getuid()), true
	}
	known := false
	err := eachEntry(root, "etc/passwd", 7, func(f []string) bool {
		uid, uidOK := parseID(f[2])
		gid, gidOK := parseID(f[3])
		if !uidOK || !gidOK || f[0] != user && !(isNumber && uid == number) {
			return true
		}
		if !known || f[0] == user { // a name counts more than a number
			found = &User{Name: f[0], UID: uid, GID: gid, Home: f[5], Shell: f[6]}
		}
		known = true
		return f[0] != user
	})
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, &StartError{Stage: "user", Object: user, Err: err}
	case !known && !isNumber:
		return nil, &StartError{Stage: "user", Object: user, Err: fs.ErrNotExist}
	case !known && user != "":
		found = &User{Name: user, UID: number, GID: number}
	case !known:
		found = &User{Name: strconv.Itoa(int(number)), UID: number, GID: uint32(os.Getgid())}
	}
	return found, found.addGroups(root, group, supplementary)
}

// addGroups sets the groups of a user.
func (u *User) addGroups(root, group string, supplementary bool) error {
	number, isNumber := parseID(group)
	named := group == ""
	err := eachEntry(root, "etc/group", 4, func(f []string) bool {
		gid, ok := parseID(f[2])
		if !ok {
			return true
		}
		if group != "" && f[0] == group {
			u.GID, named = gid, true
		}
		if supplementary && slices.Contains(strings.Split(f[3], ","), u.Name) && !slices.Contains(u.Groups, gid) {
			u.Groups = append(u.Groups, gid)
		}
		return true
	})
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return &StartError{Stage: "user", Object: group, Err: err}
	case !named && isNumber:
		u.GID = number
	case !named:
		return &StartError{Stage: "user", Object: "group " + group, Err: fs.ErrNotExist}
	}
	return nil
}

// The lists of directories in which a login looks for programs.
const (
	userPath = "/usr/local/bin:/usr/bin:/bin"
	rootPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// SearchPaths are the lists by one of which a program without a slash is looked for, for a command with these values in
// its environment, whoever it runs as.
func SearchPaths(env map[string]string) []string {
	if path, said := env["PATH"]; said {
		return []string{path}
	}
	return []string{rootPath, userPath}
}

// LoginEnv is the environment of a fresh login of u: PATH, HOME, USER, LOGNAME, SHELL and LANG, and nothing of the
// agent's. nil is the user that the agent runs as.
func LoginEnv(u *User) []string {
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
	return append([]string{"PATH=" + path, "HOME=" + home, "USER=" + u.Name, "LOGNAME=" + u.Name, "SHELL=" + shell,
		"LANG=C.UTF-8"}, systemEnv()...)
}

// self is the user of this process.
func self() *User {
	if u, err := LookupUser("/", "", "", false); err == nil {
		return u
	}
	return &User{Name: strconv.Itoa(os.Getuid()), UID: uint32(max(os.Getuid(), 0))}
}

// Environ puts values into an environment in place of what it has of that name, in the order of names.
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

// eachEntry gives the lines of a colon-separated file under root that have enough fields, until f says no.
func eachEntry(root, name string, fields int, f func([]string) bool) error {
	open := func() (*os.File, error) { return os.OpenInRoot(root, name) } // an image's links must not lead out of it
	if root == "" || root == "/" {
		open = func() (*os.File, error) { return os.Open("/" + name) }
	}
	file, err := open()
	if err != nil {
		return err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20) // a group of thousands is one line
	for lines.Scan() {
		if entry := strings.Split(lines.Text(), ":"); len(entry) >= fields && !f(entry) {
			break
		}
	}
	return lines.Err()
}

func parseID(text string) (uint32, bool) {
	n, err := strconv.ParseUint(text, 10, 32)
	return uint32(n), err == nil && n != 1<<32-1 // which means "no change" to the kernel
}
