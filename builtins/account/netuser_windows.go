package account

import (
	"errors"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Errors of the functions (lmerr.h).
const (
	errUserNotFound  = windows.Errno(2221) // NERR_UserNotFound
	errGroupNotFound = windows.Errno(2220) // NERR_GroupNotFound
	errShort         = windows.Errno(2245) // NERR_PasswordTooShort
)

const (
	userPrivilege = 1           // USER_PRIV_USER
	accountFlags  = 0x1 | 0x200 // UF_SCRIPT, which is required, and UF_NORMAL_ACCOUNT
	normalFilter  = 2           // FILTER_NORMAL_ACCOUNT
	everything    = 1<<32 - 1   // MAX_PREFERRED_LENGTH
	usersAlias    = "S-1-5-32-545"
)

// userInfo1, userInfo4 and the others are the structures of lmaccess.h.
type userInfo1 struct {
	name, password   *uint16
	passwordAge      uint32
	privilege        uint32
	homeDir, comment *uint16
	flags            uint32
	scriptPath       *uint16
}

type userInfo4 struct {
	userInfo1
	authFlags                                         uint32
	fullName, userComment, parameters, workstations   *uint16
	lastLogon, lastLogoff, accountExpires, maxStorage uint32
	unitsPerWeek                                      uint32
	logonHours                                        *byte
	badPasswords, logons                              uint32
	logonServer                                       *uint16
	countryCode, codePage                             uint32
	sid                                               *windows.SID
	primaryGroup                                      uint32
	profile, homeDirDrive                             *uint16
	passwordExpired                                   uint32
}

type userInfo1003 struct{ password *uint16 }
type userInfo1011 struct{ fullName *uint16 }

type groupUsersInfo0 struct{ name *uint16 }
type groupMembersInfo3 struct{ domainAndName *uint16 }

// netapi calls a function of netapi32, whose result is its error.
//
//go:uintptrescapes
func netapi(name string, args ...uintptr) error {
	proc := windows.NewLazySystemDLL("netapi32.dll").NewProc(name)
	if err := proc.Find(); err != nil {
		return fault.Unsupported("this Windows has no %s", name)
	}
	code, _, _ := proc.Call(args...)
	switch err := windows.Errno(code); {
	case code == 0:
		return nil
	case err == errShort:
		return fault.Invalid("the password is not what the rules of the guest ask for")
	default:
		return fault.Cause(err)
	}
}

// encode is a text of UTF-8 as Windows takes it, with a zero behind it. No copy of it stays behind.
func encode(text []byte) (units []uint16) {
	units = make([]uint16, 0, len(text)+1)
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		units = utf16.AppendRune(units, r)
		text = text[size:]
	}
	return append(units, 0)
}

// localUsers are the accounts of the running machine.
func localUsers() directory {
	return directory{
		get: getUser, list: listUsers, add: addUser, setFullName: setFullName, setExpired: setExpired,
		remove: func(name string) error {
			text := encode([]byte(name))
			err := netapi("NetUserDel", 0, uintptr(unsafe.Pointer(&text[0])))
			if errors.Is(err, errUserNotFound) {
				return nil
			}
			return err
		},
		setPassword: func(name string, password []uint16) error {
			info := userInfo1003{&password[0]}
			return setInfo(name, 1003, unsafe.Pointer(&info))
		},
		hasGroup: hasGroup,
		usersGroup: func() (string, error) {
			sid, err := windows.StringToSid(usersAlias)
			if err != nil {
				return "", err
			}
			name, _, _, err := sid.LookupAccount("") // which has another one in each language
			return name, fault.Cause(err)
		},
		join: func(group, name string) error {
			return changeMember("NetLocalGroupAddMembers", group, name, windows.ERROR_MEMBER_IN_ALIAS)
		},
		leave: func(group, name string) error {
			return changeMember("NetLocalGroupDelMembers", group, name, windows.ERROR_MEMBER_NOT_IN_ALIAS)
		},
	}
}

func getUser(name string) (*user, error) {
	text, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return nil, fault.Invalid("it is no name")
	}
	var buffer *byte
	err = windows.NetUserGetInfo(nil, text, 4, &buffer)
	if errors.Is(err, errUserNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.Cause(err)
	}
	defer windows.NetApiBufferFree(buffer)
	info := (*userInfo4)(unsafe.Pointer(buffer))
	u := &user{
		name: windows.UTF16PtrToString(info.name), fullName: windows.UTF16PtrToString(info.fullName),
		expired: info.passwordExpired != 0,
	}
	if info.sid != nil {
		if n := info.sid.SubAuthorityCount(); n > 0 {
			u.rid = info.sid.SubAuthority(uint32(n) - 1)
		}
		u.home = profileOf(info.sid.String())
	}
	u.groups, err = groupsOf(name)
	return u, err
}

// profileOf is the directory of a user who has logged in before; empty: there is none yet.
func profileOf(sid string) string {
	key, err := registry.OpenKey(registry.LOCAL_MACHINE, `SOFTWARE\Microsoft\Windows NT\CurrentVersion\ProfileList\`+sid,
		registry.QUERY_VALUE)
	if err != nil {
		return ""
	}
	defer key.Close()
	path, _, err := key.GetStringValue("ProfileImagePath")
	if err != nil {
		return ""
	}
	if expanded, err := registry.ExpandString(path); err == nil {
		return expanded
	}
	return path
}

// groupsOf are the local groups that a user is in.
func groupsOf(name string) (groups []string, err error) {
	text := encode([]byte(name))
	var buffer *byte
	var read, total uint32
	err = netapi("NetUserGetLocalGroups", 0, uintptr(unsafe.Pointer(&text[0])), 0, 0, uintptr(unsafe.Pointer(&buffer)), everything,
		uintptr(unsafe.Pointer(&read)), uintptr(unsafe.Pointer(&total)))
	if err != nil || buffer == nil {
		return nil, err
	}
	defer windows.NetApiBufferFree(buffer)
	for _, g := range unsafe.Slice((*groupUsersInfo0)(unsafe.Pointer(buffer)), read) {
		groups = append(groups, windows.UTF16PtrToString(g.name))
	}
	slices.Sort(groups)
	return groups, nil
}

func listUsers() (list []*user, err error) {
	var resume uint32
	for {
		var buffer *byte
		var read, total uint32
		err := windows.NetUserEnum(nil, 0, normalFilter, &buffer, everything, &read, &total, &resume)
		more := errors.Is(err, windows.ERROR_MORE_DATA)
		if err != nil && !more {
			return nil, fault.Cause(err)
		}
		var names []string
		if buffer != nil {
			for _, n := range unsafe.Slice((**uint16)(unsafe.Pointer(buffer)), read) {
				names = append(names, windows.UTF16PtrToString(n))
			}
			windows.NetApiBufferFree(buffer)
		}
		for _, name := range names {
			u, err := getUser(name)
			if err != nil {
				return nil, fault.On(name, err)
			}
			if u != nil {
				list = append(list, u)
			}
		}
		if !more || read == 0 {
			slices.SortFunc(list, func(a, b *user) int { return strings.Compare(strings.ToLower(a.name), strings.ToLower(b.name)) })
			return list, nil
		}
	}
}

func addUser(name string, password []uint16, fullName string) error {
	text := encode([]byte(name))
	info := userInfo1{name: &text[0], password: &password[0], privilege: userPrivilege, flags: accountFlags}
	var wrong uint32
	if err := netapi("NetUserAdd", 0, 1, uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&wrong))); err != nil {
		return err
	}
	if fullName == "" {
		return nil
	}
	return setFullName(name, fullName)
}

func setFullName(name, fullName string) error {
	text := encode([]byte(fullName))
	info := userInfo1011{&text[0]}
	return setInfo(name, 1011, unsafe.Pointer(&info))
}

// setExpired reports whether another password must be chosen at the next login: all else that is known of the account is set
// to what it is.
func setExpired(name string, expired bool) error {
	text, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return fault.Invalid("it is no name")
	}
	var buffer *byte
	if err := windows.NetUserGetInfo(nil, text, 4, &buffer); err != nil {
		return fault.Cause(err)
	}
	defer windows.NetApiBufferFree(buffer)
	info := (*userInfo4)(unsafe.Pointer(buffer))
	info.passwordExpired = 0
	if expired {
		info.passwordExpired = 1
	}
	info.password = nil // which leaves it
	return setInfo(name, 4, unsafe.Pointer(info))
}

func setInfo(name string, level uintptr, info unsafe.Pointer) error {
	text := encode([]byte(name))
	var wrong uint32
	return netapi("NetUserSetInfo", 0, uintptr(unsafe.Pointer(&text[0])), level, uintptr(info), uintptr(unsafe.Pointer(&wrong)))
}

func hasGroup(group string) (bool, error) {
	text := encode([]byte(group))
	var buffer *byte
	err := netapi("NetLocalGroupGetInfo", 0, uintptr(unsafe.Pointer(&text[0])), 0, uintptr(unsafe.Pointer(&buffer)))
	if buffer != nil {
		windows.NetApiBufferFree(buffer)
	}
	if errors.Is(err, errGroupNotFound) || errors.Is(err, windows.ERROR_NO_SUCH_ALIAS) {
		return false, nil
	}
	return err == nil, err
}

// changeMember makes a user of this machine a member of a local group, or no member; same is the error of one that is so
// already.
func changeMember(function, group, name string, same error) error {
	host, err := windows.ComputerName()
	if err != nil {
		return fault.Cause(err)
	}
	to, member := encode([]byte(group)), encode([]byte(host+`\`+name))
	info := groupMembersInfo3{&member[0]}
	err = netapi(function, 0, uintptr(unsafe.Pointer(&to[0])), 3, uintptr(unsafe.Pointer(&info)), 1)
	if errors.Is(err, same) {
		return nil
	}
	return err
}
