package process

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

const (
	systemPID = 4 // of the kernel
	// endTime bounds the wait for the end of a process that was ended: it waits for its devices.
	endTime = 5 * time.Second
	// killedCode is the exit code of a process that was ended, as taskkill has it.
	killedCode = 1
)

// target is a process that may get a signal. Its handle stands for the process that had the pid when it was opened.
type target struct {
	name   string
	handle windows.Handle
}

// errGone is the error of a pid that no process has.
var errGone = fault.Wrapf(fs.ErrNotExist, "no such process")

// reach finds the process pid, if it started at start, as ProcessInfo.start_ticks has it; 0: whenever it did. What must not get
// a signal is refused.
func reach(pid uint32, start uint64) (*target, error) {
	switch {
	case pid == 0:
		return nil, fault.Refuse("pid 0 stands for idle processors")
	case pid == systemPID:
		return nil, fault.Refuse("it is the Windows kernel")
	case pid == uint32(os.Getpid()):
		return nil, fault.Refuse("it is this agent")
	}
	const access = windows.PROCESS_QUERY_LIMITED_INFORMATION | windows.PROCESS_TERMINATE | windows.SYNCHRONIZE
	handle, err := windows.OpenProcess(access, false, pid)
	if errors.Is(err, windows.ERROR_INVALID_PARAMETER) {
		return nil, errGone
	}
	if err != nil {
		return nil, fault.Cause(err)
	}
	t := &target{handle: handle}
	if err := t.check(pid, start); err != nil {
		t.close()
		return nil, err
	}
	t.name = filepath.Base(imagePath(handle))
	return t, nil
}

// check returns why the process gets no signal.
func (t *target) check(pid uint32, start uint64) error {
	// Windows looks a pid up without its two lowest bits, which would reach another process.
	if real, err := windows.GetProcessId(t.handle); err != nil || real != pid || t.ended(0) {
		return errGone
	}
	var creation, exit, kernel, user windows.Filetime
	if err := windows.GetProcessTimes(t.handle, &creation, &exit, &kernel, &user); err != nil {
		return fault.Cause(err)
	}
	if started := startTicks(creation.Nanoseconds()); start != 0 && started != start {
		return fault.Wrapf(fs.ErrNotExist, "no such process: the one that has the pid now started at tick %d, not %d", started, start)
	}
	var critical, length uint32
	err := windows.NtQueryInformationProcess(t.handle, windows.ProcessBreakOnTermination, unsafe.Pointer(&critical),
		uint32(unsafe.Sizeof(critical)), &length)
	if err == nil && critical != 0 {
		return fault.Refuse("Windows itself stops when it ends")
	}
	return nil
}

// ended reports whether the process has ended within a time.
func (t *target) ended(within time.Duration) bool {
	event, err := windows.WaitForSingleObject(t.handle, uint32(within.Milliseconds()))
	return err == nil && event == windows.WAIT_OBJECT_0
}

func (t *target) close() { windows.CloseHandle(t.handle) }

// send ends the process and waits for its end; 0 does nothing: that the process could be opened says that it could be ended.
func (t *target) send(signal syscall.Signal) error {
	if err := mayBeSent(signal); err != nil || signal == 0 {
		return err
	}
	if err := windows.TerminateProcess(t.handle, killedCode); err != nil {
		if t.ended(0) {
			return errGone
		}
		return fault.Cause(err)
	}
	if !t.ended(endTime) {
		return fault.Wrapf(fault.ErrBusy,
			"it was ended, and is still there after %v: something that it waits for does not return", endTime)
	}
	return nil
}

// imagePath is the file of the program of a process; empty: it has none, or that cannot be read.
func imagePath(handle windows.Handle) string {
	name := make([]uint16, windows.MAX_LONG_PATH)
	size := uint32(len(name))
	if windows.QueryFullProcessImageName(handle, 0, &name[0], &size) != nil {
		return ""
	}
	return windows.UTF16ToString(name[:size])
}

// startTicks is ProcessInfo.start_ticks on Windows: microseconds since 1970, by the clock as it was when the process started.
func startTicks(unixNanoseconds int64) uint64 { return uint64(max(unixNanoseconds, 0)) / 1000 }
