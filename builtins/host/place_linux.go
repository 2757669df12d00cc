package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	wiretext "github.com/quantix-kvm/guest-agent/wire/text"
)

// A user who owns a directory on the way to a target may exchange it for a link, or for another directory, whenever he likes.
// By its path mount(8) would then mount over any directory of the guest. So where that can be, mount(8) mounts onto a directory
// that only root reaches, and what is there is moved onto the directory that was checked, by its descriptor.

// boundSource describes the directory that an entry binds, if others than root can exchange what leads to it; else it has no
// number.
func (r *Room) boundSource(root *fsys.Root, entry fstabEntry) (fsys.Meta, error) {
	path := wiretext.EscapePath(entry.source)
	if !isBind(entry.options) || !fsys.IsAbs(path) {
		return fsys.Meta{}, nil
	}
	at, err := root.Follow(path)
	if err != nil {
		return fsys.Meta{}, fault.On(path, err)
	}
	defer at.Close()
	shared, err := root.Exchangeable(at.Path)
	if err != nil || !shared {
		return fsys.Meta{}, fault.On(path, err)
	}
	meta, err := at.Stat()
	return meta, fault.On(path, err)
}

// mountExactly mounts an entry onto a directory of these numbers, wherever its path leads, if what it mounts has those of
// source, or these are not known.
func (r *Room) mountExactly(ctx context.Context, entry fstabEntry, checked, source fsys.Meta) error {
	target, err := openExactly(entry.target)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	var stat unix.Stat_t
	if err := unix.Fstat(target, &stat); err != nil {
		return err
	}
	if checked.Ino != 0 && (stat.Ino != checked.Ino || stat.Dev != checked.Dev) {
		return fault.ErrChanged
	}
	return r.mountOnto(ctx, target, entry.target, entry.fstype, source, "-t", entry.fstype, "-o", entry.options, entry.source)
}

// openExactly opens a directory, where its path leads to it by no link; fault.ErrChanged where it does not.
func openExactly(path string) (int, error) {
	fd, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS,
	})
	if errors.Is(err, unix.ELOOP) {
		err = fault.ErrChanged
	}
	return fd, err
}

// mountOnto runs mount(8) with these arguments for a directory of its own, and moves what is mounted there onto target, which
// path must still lead to then.
func (r *Room) mountOnto(ctx context.Context, target int, path, fstype string, source fsys.Meta, args ...string) (err error) {
	stage, err := newStage()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stage.remove()) }()
	if err := r.runMount(ctx, fstype, append(slices.Clone(args), stage.point())...); err != nil {
		return err
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, stage.point(), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if errors.Is(err, unix.ENOSYS) {
		err = fault.Unsupported("others than root can exchange a directory on the way, and this kernel mounts onto paths alone")
	}
	if err == nil {
		defer unix.Close(tree)
	}
	if err == nil && source.Ino != 0 {
		var stat unix.Stat_t
		if err = unix.Fstat(tree, &stat); err == nil && (stat.Ino != source.Ino || stat.Dev != source.Dev) {
			err = fault.Wrapf(fault.ErrChanged, "another directory took the place of what is to be mounted")
		}
	}
	if err := errors.Join(err, unix.Unmount(stage.point(), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)); err != nil {
		return err
	}
	if err := unix.MoveMount(tree, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return err
	}
	return keepIfAt(tree, path)
}

// keepIfAt unmounts what was just mounted, and nobody uses, where a path does not lead to it.
func keepIfAt(tree int, path string) error {
	number := func(fd int) (uint64, error) {
		var x unix.Statx_t
		err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &x)
		return x.Mnt_id, err
	}
	mounted, err := number(tree)
	if err == nil {
		var there int
		if there, err = openExactly(path); err == nil {
			defer unix.Close(there)
			var found uint64
			if found, err = number(there); err == nil && found != mounted {
				err = fault.ErrChanged
			}
		}
	}
	if err != nil {
		return errors.Join(err, unix.Unmount(fmt.Sprintf("/proc/self/fd/%d", tree), unix.MNT_DETACH))
	}
	return nil
}

// unmountAt unmounts what is mounted at a path, if it is the mount of this number: by the directory that the path is in, which
// is followed by no link, since somebody may exchange what leads there. A mount point itself cannot be renamed.
func unmountAt(path string, number uint64) error {
	parent, err := openExactly(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	var x unix.Statx_t
	const flags = unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if err := unix.Statx(parent, filepath.Base(path), flags, unix.STATX_MNT_ID, &x); err != nil {
		return err
	}
	if x.Mnt_id != number {
		return fault.ErrChanged
	}
	return unix.Unmount(fmt.Sprintf("/proc/self/fd/%d/%s", parent, filepath.Base(path)), unix.UMOUNT_NOFOLLOW)
}

// mountLines are the mounts of this process.
func mountLines() ([]*mountLine, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var list []*mountLine
	for line := range strings.Lines(string(data)) {
		if m, ok := parseMountLine(line); ok {
			list = append(list, m)
		}
	}
	return list, nil
}

// namespace identifies the mounts of this process, which another boot or container does not have.
func namespace() (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	mounts, err := os.Readlink("/proc/self/ns/mnt")
	return strings.TrimSpace(string(boot)) + " " + mounts, err
}

// noteMounts has an inverse know what is mounted before it.
func noteMounts(undo *pb.MountUndo) error {
	lines, err := mountLines()
	for _, m := range lines {
		undo.Before = append(undo.Before, m.number)
	}
	if err == nil {
		undo.Namespace, err = namespace()
	}
	return err
}

// kernels are file systems that come and go with services and containers.
var kernels = []string{
	autofs, "tmpfs", "overlay", "proc", "sysfs", "devpts", "devtmpfs", "mqueue", "cgroup", "cgroup2", "nsfs", "bpf", "ramfs",
	"hugetlbfs",
}

// moved looks for what host.mount has mounted where nothing is mounted at its target: a directory on the way to that may have
// another name by now. A new mount of the same type is an error that names it: it may be the one, or somebody else's.
func moved(in *pb.MountUndo) error {
	now, err := namespace()
	if err != nil || now != in.Namespace { // what was mounted has ended
		return err
	}
	lines, err := mountLines()
	if err != nil {
		return err
	}
	for _, m := range lines {
		alike := m.kind == in.Fstype || in.Fstype == "" && !slices.Contains(kernels, m.kind)
		if alike && !slices.Contains(in.Before, m.number) {
			return &fault.Error{
				Err: fault.Refuse("nothing is mounted there, and a %s, which was not mounted before, is at %s",
					m.kind, wiretext.EscapePath(m.point)),
				Hint: "a directory on the way may have been exchanged meanwhile; look whether that is to be unmounted",
			}
		}
	}
	return nil
}
