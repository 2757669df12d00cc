package proc

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// systemUser finds an account of Windows by its name, of this machine or DOMAIN\NAME.
func systemUser(user, group string) (*User, error) {
	if group != "" {
		return nil, &StartError{Stage: "user", Object: "group " + group,
			Err: fault.Unsupported("on Windows a user has the groups of the account")}
	}
	_, domain, use, err := windows.LookupSID("", user)
	switch {
	case errors.Is(err, windows.ERROR_NONE_MAPPED):
		return nil, &StartError{Stage: "user", Object: user, Err: fault.Wrapf(fs.ErrNotExist, "there is no such user")}
	case err != nil:
		return nil, &StartError{Stage: "user", Object: user, Err: fault.Cause(err)}
	case use != windows.SidTypeUser:
		return nil, &StartError{Stage: "user", Object: user, Err: fault.Invalid("it is no account of a user")}
	}
	name := user[strings.LastIndexByte(user, '\\')+1:]
	return &User{Name: domain + `\` + name}, nil
}

// logon is who a command runs as.
type logon struct {
	token   windows.Token
	profile windows.Handle // of the user's registry; 0: it is not loaded
	env     []string       // of the logon
	home    string         // a directory that is there; may be empty
}

// environment returns that of the logon with more on top. The names of variables have no case.
func (l *logon) environment(more []string) []string {
	return append(l.env[:len(l.env):len(l.env)], more...) // of two entries the later one counts
}

// close ends the use of the logon. The user's registry stays loaded for a command that goes on.
func (l *logon) close(ended bool) {
	if l.profile != 0 && ended {
		unloadUserProfile.Call(uintptr(l.token), uintptr(l.profile))
	}
	l.token.Close()
}

var (
	secur32                 = windows.NewLazySystemDLL("secur32.dll")
	lsaRegister             = secur32.NewProc("LsaRegisterLogonProcess")
	lsaDeregister           = secur32.NewProc("LsaDeregisterLogonProcess")
	lsaLookupPackage        = secur32.NewProc("LsaLookupAuthenticationPackage")
	lsaLogonUser            = secur32.NewProc("LsaLogonUser")
	lsaFreeReturnBuffer     = secur32.NewProc("LsaFreeReturnBuffer")
	userenv                 = windows.NewLazySystemDLL("userenv.dll")
	loadUserProfile         = userenv.NewProc("LoadUserProfileW")
	unloadUserProfile       = userenv.NewProc("UnloadUserProfile")
	allocateLocallyUniqueID = windows.NewLazySystemDLL("advapi32.dll").NewProc("AllocateLocallyUniqueId")
)

// The packages that make a logon without a password, for accounts of this machine and of a domain, and their request of the
// numbers of ntsecapi.h, which are the same in both: MsV1_0S4ULogon and KerbS4ULogon.
const (
	localPackage  = "MICROSOFT_AUTHENTICATION_PACKAGE_V1_0"
	domainPackage = "Kerberos"
	s4uLogon      = 12
	networkLogon  = 3
)

// s4uRequest is MSV1_0_S4U_LOGON and KERB_S4U_LOGON, whose texts follow it.
type s4uRequest struct {
	kind, flags  uint32
	name, domain windows.NTUnicodeString
}

// profileInfo is PROFILEINFOW.
type profileInfo struct {
	size, flags                             uint32
	user, path, defaultPath, server, policy *uint16
	profile                                 windows.Handle
}

// logonWithoutPassword logs a user on as scheduled tasks without a stored password are (S4U): by the agent's right to act as a
// part of the system, which LocalSystem has. Such a logon has no way to other machines, nor to files that the user encrypted.
// An account that is disabled or locked, or of nobody, is refused by Windows.
func logonWithoutPassword(name string) (*logon, error) {
	domain, user, _ := strings.Cut(name, `\`)
	machine, err := windows.ComputerName()
	if err != nil {
		return nil, err
	}
	pkg := domainPackage
	if strings.EqualFold(domain, machine) {
		pkg, domain = localPackage, "."
	}
	token, err := s4uToken(pkg, user, domain)
	if err != nil {
		return nil, fault.Wrapf(err, "logon without a password, which takes an agent that is the service: %v", err)
	}
	return newLogon(token, user)
}

// newLogon fills in what comes with a token, which it closes on an error.
func newLogon(token windows.Token, user string) (*logon, error) {
	l := &logon{token: token}
	name, err := windows.UTF16PtrFromString(user)
	if err != nil {
		l.close(true)
		return nil, err
	}
	const noMessages = 1
	info := profileInfo{flags: noMessages, user: name}
	info.size = uint32(unsafe.Sizeof(info))
	if ok, _, err := loadUserProfile.Call(uintptr(token), uintptr(unsafe.Pointer(&info))); ok == 0 {
		l.close(true)
		return nil, fault.Wrapf(err, "the user's profile cannot be loaded: %v", err)
	}
	l.profile = info.profile
	if l.env, err = token.Environ(false); err != nil {
		l.close(true)
		return nil, os.NewSyscallError("CreateEnvironmentBlock", err)
	}
	for _, entry := range l.env {
		if name, value, _ := strings.Cut(entry, "="); strings.EqualFold(name, "USERPROFILE") {
			if info, err := os.Stat(value); err == nil && info.IsDir() {
				l.home = value
			}
		}
	}
	return l, nil
}

// s4uToken returns the token of a user.
func s4uToken(pkg, user, domain string) (windows.Token, error) {
	self, err := windows.NewNTString("quantix-kvm-agent")
	if err != nil {
		return 0, err
	}
	var lsa windows.Handle
	var mode uint32
	if status, _, _ := lsaRegister.Call(uintptr(unsafe.Pointer(self)), uintptr(unsafe.Pointer(&lsa)),
		uintptr(unsafe.Pointer(&mode))); status != 0 {
		return 0, os.NewSyscallError("LsaRegisterLogonProcess", windows.NTStatus(status).Errno())
	}
	defer lsaDeregister.Call(uintptr(lsa))
	packageName, err := windows.NewNTString(pkg)
	if err != nil {
		return 0, err
	}
	var number uint32
	if status, _, _ := lsaLookupPackage.Call(uintptr(lsa), uintptr(unsafe.Pointer(packageName)),
		uintptr(unsafe.Pointer(&number))); status != 0 {
		return 0, os.NewSyscallError("LsaLookupAuthenticationPackage", windows.NTStatus(status).Errno())
	}
	request, err := newS4URequest(user, domain)
	if err != nil {
		return 0, err
	}
	source := struct {
		name [8]byte
		id   windows.LUID
	}{name: [8]byte{'q', 'u', 'a', 'n', 't', 'i', 'x'}}
	allocateLocallyUniqueID.Call(uintptr(unsafe.Pointer(&source.id)))
	var (
		profile     uintptr
		profileSize uint32
		id          windows.LUID
		token       windows.Token
		quotas      [6]uintptr // QUOTA_LIMITS: five sizes and a time
		sub         uint32
	)
	status, _, _ := lsaLogonUser.Call(uintptr(lsa), uintptr(unsafe.Pointer(self)), networkLogon, uintptr(number),
		uintptr(unsafe.Pointer(&request[0])), uintptr(len(request)), 0, uintptr(unsafe.Pointer(&source)),
		uintptr(unsafe.Pointer(&profile)), uintptr(unsafe.Pointer(&profileSize)), uintptr(unsafe.Pointer(&id)),
		uintptr(unsafe.Pointer(&token)), uintptr(unsafe.Pointer(&quotas)), uintptr(unsafe.Pointer(&sub)))
	if profile != 0 {
		lsaFreeReturnBuffer.Call(profile)
	}
	if status != 0 {
		if sub != 0 { // why an account is restricted
			status = uintptr(sub)
		}
		return 0, os.NewSyscallError("LsaLogonUser", windows.NTStatus(status).Errno())
	}
	return token, nil
}

// newS4URequest returns the request with its texts in one piece of memory, which holds its own addresses.
func newS4URequest(user, domain string) ([]byte, error) {
	texts := [2][]uint16{}
	for i, text := range []string{user, domain} {
		encoded, err := windows.UTF16FromString(text)
		if err != nil {
			return nil, err
		}
		texts[i] = encoded
	}
	const header = int(unsafe.Sizeof(s4uRequest{}))
	memory := make([]byte, header+2*(len(texts[0])+len(texts[1])))
	request, at := (*s4uRequest)(unsafe.Pointer(&memory[0])), header
	request.kind = s4uLogon
	for i, field := range []*windows.NTUnicodeString{&request.name, &request.domain} {
		place := unsafe.Slice((*uint16)(unsafe.Pointer(&memory[at])), len(texts[i]))
		copy(place, texts[i])
		size := uint16(2 * len(texts[i]))
		*field = windows.NTUnicodeString{Length: size - 2, MaximumLength: size, Buffer: &place[0]}
		at += int(size)
	}
	return memory, nil
}
