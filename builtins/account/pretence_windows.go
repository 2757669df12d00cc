package account

import (
	"slices"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins"
)

// pretended are the accounts as a dry run pretends them: what was changed is kept, all else is asked of the real ones.
func pretended(call *builtins.Call, real directory) directory {
	if call.DryRun.Pretended == nil {
		call.DryRun.Pretended = map[string]any{}
	}
	users, ok := call.DryRun.Pretended[kind].(map[string]*user) // by the name in lower case; nil: removed
	if !ok {
		users = map[string]*user{}
		call.DryRun.Pretended[kind] = users
	}
	get := func(name string) (*user, error) {
		if u, known := users[strings.ToLower(name)]; known {
			return u, nil
		}
		return real.get(name)
	}
	change := func(name string, f func(*user)) error {
		u, err := get(name)
		if err != nil || u == nil {
			return err
		}
		with := *u
		with.groups = slices.Clone(u.groups)
		f(&with)
		users[strings.ToLower(name)] = &with
		return nil
	}
	return directory{
		get: get,
		list: func() (list []*user, err error) {
			all, err := real.list()
			for _, u := range all {
				if _, known := users[strings.ToLower(u.name)]; !known {
					list = append(list, u)
				}
			}
			for _, u := range users {
				if u != nil {
					list = append(list, u)
				}
			}
			slices.SortFunc(list, func(a, b *user) int { return strings.Compare(strings.ToLower(a.name), strings.ToLower(b.name)) })
			return list, err
		},
		add: func(name string, _ []uint16, fullName string) error {
			users[strings.ToLower(name)] = &user{name: name, fullName: fullName, rid: firstUser}
			return nil
		},
		remove:      func(name string) error { users[strings.ToLower(name)] = nil; return nil },
		setPassword: func(string, []uint16) error { return nil },
		setExpired:  func(name string, expired bool) error { return change(name, func(u *user) { u.expired = expired }) },
		setFullName: func(name, fullName string) error { return change(name, func(u *user) { u.fullName = fullName }) },
		hasGroup:    real.hasGroup,
		usersGroup:  real.usersGroup,
		join: func(group, name string) error {
			return change(name, func(u *user) { u.groups = append(u.groups, group) })
		},
		leave: func(group, name string) error {
			return change(name, func(u *user) {
				u.groups = slices.DeleteFunc(u.groups, func(other string) bool { return strings.EqualFold(other, group) })
			})
		},
	}
}
