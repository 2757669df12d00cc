package journal

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

func lockFile(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fault.Cause(err)
	}
	const flags = windows.LOCKFILE_EXCLUSIVE_LOCK | windows.LOCKFILE_FAIL_IMMEDIATELY
	err = windows.LockFileEx(windows.Handle(file.Fd()), flags, 0, 1, 0, &windows.Overlapped{})
	if err == windows.ERROR_LOCK_VIOLATION || err == windows.ERROR_IO_PENDING {
		err = fault.Wrapf(fault.ErrBusy, "another agent uses it")
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

func dataSync(file *os.File) error { return file.Sync() }

// syncDir does nothing: NTFS journals its directory entries.
func syncDir(string) error { return nil }

func uptime() time.Duration { return windows.DurationSinceBoot() }

func sleep(ctx context.Context, d time.Duration) error { return sleepAwake(ctx, d) }
