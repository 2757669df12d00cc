package fsys

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// holder is a process that has a file open.
type holder struct {
	pid           uint32
	name, service string // as users know it; service may be empty
}

func (h holder) String() string {
	name := text.Truncate(h.name, maxHolderName)
	if h.service != "" {
		name += ", service " + text.Truncate(h.service, maxHolderName)
	}
	return fmt.Sprintf("%s (pid %d)", name, h.pid)
}

const (
	maxHolders    = 5 // that an error names
	maxHolderName = 80
)

// holdersOf finds who has a file open. Wine's restart manager knows of nobody.
var holdersOf = askRestartManager

// held returns the error about files that cannot be changed, with the names of the processes that hold them open where that is
// the reason. It is then of cause fault.ErrBusy, also where Windows calls it a lack of rights, as it does where a file is
// replaced.
func held(err error, paths ...string) error {
	cause := fault.Cause(err)
	if !errors.Is(cause, fault.ErrBusy) && !errors.Is(cause, fs.ErrPermission) {
		return cause
	}
	var names []string
	for _, path := range paths {
		holders, failed := holdersOf(path)
		if failed != nil {
			continue // it is reported as it is
		}
		for _, h := range holders {
			if len(names) < maxHolders {
				names = append(names, h.String())
			}
		}
	}
	if len(names) == 0 {
		return cause
	}
	return fault.Wrapf(errors.Join(fault.ErrBusy, cause), "it is open in %s", strings.Join(names, ", "))
}

// The restart manager (restartmanager.h): the sizes of its texts with the zero at their end, and its answer to a list that is
// too short.
const (
	maxAppName     = 256
	maxServiceName = 64
	sessionKey     = 33
	listAttempts   = 3
)

// processInfo is RM_PROCESS_INFO.
type processInfo struct {
	pid                                   uint32
	started                               windows.Filetime
	name                                  [maxAppName]uint16
	service                               [maxServiceName]uint16
	kind, status, session, canBeRestarted uint32
}

var (
	restartManager    = windows.NewLazySystemDLL("rstrtmgr.dll")
	startSession      = restartManager.NewProc("RmStartSession")
	registerResources = restartManager.NewProc("RmRegisterResources")
	getList           = restartManager.NewProc("RmGetList")
	endSession        = restartManager.NewProc("RmEndSession")
)

// askRestartManager asks Windows who has a file open. Nobody is asked about a directory.
func askRestartManager(path string) ([]holder, error) {
	if err := restartManager.Load(); err != nil { // an edition without it
		return nil, err
	}
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return nil, err
	}
	var session uint32
	var key [sessionKey]uint16
	status, _, _ := startSession.Call(uintptr(unsafe.Pointer(&session)), 0, uintptr(unsafe.Pointer(&key[0])))
	if status != 0 {
		return nil, windows.Errno(status)
	}
	defer endSession.Call(uintptr(session))
	status, _, _ = registerResources.Call(uintptr(session), 1, uintptr(unsafe.Pointer(&name)), 0, 0, 0, 0)
	if status != 0 {
		return nil, windows.Errno(status)
	}
	var needed, count, reason uint32
	list := make([]processInfo, maxHolders)
	for range listAttempts { // there may be more of them each time
		count = uint32(len(list))
		status, _, _ = getList.Call(uintptr(session), uintptr(unsafe.Pointer(&needed)), uintptr(unsafe.Pointer(&count)),
			uintptr(unsafe.Pointer(&list[0])), uintptr(unsafe.Pointer(&reason)))
		if windows.Errno(status) != windows.ERROR_MORE_DATA {
			break
		}
		list = make([]processInfo, needed)
	}
	if status != 0 {
		return nil, windows.Errno(status)
	}
	var holders []holder
	for _, p := range list[:min(count, uint32(len(list)))] {
		holders = append(holders, holder{p.pid, windows.UTF16ToString(p.name[:]), windows.UTF16ToString(p.service[:])})
	}
	return holders, nil
}
