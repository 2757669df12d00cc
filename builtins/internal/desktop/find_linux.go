package desktop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/builtins/internal/sysbus"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// logind's names (org.freedesktop.login1(5)).
const (
	login1        = "org.freedesktop.login1"
	login1Path    = dbus.ObjectPath("/org/freedesktop/login1")
	login1Session = "org.freedesktop.login1.Session"
)

// origin is by what a session is known.
type origin struct {
	pid    int // a process of the session; 0: not known
	leader int // the process whose end is that of the session; 0: not known
}

// finder finds the session in front.
type finder struct {
	ctx   context.Context
	files *fsys.Root
	wake  func()

	mu  sync.Mutex
	bus *sysbus.Conn // listens to logind; nil: not connected
}

// newFinder makes a finder, which calls wake whenever front may return something else, as far as logind says.
func newFinder(ctx context.Context, files *fsys.Root, wake func()) *finder {
	return &finder{ctx: ctx, files: files, wake: wake}
}

func (f *finder) close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.bus == nil {
		return nil
	}
	bus := f.bus
	f.bus = nil
	return bus.Close()
}

// tells reports whether wake will be called when the reason for an error of front is gone.
func (f *finder) tells(err error) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bus != nil && errors.Is(err, errBackground)
}

// errBackground is the cause of an error about sessions that logind knows.
var errBackground = fmt.Errorf("%w: in the background", errors.ErrUnsupported)

// front returns the session in front. One of root is an error: no helper runs as root.
func (f *finder) front(ctx context.Context) (*Session, error) {
	if sysbus.Available() {
		seated, err := f.seated(ctx)
		if err != nil && !errors.Is(err, errors.ErrUnsupported) {
			return nil, err
		}
		if len(seated) > 0 { // so nobody else is in front, whatever other processes say
			return f.choose(seated)
		}
	}
	return findByProcesses(f.files, func(uint32) bool { return true })
}

// connect returns the connection to the bus, which listens to the signals of logind.
func (f *finder) connect() (*sysbus.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.bus != nil && f.bus.Connected() {
		return f.bus, nil
	}
	if f.bus != nil {
		f.bus.Close()
		f.bus = nil
	}
	bus, err := sysbus.Open(f.ctx)
	if err != nil {
		return nil, err
	}
	signals := make(chan *dbus.Signal, 16)
	bus.Signal(signals)
	err = bus.AddMatchSignalContext(f.ctx, dbus.WithMatchSender(login1), dbus.WithMatchPathNamespace(login1Path))
	if err != nil {
		bus.Close()
		return nil, sysbus.Error(login1, err)
	}
	go func() { // ends with the connection
		for range signals {
			f.wake()
		}
		if f.ctx.Err() == nil {
			f.wake() // the bus is gone: what it would have signalled is not known
		}
	}()
	f.bus = bus
	return bus, nil
}

// seat is a session of logind that is on a seat.
type seat struct {
	id, user, seat, kind, class, state, display string
	uid                                         uint32
	leader                                      int
	active, locked                              bool
}

// seated returns the sessions of logind that are on a seat: nobody sits in front of others, such as network logins.
func (f *finder) seated(ctx context.Context) ([]seat, error) {
	bus, err := f.connect()
	if err != nil {
		return nil, err
	}
	var list []struct {
		ID   string
		UID  uint32
		User string
		Seat string
		Path dbus.ObjectPath
	}
	if err := bus.Call(ctx, login1, login1Path, login1+".Manager.ListSessions", []any{&list}); err != nil {
		return nil, err
	}
	var all []seat
	for _, entry := range list {
		if entry.Seat == "" {
			continue
		}
		var p map[string]dbus.Variant
		err := bus.Call(ctx, login1, entry.Path, "org.freedesktop.DBus.Properties.GetAll", []any{&p}, login1Session)
		if errors.Is(err, errors.ErrUnsupported) || fault.Code(err) == "not_found" {
			continue // it has ended since
		}
		if err != nil {
			return nil, err
		}
		s := seat{
			id: entry.ID, uid: entry.UID, user: entry.User, seat: entry.Seat, display: word(p["Display"]),
			kind: word(p["Type"]), class: word(p["Class"]), state: word(p["State"]),
		}
		s.active, _ = p["Active"].Value().(bool)
		s.locked, _ = p["LockedHint"].Value().(bool)
		leader, _ := p["Leader"].Value().(uint32)
		s.leader = int(leader)
		all = append(all, s)
	}
	return all, nil
}

func word(v dbus.Variant) string {
	s, _ := v.Value().(string)
	return s
}

// choose returns the graphical session that is in front on a seat, before others on seat0.
func (f *finder) choose(seated []seat) (*Session, error) {
	var front *Session
	var console *seat // a text session in front
	var behind []string
	login := false
	for i, entry := range seated {
		there := entry.active && entry.state != "closing" // else its user has left
		if entry.class != "user" {                        // a login screen
			login = login || there
			continue
		}
		if entry.kind != "x11" && entry.kind != "wayland" {
			if there && (console == nil || entry.seat == "seat0") {
				console = &seated[i]
			}
			continue
		}
		s := f.session(&entry, entry.kind)
		s.Display = entry.display
		if entry.kind == "wayland" {
			s.Display = "" // what logind has there is the display of Xwayland
		}
		if !there {
			behind = append(behind, s.String())
			continue
		}
		if front == nil || s.Seat == "seat0" {
			front = s
		}
	}
	switch {
	case front != nil && front.User.UID == 0:
		return nil, fault.Wrapf(errBackground, "the %v is in front: nothing is done in a desktop of root", front)
	case front != nil:
		return front, nil
	case console != nil && console.uid != 0:
		// It may have become a graphical one that logind does not know of, as startx makes it.
		s, err := findByProcesses(f.files, func(uid uint32) bool { return uid == console.uid })
		if err == nil {
			found := f.session(console, s.Type)
			found.Display, found.pid = s.Display, s.pid
			return found, nil
		}
		if !errors.Is(err, errors.ErrUnsupported) {
			return nil, err
		}
	}
	switch {
	case len(behind) > 0:
		return nil, fault.Wrapf(errBackground, "no graphical session is in front; in the background, or ending: %s",
			strings.Join(behind, ", "))
	case console != nil:
		return nil, fault.Unsupported("no graphical session is in front: %s is, with a text session", console.user)
	case login:
		return nil, fault.Wrapf(errBackground, "no graphical session is in front: nobody has logged in at the screen")
	}
	return nil, fault.Wrapf(errBackground, "there is no graphical session in this guest")
}

// session returns the session that logind knows.
func (f *finder) session(entry *seat, kind string) *Session {
	return &Session{
		ID: entry.id, Type: kind, Seat: entry.seat, User: f.user(entry.uid, entry.user), Locked: entry.locked,
		origin: origin{leader: entry.leader},
	}
}

// user returns who a user is. One that has no line in the accounts is completed by environment.
func (f *finder) user(uid uint32, name string) *proc.User {
	number := strconv.FormatUint(uint64(uid), 10)
	if f.files != nil {
		if u, err := proc.LookupUser(f.files, number, "", true); err == nil && u.Name != number {
			return u
		}
	}
	if name == "" {
		name = number
	}
	return &proc.User{Name: name, UID: uid, GID: uid}
}

// environment returns the environment of a helper in a session, and notes its display.
func (f *finder) environment(s *Session) ([]string, error) {
	if s.User.UID == 0 {
		return nil, fault.Unsupported("no session helper is started as root")
	}
	found, err := sessionProcess(s)
	if err != nil {
		return nil, err
	}
	if f.files == nil || !f.known(s.User.UID) {
		if err := found.identify(s.User); err != nil {
			return nil, err
		}
	}
	s.Display = withoutScreen(found.env["DISPLAY"])
	if s.Type == "wayland" {
		s.Display = found.env["WAYLAND_DISPLAY"]
	}
	return proc.Environ(proc.LoginEnv(s.User), found.env), nil
}

// known reports whether the accounts have a user.
func (f *finder) known(uid uint32) bool {
	accounts, err := f.files.Accounts()
	if err != nil {
		return false
	}
	return slices.ContainsFunc(accounts.Users, func(u fsys.User) bool { return u.UID == uid })
}

// watchEnd has a function called when a process ends, unless unwatch comes first: logind does not report that the leader of a
// session has, while other processes of it are left.
func watchEnd(pid int, ended func()) (unwatch func(), err error) {
	if pid <= 0 {
		return nil, errors.ErrUnsupported
	}
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "pidfd")
	conn, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := conn.Read(func(fd uintptr) bool {
			ready, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return ready > 0
		})
		if err == nil {
			ended()
		}
	}()
	return func() {
		file.SetReadDeadline(time.Unix(1, 0))
		<-done
		file.Close()
	}, nil
}

func (*finder) startHelper(args, env []string, s *Session) (*process, error) {
	p, err := proc.StartPeer(proc.PeerSpec{Args: args, Env: env, User: s.User})
	if err != nil {
		return nil, err
	}
	return &process{channel: p.Channel, pid: p.PID, done: p.Done, how: p.How, kill: p.Kill}, nil
}
