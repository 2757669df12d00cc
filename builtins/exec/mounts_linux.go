package exec

import (
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
)

// mountTable knows which remote file systems are mounted, and which could be frozen. It is read again only when the kernel says
// that it has changed.
type mountTable struct {
	mu        sync.Mutex
	open      bool
	fd        int // no os.File: the runtime's poller would take the news
	remotes   []proc.Mount
	freezable map[string]string
}

// remote returns the mounts of remote file systems. The slice is the table's own.
func (t *mountTable) remote() []proc.Mount {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refresh()
	return t.remotes
}

// canFreeze returns a mount point of each file system that could be frozen and is not held already, in an order.
func (t *mountTable) canFreeze(held func(device string) bool) (points []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refresh()
	for device, point := range t.freezable {
		if !held(device) {
			points = append(points, point)
		}
	}
	slices.Sort(points)
	return points
}

// refresh reads the mounts if they have changed. Where they cannot be read all stays. The caller holds mu.
func (t *mountTable) refresh() {
	if !t.open {
		fd, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return
		}
		t.open, t.fd = true, fd
	} else if !changed(t.fd) {
		return
	}
	all, err := proc.Mounts()
	if err != nil {
		return
	}
	t.remotes, t.freezable = nil, freezable()
	for _, m := range all {
		if isRemote(m.Type) {
			t.remotes = append(t.remotes, m)
		}
	}
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
