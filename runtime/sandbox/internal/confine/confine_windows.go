package confine

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/windows"
)

// policies are the mitigation policies of a sealed process: numbers of PROCESS_MITIGATION_POLICY, and the flags of each.
var policies = []struct {
	name   string
	number uint32
	flags  uint32
}{
	{"no dynamic code", 2, 1},       // ProhibitDynamicCode
	{"strict handles", 3, 3},        // RaiseExceptionOnInvalidHandleReference, HandleExceptionsPermanentlyEnabled
	{"no win32k calls", 4, 1},       // DisallowWin32kSystemCalls
	{"no extension points", 6, 1},   // DisableExtensionPoints
	{"no images of others", 10, 3},  // NoRemoteImages, NoLowMandatoryLabelImages
	{"no child processes", 13, 0x1}, // NoChildProcessCreation
}

// EventVariable is the environment variable with the number of the event by which the agent asks a runner to stop its script.
const EventVariable = "QUANTIX_KVM_RUNNER_EVENT"

var (
	kernel32                   = windows.NewLazySystemDLL("kernel32.dll")
	setProcessMitigationPolicy = kernel32.NewProc("SetProcessMitigationPolicy")
	wineVersion                = windows.NewLazySystemDLL("ntdll.dll").NewProc("wine_get_version")
)

// Wine reports whether this is Wine, which accepts most of what a sealed process asks for and does none of it.
func Wine() bool { return wineVersion.Find() == nil }

// Seal confines the process for good: no child processes, no code but what is loaded, no window system, no privileges. The
// limits of memory and processor time, the token and the integrity level are set by whoever starts it. A policy that this
// version of Windows does not know is left out.
func Seal(Limits) error {
	if setProcessMitigationPolicy.Find() != nil {
		return errors.ErrUnsupported
	}
	for _, p := range policies {
		flags := p.flags
		ok, _, err := setProcessMitigationPolicy.Call(uintptr(p.number), uintptr(unsafe.Pointer(&flags)), unsafe.Sizeof(flags))
		if ok == 0 && !unknown(err) {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return removePrivileges()
}

// unknown reports whether an error is that of a Windows which does not have a policy.
func unknown(err error) bool {
	return errors.Is(err, windows.ERROR_INVALID_PARAMETER) || errors.Is(err, windows.ERROR_NOT_SUPPORTED) ||
		errors.Is(err, windows.ERROR_CALL_NOT_IMPLEMENTED)
}

// removePrivileges disables all privileges of the process.
func removePrivileges() error {
	var token windows.Token
	err := windows.OpenProcessToken(windows.CurrentProcess(), windows.TOKEN_ADJUST_PRIVILEGES|windows.TOKEN_QUERY, &token)
	if err != nil {
		return err
	}
	defer token.Close()
	return windows.AdjustTokenPrivileges(token, true, nil, 0, nil, nil)
}

// Layers returns the layers of confinement that a process puts around itself.
func Layers() []Layer {
	missing := ""
	if Wine() {
		missing = "Wine takes them and does not enforce them"
	}
	return []Layer{{"process mitigations", missing}}
}
