package exec

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// selfPath is where this program was started from, which a newer one may have replaced.
func selfPath() (string, error) { return os.Executable() }

// supervisorEnv is that of any command: without it hardly any program starts.
func supervisorEnv() []string { return proc.LoginEnv(nil) }

func ignoreBrokenPipe() {} // there are no signals

// lockedByte is the byte of the file that is locked: nobody can read a locked one.
func lockedByte() *windows.Overlapped { return &windows.Overlapped{OffsetHigh: 1} }

func tryLock(file *os.File) error {
	const flags = windows.LOCKFILE_EXCLUSIVE_LOCK | windows.LOCKFILE_FAIL_IMMEDIATELY
	return windows.LockFileEx(windows.Handle(file.Fd()), flags, 0, 1, 0, lockedByte())
}

// lockSupervisor makes this process the supervisor of a job. wanted is closed when somebody wants the end of it: by an event
// that has no name, whose handle in this process the file holds.
func lockSupervisor(dir string) (lock *os.File, wanted <-chan struct{}, err error) {
	lock, err = os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, nil, err
	}
	event, err := windows.CreateEvent(nil, 1, 0, nil)
	if err == nil {
		err = tryLock(lock)
	}
	if err == nil {
		_, err = fmt.Fprintln(lock, os.Getpid(), uint64(event))
	}
	if err != nil {
		return nil, nil, errors.Join(err, lock.Close())
	}
	end := make(chan struct{})
	go func() { // ends with the process
		_, _ = windows.WaitForSingleObject(event, windows.INFINITE)
		close(end)
	}()
	return lock, end, nil
}

// replaceWait is how long a file is waited for that somebody reads, and which cannot be replaced meanwhile, or that somebody
// replaces, and which cannot be read meanwhile.
const replaceWait = 5 * time.Second

// untilFree does something again until nobody else holds the file.
func untilFree(do func() error) error {
	for end := time.Now().Add(replaceWait); ; time.Sleep(5 * time.Millisecond) {
		err := do()
		held := errors.Is(err, windows.ERROR_ACCESS_DENIED) || errors.Is(err, windows.ERROR_SHARING_VIOLATION)
		if !held || time.Now().After(end) {
			return err
		}
	}
}

func replaceFile(from, to string) error {
	return untilFree(func() error { return os.Rename(from, to) })
}

// readReplaced reads a file that another process may replace at the same time.
func readReplaced(path string) (content []byte, err error) {
	err = untilFree(func() error {
		content, err = os.ReadFile(path)
		return err
	})
	return content, err
}

// supervisorAlive reports whether the supervisor of a job runs: it holds the lock.
func supervisorAlive(dir string) bool {
	file, err := os.Open(filepath.Join(dir, lockName))
	if err != nil {
		return false
	}
	defer file.Close() // and with it the lock, if it was free
	err = tryLock(file)
	return errors.Is(err, windows.ERROR_LOCK_VIOLATION) || errors.Is(err, windows.ERROR_IO_PENDING)
}

// signalProcess ends a job, be it by a signal or by its supervisor: Windows has no other signals than those that end a command.
func signalProcess(dir string, _ *pb.Job, _ syscall.Signal, _ bool) error {
	text, err := os.ReadFile(filepath.Join(dir, lockName))
	if err != nil {
		return err
	}
	var pid uint32
	var remote uint64
	if n, err := fmt.Sscan(string(text), &pid, &remote); n != 2 || err != nil || !supervisorAlive(dir) {
		return os.ErrProcessDone
	}
	process, err := windows.OpenProcess(windows.PROCESS_DUP_HANDLE, false, pid)
	if err != nil {
		return os.ErrProcessDone
	}
	defer windows.CloseHandle(process)
	var event windows.Handle
	err = windows.DuplicateHandle(process, windows.Handle(remote), windows.CurrentProcess(), &event,
		windows.EVENT_MODIFY_STATE, false, 0)
	if err != nil {
		return os.NewSyscallError("DuplicateHandle", err)
	}
	defer windows.CloseHandle(event)
	return os.NewSyscallError("SetEvent", windows.SetEvent(event))
}
