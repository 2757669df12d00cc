package proc

import (
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// login keeps the environment of a login of the agent's own user: to read the accounts takes some twenty system calls, and to
// see that they are the same takes one.
type login struct {
	mu    sync.Mutex
	known unix.Stat_t // of the accounts; without an inode: nothing is kept
	kept  []string
}

// accountsFile is the file that says who the agent's user is. It is replaced by another one, or has another time, where it
// changes.
const accountsFile = "/etc/passwd"

// settled is how long a file must not have changed to be known by its time: two changes may have the same.
const settled = 2 * time.Second

// env returns LoginEnv of u.
func (l *login) env(u *User) []string {
	if u != nil {
		return LoginEnv(u)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var now unix.Stat_t
	if unix.Stat(accountsFile, &now) != nil {
		return LoginEnv(nil)
	}
	if k := &l.known; k.Ino == now.Ino && k.Dev == now.Dev && k.Size == now.Size && k.Mtim == now.Mtim && k.Ctim == now.Ctim {
		return slices.Clone(l.kept)
	}
	env := LoginEnv(nil)
	l.known = unix.Stat_t{}
	if time.Since(time.Unix(now.Ctim.Unix())) > settled {
		l.known, l.kept = now, slices.Clone(env)
	}
	return env
}
