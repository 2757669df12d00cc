package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// clampTimes gives what is in a tree, as far as it lies on the same file system, no later modification time than epoch, in seconds
// since 1970, as https://reproducible-builds.org/specs/source-date-epoch/ asks for; "": nothing is done.
func clampTimes(root, epoch string) error {
	if epoch == "" {
		return nil
	}
	seconds, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil || seconds < 0 {
		return fmt.Errorf("SOURCE_DATE_EPOCH is %q, which is no number of seconds", epoch)
	}
	latest := time.Unix(seconds, 0)
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
