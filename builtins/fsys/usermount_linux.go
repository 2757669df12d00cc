package fsys

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/text"
	"github.com/quantix-kvm/guest-agent/wire/text/lazyregexp"
)

// userID is in the options of a FUSE mount, and says who made it; see mount.fuse3(8).
var userID = lazyregexp.New(`(?:^|,)user_id=(\d+)(?:,|$)`)

func (r *realRoot) detachUserMounts(paths []string) (points []string, err error) {
	root, err := os.Readlink(descriptor{fd: r.handle}.path())
	if err != nil {
		return nil, fault.Cause(err)
	}
	mounts, err := readMounts()
	if err != nil {
		return nil, err
	}
	for _, m := range slices.Backward(mounts) { // what was mounted later may hide what was mounted before
		if !m.ofUser() || m.point == root || !Within(m.point, root) {
			continue
		}
		below := strings.TrimPrefix(strings.TrimPrefix(m.point, root), "/")
		point := "/" + text.EscapePath(below)
		if !slices.ContainsFunc(paths, func(path string) bool { return Within(path, point) }) {
			continue
		}
		if err := r.detach(below, m.number); err != nil {
			return points, fault.On(point, err)
		}
		points = append(points, point)
	}
	return points, nil
}

// ofUser reports whether another user than root and the agent's made the mount.
func (m mountLine) ofUser() bool {
	user := userID().FindStringSubmatch(m.options)
	return user != nil && user[1] != "0" && user[1] != strconv.Itoa(os.Geteuid()) && strings.HasPrefix(m.kind, "fuse")
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
	return unix.Unmount(descriptor{fd: fd}.path(), unix.MNT_DETACH)
}
