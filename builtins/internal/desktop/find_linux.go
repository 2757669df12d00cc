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

// newFinder makes a finder, which calls wake whenever front may return something else, as far as logind tells.
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

// tells says whether wake is called when the reason for an error of front is gone.
func (f *finder) tells(err error) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bus != nil && errors.Is(err, errBackground)
}

// errBackground is the cause of an error about sessions that logind knows.
var errBackground = fmt.Errorf("%w: in the background", errors.ErrUnsupported)

// front returns the session in front.
func (f *finder) front(ctx context.Context) (*Session, error) {
	if sysbus.Available() {
		session, err := f.byLogind(ctx)
		if session != nil || err != nil && !errors.Is(err, errors.ErrUnsupported) || errors.Is(err, errBackground) {
			return session, err
		}
	}
	return findByProcesses(f.files)
}

// connect returns the connection to the bus, which listens to what logind tells.
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
			f.wake() // the bus is gone: what it would have told is not known
		}
	}()
	f.bus = bus
	return bus, nil
}

// byLogind returns the graphical session in front; nil without an error: logind knows no graphical session.
func (f *finder) byLogind(ctx context.Context) (*Session, error) {
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
	var front *Session
	var behind []string
	for _, entry := range list {
		if entry.Seat == "" {
			continue // of a network login: nobody sits in front of it
		}
		var p map[string]dbus.Variant
		err := bus.Call(ctx, login1, entry.Path, "org.freedesktop.DBus.Properties.GetAll", []any{&p}, login1Session)
		if errors.Is(err, errors.ErrUnsupported) || fault.Code(err) == "not_found" {
			continue // it has ended since
		}
		if err != nil {
			return nil, err
		}
		kind, class := text(p["Type"]), text(p["Class"])
		if kind != "x11" && kind != "wayland" || class != "user" {
			continue
		}
		s := &Session{ID: entry.ID, Type: kind, Seat: entry.Seat, Display: text(p["Display"])}
		s.Locked, _ = p["LockedHint"].Value().(bool)
		leader, _ := p["Leader"].Value().(uint32)
		s.leader = int(leader)
		if kind == "wayland" {
			s.Display = "" // what logind has there is the display of Xwayland
		}
		s.User = f.user(entry.UID, entry.User)
		if active, _ := p["Active"].Value().(bool); !active || text(p["State"]) == "closing" { // its user has left
			behind = append(behind, s.String())
			continue
		}
		if front == nil || s.Seat == "seat0" {
			front = s
		}
	}
	if front == nil && len(behind) > 0 {
		return nil, fault.Wrapf(errBackground, "no graphical session is in front; in the background, or ending: %s",
			strings.Join(behind, ", "))
	}
	return front, nil
}

func text(v dbus.Variant) string {
	s, _ := v.Value().(string)
	return s
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
	found, err := sessionProcess(s)
	if err != nil {
		return nil, err
	}
	if f.files == nil || !f.known(s.User.UID) {
		if err := found.identity(s.User); err != nil {
			return nil, err
		}
	}
	s.Display = withoutScreen(found.env["DISPLAY"])
	if s.Type == "wayland" {
		s.Display = found.env["WAYLAND_DISPLAY"]
	}
	return proc.Environ(proc.LoginEnv(s.User), found.env), nil
}

// known says whether the accounts have a user.
func (f *finder) known(uid uint32) bool {
	accounts, err := f.files.Accounts()
	if err != nil {
		return false
	}
	return slices.ContainsFunc(accounts.Users, func(u fsys.User) bool { return u.UID == uid })
}

// watchEnd has a function called when a process ends, unless unwatch comes first: logind does not tell that the leader of a
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

func startHelper(args, env []string, user *proc.User) (*process, error) {
	p, err := proc.StartPeer(proc.PeerSpec{Args: args, Env: env, User: user})
	if err != nil {
		return nil, err
	}
	return &process{channel: p.Channel, pid: p.PID, done: p.Done, how: p.How, kill: p.Kill}, nil
}
