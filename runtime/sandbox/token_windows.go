package sandbox

import (
	"os"
	"unsafe"

	"golang.org/x/sys/windows"
)

// The flags of CreateRestrictedToken.
const (
	disableMaxPrivilege = 1
	luaToken            = 4
)

var createRestrictedToken = windows.NewLazySystemDLL("advapi32.dll").NewProc("CreateRestrictedToken")

// runnerToken makes the token of a runner from that of this process: without privileges, administrators in it only deny,
// an access is granted only where everybody, all users or "restricted" have it as well, and the integrity level is low, so
// that nothing of an ordinary level can be written. What every user may read, a runner may still read.
func runnerToken() (windows.Token, error) {
	var own windows.Token
	err := windows.OpenProcessToken(windows.CurrentProcess(), windows.TOKEN_DUPLICATE|windows.TOKEN_QUERY|
		windows.TOKEN_ASSIGN_PRIMARY|windows.TOKEN_ADJUST_DEFAULT, &own)
	if err != nil {
		return 0, os.NewSyscallError("OpenProcessToken", err)
	}
	defer own.Close()
	admins, err := windows.CreateWellKnownSid(windows.WinBuiltinAdministratorsSid)
	if err != nil {
		return 0, os.NewSyscallError("CreateWellKnownSid", err)
	}
	deny := []windows.SIDAndAttributes{{Sid: admins}}
	var restricting []windows.SIDAndAttributes
	for _, kind := range []windows.WELL_KNOWN_SID_TYPE{
		windows.WinWorldSid, windows.WinBuiltinUsersSid, windows.WinRestrictedCodeSid,
	} {
		sid, err := windows.CreateWellKnownSid(kind)
		if err != nil {
			return 0, os.NewSyscallError("CreateWellKnownSid", err)
		}
		restricting = append(restricting, windows.SIDAndAttributes{Sid: sid})
	}
	var token windows.Token
	ok, _, err := createRestrictedToken.Call(uintptr(own), disableMaxPrivilege|luaToken,
		uintptr(len(deny)), uintptr(unsafe.Pointer(&deny[0])), 0, 0,
		uintptr(len(restricting)), uintptr(unsafe.Pointer(&restricting[0])), uintptr(unsafe.Pointer(&token)))
	if ok == 0 {
		return 0, os.NewSyscallError("CreateRestrictedToken", err)
	}
	if err := lowerIntegrity(token); err != nil {
		token.Close()
		return 0, err
	}
	return token, nil
}

// lowerIntegrity gives a token the low level.
func lowerIntegrity(token windows.Token) error {
	low, err := windows.CreateWellKnownSid(windows.WinLowLabelSid)
	if err != nil {
		return os.NewSyscallError("CreateWellKnownSid", err)
	}
	label := windows.Tokenmandatorylabel{Label: windows.SIDAndAttributes{Sid: low, Attributes: windows.SE_GROUP_INTEGRITY}}
	err = windows.SetTokenInformation(token, windows.TokenIntegrityLevel, (*byte)(unsafe.Pointer(&label)), label.Size())
	return os.NewSyscallError("SetTokenInformation", err)
}
