package desktop

import (
	"context"
	"errors"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/desktop/helper"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// origin is by what a session is known.
type origin struct {
	number uint32 // of Windows
	leader int    // nobody asks for it
}

// finder finds the session at the console: the one that the display and the keyboard of the guest belong to. A session by
// Remote Desktop has displays of its own, which are those of its client.
type finder struct{ console consoleAPI }

// consoleAPI are the calls about sessions.
type consoleAPI struct {
	// active returns the session at the console; false: none, as while it is switched.
	active func() (session uint32, ok bool)
	// token returns a token of the user who is logged on there. The caller closes it. 0: the agent's own is the user's.
	token func(session uint32) (windows.Token, error)
	// locked reports whether the screen is locked.
	locked func(session uint32) (bool, error)
}

func newFinder(context.Context, *fsys.Root, func()) *finder {
	return &finder{consoleAPI{activeConsole, consoleToken, consoleLocked}}
}

// front returns the session at the console, where a user is logged on there.
func (f *finder) front(context.Context) (*Session, error) {
	number, ok := f.console.active()
	if !ok {
		return nil, fault.Unsupported("no session is at the console at present")
	}
	token, err := f.console.token(number)
	if err != nil {
		return nil, err
	}
	user, err := userOf(token)
	if err != nil {
		return nil, fault.On("the user at the console", err)
	}
	locked, err := f.console.locked(number)
	if err != nil {
		return nil, fault.On("the session at the console", err)
	}
	return &Session{
		ID: strconv.FormatUint(uint64(number), 10), Type: "windows", Seat: "console", User: user, Locked: locked,
		origin: origin{number: number},
	}, nil
}

// userOf returns whose a token is, and closes it.
func userOf(token windows.Token) (*proc.User, error) {
	own := token
	if token == 0 {
		own = windows.GetCurrentProcessToken()
	} else {
		defer token.Close()
	}
	user, err := own.GetTokenUser()
	if err != nil {
		return nil, fault.Cause(err)
	}
	name, domain, _, err := user.User.Sid.LookupAccount("")
	if err != nil {
		return nil, fault.Cause(err)
	}
	return &proc.User{Name: domain + `\` + name}, nil
}

// environment returns nothing: it comes with the token.
func (*finder) environment(*Session) ([]string, error) { return nil, nil }

// tells returns false: the service manager reports changes of sessions, and the finder does not.
func (*finder) tells(error) bool { return false }

func (*finder) close() error { return nil }

// watchEnd has nothing to watch: Changed is called at the end of a session.
func watchEnd(int, func()) (func(), error) { return nil, errors.ErrUnsupported }

// startHelper starts the helper in a session, as its user.
func (f *finder) startHelper(args, _ []string, s *Session) (*process, error) {
	token, err := f.console.token(s.number)
	if err != nil {
		return nil, err
	}
	env := os.Environ()
	if token != 0 {
		defer token.Close()
		if env, err = token.Environ(false); err != nil {
			return nil, os.NewSyscallError("CreateEnvironmentBlock", err)
		}
	}
	p, err := proc.StartPeer(proc.PeerSpec{Args: args, Env: env, Token: token, Memory: helper.Memory})
	if err != nil {
		return nil, err
	}
	return &process{channel: p.Channel, pid: p.PID, done: p.Done, how: p.How, kill: p.Kill}, nil
}

func activeConsole() (session uint32, ok bool) {
	session = windows.WTSGetActiveConsoleSessionId()
	return session, session != ^uint32(0)
}

// consoleToken returns a token of the user of a session. An agent that is not the service serves the session that it is in
// alone.
func consoleToken(session uint32) (windows.Token, error) {
	var token windows.Token
	err := windows.WTSQueryUserToken(session, &token)
	switch {
	case err == nil:
		return token, nil
	case errors.Is(err, windows.ERROR_NO_TOKEN):
		return 0, fault.Unsupported("nobody is logged on at the console")
	case !errors.Is(err, windows.ERROR_PRIVILEGE_NOT_HELD) && !errors.Is(err, windows.ERROR_ACCESS_DENIED):
		return 0, fault.On("the session at the console", fault.Cause(err))
	}
	var own uint32
	if err := windows.ProcessIdToSessionId(windows.GetCurrentProcessId(), &own); err != nil {
		return 0, os.NewSyscallError("ProcessIdToSessionId", err)
	}
	if own != session {
		return 0, fault.Unsupported("the agent is not the service, and the session at the console is not its own")
	}
	return 0, nil
}

// sessionInfo is the beginning of WTSINFOEXW of level 1 (wtsapi32.h), and sessionInfoClass the request for it.
type sessionInfo struct {
	level, _ uint32 // what follows is aligned to 8 bytes
	session  uint32
	state    int32
	flags    int32
}

const (
	sessionInfoClass = 25 // WTSSessionInfoEx
	flagLocked       = 0  // WTS_SESSIONSTATE_LOCK
)

var (
	querySessionInfo = windows.NewLazySystemDLL("wtsapi32.dll").NewProc("WTSQuerySessionInformationW")
	wineVersion      = windows.NewLazySystemDLL("ntdll.dll").NewProc("wine_get_version")
)

const lockNotTold = "Windows does not say whether its screen is locked"

// consoleLocked reports whether the screen of a session is locked. Wine, which has no such screen, does not say.
func consoleLocked(session uint32) (bool, error) {
	var info *sessionInfo
	var size uint32
	ok, _, err := querySessionInfo.Call(0, uintptr(session), sessionInfoClass, uintptr(unsafe.Pointer(&info)),
		uintptr(unsafe.Pointer(&size)))
	switch {
	case ok == 0 && wineVersion.Find() == nil:
		return false, nil
	case ok == 0:
		return false, fault.Wrapf(err, "%s: %v", lockNotTold, fault.Cause(err))
	}
	defer windows.WTSFreeMemory(uintptr(unsafe.Pointer(info)))
	if info == nil || info.level != 1 || uintptr(size) < unsafe.Sizeof(*info) {
		return false, fault.Wrapf(fault.ErrOutput, lockNotTold)
	}
	return info.flags == flagLocked, nil
}
