package privilege

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Names of privileges (winnt.h).
const (
	Shutdown   = "SeShutdownPrivilege"
	SystemTime = "SeSystemtimePrivilege"
	TimeZone   = "SeTimeZonePrivilege"
	Backup     = "SeBackupPrivilege"
)

// Enable turns a privilege on for the process. An error says that its user does not have it.
func Enable(name string) error {
	var token windows.Token
	if err := windows.OpenProcessToken(windows.CurrentProcess(), windows.TOKEN_ADJUST_PRIVILEGES|windows.TOKEN_QUERY,
		&token); err != nil {
		return fault.On(name, fault.Cause(err))
	}
	defer token.Close()
	text, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return err
	}
	wish := windows.Tokenprivileges{PrivilegeCount: 1}
	wish.Privileges[0].Attributes = windows.SE_PRIVILEGE_ENABLED
	if err := windows.LookupPrivilegeValue(nil, text, &wish.Privileges[0].Luid); err != nil {
		return fault.On(name, fault.Cause(err))
	}
	if err := windows.AdjustTokenPrivileges(token, false, &wish, 0, nil, nil); err != nil {
		return fault.On(name, fault.Cause(err))
	}
	held, err := has(token, wish.Privileges[0].Luid)
	if err == nil && !held { // which is no error of the call before
		err = windows.ERROR_PRIVILEGE_NOT_HELD
	}
	return fault.On(name, fault.Cause(err))
}

// has reports whether a token has a privilege, and it is on.
func has(token windows.Token, luid windows.LUID) (bool, error) {
	size := uint32(4096)
	buffer := make([]byte, size)
	err := windows.GetTokenInformation(token, windows.TokenPrivileges, &buffer[0], size, &size)
	if errors.Is(err, windows.ERROR_INSUFFICIENT_BUFFER) {
		buffer = make([]byte, size)
		err = windows.GetTokenInformation(token, windows.TokenPrivileges, &buffer[0], size, &size)
	}
	if err != nil {
		return false, err
	}
	list := (*windows.Tokenprivileges)(unsafe.Pointer(&buffer[0]))
	for _, p := range list.AllPrivileges() {
		if p.Luid == luid {
			return p.Attributes&windows.SE_PRIVILEGE_ENABLED != 0, nil
		}
	}
	return false, nil
}
