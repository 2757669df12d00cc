package fsys

import (
	"fmt"
	"os"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// userID is in the options of a FUSE mount, and says who made it; see mount.fuse3(8).
var userID = regexp.MustCompile(`(?:^|,)user_id=(\d+)(?:,|$)`)

func (r *realRoot) detachUserMount(path string) (point string, err error) {
	root, err := os.Readlink(descriptor{r.handle}.path())
	if err != nil {
		return "", fault.Cause(err)
	}
	mounts, err := readMounts()
	if err != nil {
		return "", err
	}
	full := strings.TrimSuffix(root, "/") + "/" + strings.Join(Elements(path), "/")
	for _, m := range mounts {
		user := userID.FindStringSubmatch(m.options)
		if user == nil || user[1] == "0" || user[1] == fmt.Sprint(os.Geteuid()) || !strings.HasPrefix(m.kind, "fuse") ||
			!Within(full, m.point) || m.point == root || !Within(m.point, root) {
			continue
		}
		point := strings.TrimPrefix(strings.TrimPrefix(m.point, root), "/")
		return "/" + text.EscapePath(point), r.detach(point, m.number)
	}
	return "", nil
}

// detach detaches the mount of a number at a point below the root. Nothing of it is entered: that may never return.
func (r *realRoot) detach(point string, number uint64) error {
	fd, err := unix.Openat2(r.handle, point, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return fault.Cause(err)
	}
	if !strings.Contains(string(info), fmt.Sprintf("mnt_id:\t%d\n", number)) {
		return fault.ErrChanged
	}
	return unix.Unmount(descriptor{fd}.path(), unix.MNT_DETACH)
}
