package process

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// maxSignal is the highest number of a signal, SIGRTMAX.
const maxSignal = 64

// canKill reports whether the kernel has what keeps a signal from another process that gets the same pid.
func canKill() bool {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// signalNumber knows signals by their names, SIGTERM and the like; 0: there is none.
func signalNumber(name string) syscall.Signal { return unix.SignalNum(name) }

// target is a process that may get a signal.
//
// Its pidfd stands for the process that had the pid when it was opened. Should that have ended since, then what was read of
// the pid may be another's, but a signal reaches nobody.
type target struct {
	name  string // any bytes
	pidfd int
}

// reach finds the process pid, if it started at start ticks after boot; 0: whenever it did. What must not get a signal is
// refused.
func reach(pid uint32, start uint64) (*target, error) {
	switch {
	case pid == 0:
		return nil, fault.Refuse("pid 0 stands for a group of processes")
	case pid == 1:
		return nil, fault.Refuse("pid 1 runs the guest")
	case pid == uint32(os.Getpid()):
		return nil, fault.Refuse("it is this agent")
	case pid > math.MaxInt32:
		return nil, errGone
	}
	fd, err := unix.PidfdOpen(int(pid), 0)
	if err != nil {
		return nil, notOpened(pid, err)
	}
	t := &target{pidfd: fd}
	if t.name, err = identify(int(pid), start); err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

func (t *target) close() { unix.Close(t.pidfd) }

// send sends a signal; 0 only looks whether one could be sent.
func (t *target) send(signal syscall.Signal) error {
	return gone(unix.PidfdSendSignal(t.pidfd, signal, nil, 0))
}

// identify returns the name of the process pid, and why it gets no signal.
func identify(pid int, start uint64) (name string, err error) {
	proc, err := openProc(procDir)
	if err != nil {
		return "", err
	}
	defer proc.close()
	e := proc.entry(task{pid: pid, tid: pid})
	switch {
	case e == nil:
		return "", errGone
	case start != 0 && e.start != start:
		return "", fault.Wrapf(fs.ErrNotExist,
			"no such process: the one that has the pid now started at tick %d, not %d", e.start, start)
	case e.kernel:
		return "", fault.Refuse("it is the kernel thread %s", printable(e.name))
	}
	return e.name, nil
}

// errGone is unix.ESRCH as an error that a host can ask for.
var errGone = fault.Wrapf(fs.ErrNotExist, "no such process")

// notOpened returns why there is no pidfd. The kernel has none for threads that are not the first of their process.
func notOpened(pid uint32, err error) error {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		if of := processOf(pid); of != "" && of != strconv.FormatUint(uint64(pid), 10) {
			return fault.Invalid("it is a thread of process %s", of)
		}
		return errGone
	}
	return gone(err)
}

// processOf returns the pid of the process that a thread belongs to; empty: there is none.
func processOf(tid uint32) string {
	proc, err := openProc(procDir)
	if err != nil {
		return ""
	}
	defer proc.close()
	_, rest, _ := strings.Cut(string(proc.read(strconv.FormatUint(uint64(tid), 10)+"/status")), "\nTgid:\t")
	of, _, _ := strings.Cut(rest, "\n")
	return of
}

// gone returns errGone for the kernel's word for it, and any other error, or none, as it is.
func gone(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return errGone
	}
	return err
}
