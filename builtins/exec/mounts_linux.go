package exec

import (
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
)

// mountTable knows which remote file systems are mounted. It is read again only when the kernel says that it has
// changed.
type mountTable struct {
	mu     sync.Mutex
	open   bool
	fd     int // no os.File: the runtime's poller would take the news
	mounts []proc.Mount
}

// remote returns the mounts of remote file systems. The slice is the table's own.
func (t *mountTable) remote() []proc.Mount {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.open {
		fd, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil
		}
		t.open, t.fd = true, fd
	} else if !changed(t.fd) {
		return t.mounts
	}
	all, err := proc.Mounts()
	if err != nil {
		return t.mounts
	}
	t.mounts = nil
	for _, m := range all {
		if isRemote(m.Type) {
			t.mounts = append(t.mounts, m)
		}
	}
	return t.mounts
}

// isRemote reports whether a file system of a type has a server. Not autofs: nearly each guest has one, for what is
// local.
func isRemote(kind string) bool {
	switch kind {
	case "nfs", "nfs4", "cifs", "smb3", "9p", "virtiofs", "ceph", "afs", "lustre", "ocfs2", "gfs2", "orangefs", "coda",
		"beegfs":
		return true
	}
	return kind == "fuse" || kind == "fuseblk" || strings.HasPrefix(kind, "fuse.")
}

// changed reports whether the table of mounts has changed since it was opened, or the last call, by proc(5).
func changed(fd int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}}, 0)
	return n > 0 || err != nil
}

func (t *mountTable) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open {
		unix.Close(t.fd)
		t.open = false
	}
}
