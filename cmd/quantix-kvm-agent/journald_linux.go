package main

import (
	"fmt"
	"os"
	"syscall"
)

// stderrIsJournal reports whether stderr goes to the journal: systemd names the device and inode of what it connected
// (systemd.exec(5), JOURNAL_STREAM), and stderr may have been redirected since.
func stderrIsJournal() bool {
	var stat syscall.Stat_t
	if err := syscall.Fstat(int(os.Stderr.Fd()), &stat); err != nil {
		return false
	}
	return os.Getenv("JOURNAL_STREAM") == fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)
}
