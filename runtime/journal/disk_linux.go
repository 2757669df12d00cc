package journal

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// lockFile opens and locks a file. The lock is held until the file is closed or the process ends.
func lockFile(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fault.Cause(err)
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == unix.EWOULDBLOCK {
		err = fault.Wrapf(fault.ErrBusy, "another agent uses it")
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// dataSync makes durable what was written into blocks that are already allocated to the file.
func dataSync(file *os.File) error { return unix.Fdatasync(int(file.Fd())) }

// syncDir makes the entries of a directory durable.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// uptime returns the time since boot, suspends included.
func uptime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) // never fails: the clock is older than any supported kernel
	return time.Duration(t.Nano())
}

// sleep waits for a time in which suspends count, or until ctx ends: then it returns the cause. It may return earlier.
func sleep(ctx context.Context, d time.Duration) error {
	timer, err := bootTimer(d)
	if err != nil { // too many files are open: what passes in a suspend is seen after it
		return sleepAwake(ctx, min(d, time.Second))
	}
	defer timer.Close()
	defer context.AfterFunc(ctx, func() { _ = timer.SetReadDeadline(time.Unix(1, 0)) })()
	var expirations [8]byte
	if _, err := timer.Read(expirations[:]); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return sleepAwake(ctx, min(d, time.Second))
	}
	return context.Cause(ctx)
}

// bootTimer returns a file that can be read from after a time on CLOCK_BOOTTIME.
func bootTimer(d time.Duration) (*os.File, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	timer := os.NewFile(uintptr(fd), "timerfd")
	if err := unix.TimerfdSettime(fd, 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(max(int64(d), 1))}, nil); err != nil {
		return nil, errors.Join(os.NewSyscallError("timerfd_settime", err), timer.Close())
	}
	return timer, nil
}
