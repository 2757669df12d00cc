package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// latestTime is the time that an epoch stands for, in seconds since 1970; the zero time for "".
func latestTime(epoch string) (time.Time, error) {
	if epoch == "" {
		return time.Time{}, nil
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil || seconds < 0 {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH is %q, which is no number of seconds", epoch)
	}
	return time.Unix(seconds, 0), nil
}

// clampTimes gives what is in a tree, as far as it lies on the same file system, no later modification time, as
// https://reproducible-builds.org/specs/source-date-epoch/ asks for; nothing is done for the zero time.
func clampTimes(root string, latest time.Time) error {
	if latest.IsZero() {
		return nil
	}
	var top unix.Stat_t
	if err := unix.Lstat(root, &top); err != nil {
		return fmt.Errorf("%s: %w", root, err)
	}
	return filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var at unix.Stat_t
		if err := unix.Lstat(path, &at); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if at.Dev != top.Dev {
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if !time.Unix(at.Mtim.Unix()).After(latest) {
			return nil
		}
		times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(latest.UnixNano())}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, times, unix.AT_SYMLINK_NOFOLLOW); err != nil && !errors.Is(err, unix.EROFS) {
			return fmt.Errorf("%s: %w", path, err)
		}
		return nil
	})
}

// lockDirectory makes a directory, and keeps it from other calls of this until unlock is called or the process ends. It may be
// removed meanwhile. It waits for others that long.
func lockDirectory(path string, wait time.Duration) (unlock func(), err error) {
	for until := time.Now().Add(wait); ; time.Sleep(10 * time.Millisecond) {
		if err := os.MkdirAll(path, 0o700); err != nil {
			return nil, err
		}
		dir, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // who had it removed it just now
		} else if err != nil {
			return nil, err
		}
		err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			mine, failed := dir.Stat()
			there, gone := os.Stat(path)
			if failed == nil && gone == nil && os.SameFile(mine, there) {
				return func() { dir.Close() }, nil
			}
			dir.Close()
			continue
		}
		dir.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if !time.Now().Before(until) {
			return nil, fmt.Errorf("the state in %s is in use: another apply works with it", path)
		}
	}
}
