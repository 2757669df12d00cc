package fsys

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

func sameMount(a, b handle) (bool, error) {
	one, err := mountID(a, "")
	if err != nil {
		return false, err
	}
	other, err := mountID(b, "")
	return one == other, err
}

func pseudo(dir handle) (bool, error) {
	var stat unix.Statfs_t
	if err := unix.Fstatfs(dir, &stat); err != nil {
		return false, err
	}
	switch int64(stat.Type) {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.DEBUGFS_MAGIC,
		unix.TRACEFS_MAGIC, unix.SECURITYFS_MAGIC, unix.SELINUX_MAGIC, unix.BPF_FS_MAGIC, unix.EFIVARFS_MAGIC, configfs:
		return true, nil
	}
	return false, nil
}

// stableInodes knows the file systems that keep an object's inode number. FAT and many network file systems make one up
// whenever they read the object anew, and overlayfs may change it with the first write.
func stableInodes(dir handle) (bool, error) {
	var stat unix.Statfs_t
	if err := unix.Fstatfs(dir, &stat); err != nil {
		return false, err
	}
	switch int64(stat.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC, unix.TMPFS_MAGIC, zfs, bcachefs:
		return true, nil
	}
	return false, nil
}

const (
	zfs      = 0x2fc12fc1 // ZFS_SUPER_MAGIC of OpenZFS' include/sys/zfs_vfsops_os.h
	bcachefs = 0xca451a4e // BCACHEFS_SUPER_MAGIC of the kernel's include/uapi/linux/magic.h
)

// configfs is CONFIGFS_MAGIC of the kernel's fs/configfs/mount.c.
const configfs = 0x62656570

// mountID returns the number of the mount that an object is on. Two mounts of one file system have different numbers.
func mountID(dir handle, name string) (uint64, error) {
	var x unix.Statx_t
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if err := unix.Statx(dir, name, flags, unix.STATX_MNT_ID, &x); err != nil {
		return 0, err
	}
	return x.Mnt_id, nil
}

// noMountsBelow asks the kernel's list of mounts, which is quicker than a look at every directory of the tree.
func noMountsBelow(dir handle, name string) error {
	o, err := openDescriptor(dir, name)
	if err != nil {
		return err
	}
	defer o.close()
	path, err := os.Readlink(o.path())
	if err != nil {
		return fault.Cause(err)
	}
	mounts, err := readMounts()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if m.point != path && Within(m.point, path) {
			return fault.Refuse("a file system is mounted on %s", text.EscapePath(m.point))
		}
	}
	return nil
}

// mountLine is a line of the kernel's list of mounts.
type mountLine struct {
	number                                    uint64
	device, dir, point, kind, source, options string
}

// readMounts reads the kernel's list of mounts; see proc_pid_mountinfo(5).
func readMounts() ([]mountLine, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fault.Cause(err)
	}
	var list []mountLine
	for line := range strings.Lines(string(data)) {
		first, second, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		fields, more := MountFields(first), strings.Split(second, " ")
		if !ok || len(fields) < 6 || len(more) < 2 {
			continue
		}
		number, err := strconv.ParseUint(fields[0], 10, 64)
		if err != nil {
			continue
		}
		list = append(list, mountLine{
			number, fields[2], UnescapeMount(fields[3]), UnescapeMount(fields[4]), more[0], UnescapeMount(more[1]),
			strings.Join(more[2:], " "),
		})
	}
	return list, nil
}

func isMounted(device string) (bool, error) {
	mounts, err := readMounts()
	for _, m := range mounts {
		if m.device == device {
			return true, nil
		}
	}
	return false, err
}

// mountNumber returns the number of the mount that an object is on; that of the directory where nothing has the name.
func (d *realDir) mountNumber(name string) (uint64, error) {
	number, err := mountID(d.handle, name)
	if errors.Is(err, fs.ErrNotExist) {
		return mountID(d.handle, "")
	}
	return number, err
}

func (d *realDir) mount(name string) (Mount, error) {
	number, err := d.mountNumber(name)
	if err != nil {
		return Mount{}, err
	}
	root, err := os.Readlink(descriptor{fd: d.root.handle}.path())
	if err != nil {
		return Mount{}, fault.Cause(err)
	}
	mounts, err := readMounts()
	if err != nil {
		return Mount{}, err
	}
	m := Mount{Point: "/", Number: number} // a mount that the agent's own root directory hides is not in the list
	source := ""
	for _, line := range mounts {
		if line.number != number {
			continue
		}
		if line.point != root && Within(line.point, root) {
			m.Point = "/" + text.EscapePath(strings.TrimPrefix(strings.TrimPrefix(line.point, root), "/"))
		}
		source = line.source
		m.Dir, m.Type, m.Source, m.Device = text.EscapePath(line.dir), line.kind, text.EscapePath(line.source), line.device
	}
	err = m.addFileSystem(d.handle, name, source)
	return m, err
}

// File systems whose f_fsid of statfs(2) is made from what is on the disk, and not of the device's number.
const (
	btrfsMagic    = 0x9123683e
	zfsMagic      = 0x2fc12fc1
	bcachefsMagic = 0xca451a4e
)

// addFileSystem adds what the file system that an object is on says of itself. It asks nothing that a server must answer, but
// for statfs.
func (m *Mount) addFileSystem(dir handle, name, source string) error {
	fd, err := unix.Openat(dir, name, pathOnly, 0)
	if errors.Is(err, fs.ErrNotExist) {
		fd, err = dupHandle(dir)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var stat unix.Statfs_t
	if err := unix.Fstatfs(fd, &stat); err != nil {
		return err
	}
	kind := uint32(stat.Type)
	switch kind {
	case unix.EXT4_SUPER_MAGIC, btrfsMagic, zfsMagic, bcachefsMagic, unix.TMPFS_MAGIC, unix.RAMFS_MAGIC, unix.HUGETLBFS_MAGIC:
		if stat.Fsid != (unix.Fsid{}) { // a tmpfs has one since Linux 5.13
			m.ID = fmt.Sprintf("%08x%08x", uint32(stat.Fsid.Val[1]), uint32(stat.Fsid.Val[0]))
		}
	case unix.XFS_SUPER_MAGIC:
		if m.ID, err = xfsID(fd); err != nil {
			return err
		}
	default:
		m.ID = diskID(source)
	}
	m.Volatile = kind == unix.TMPFS_MAGIC || kind == unix.RAMFS_MAGIC || kind == unix.HUGETLBFS_MAGIC
	m.ReadOnly = stat.Flags&unix.ST_RDONLY != 0
	m.Sized, m.Free, m.FreeInodes = stat.Blocks > 0, stat.Bfree*uint64(stat.Bsize), stat.Ffree
	return nil
}

// xfsGeometry is xfs_fsop_geom_v1 of the kernel's xfs_fs.h, as far as it matters.
type xfsGeometry struct {
	_    [64]byte
	uuid [16]byte
	_    [32]byte
}

// xfsGetGeometry is XFS_IOC_FSGEOMETRY_V1: _IOR('X', 100, struct xfs_fsop_geom_v1).
const xfsGetGeometry = 2<<30 | uint(unsafe.Sizeof(xfsGeometry{}))<<16 | 'X'<<8 | 100

// xfsID asks for the UUID, since the f_fsid of xfs is the number of its device.
func xfsID(fd handle) (string, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return "", err
	}
	path := descriptor{fd: fd}.path()
	if stat.Mode&unix.S_IFMT != unix.S_IFDIR { // a fifo would wait, a device would act
		var err error
		if path, err = os.Readlink(path); err != nil {
			return "", fault.Cause(err)
		}
		path = filepath.Dir(path)
	}
	open, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(open)
	var geometry xfsGeometry
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(open), uintptr(xfsGetGeometry), uintptr(unsafe.Pointer(&geometry)))
	if errno != 0 {
		return "", errno
	}
	return fmt.Sprintf("%x", geometry.uuid), nil
}

// diskID returns the UUID under which udev lists the disk that a file system is on; empty: there is none.
func diskID(source string) string {
	var disk, other unix.Stat_t
	if unix.Stat(source, &disk) != nil || disk.Mode&unix.S_IFMT != unix.S_IFBLK {
		return ""
	}
	const dir = "/dev/disk/by-uuid"
	list, _ := os.ReadDir(dir)
	for _, link := range list {
		if unix.Stat(filepath.Join(dir, link.Name()), &other) == nil && other.Rdev == disk.Rdev {
			return text.EscapePath(link.Name())
		}
	}
	return ""
}

// watchMounts polls the kernel's list, which has an exceptional condition after each change.
func watchMounts(ctx context.Context) (<-chan struct{}, error) {
	// Not an os.File: the runtime would poll that as well, and only one poller gets each change.
	list, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("open /proc/self/mountinfo", err)
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return nil, errors.Join(os.NewSyscallError("pipe2", err), unix.Close(list))
	}
	changed := make(chan struct{}, 1)
	context.AfterFunc(ctx, func() { _ = unix.Close(pipe[1]) })
	go func() {
		defer unix.Close(list)
		defer unix.Close(pipe[0])
		for ctx.Err() == nil {
			fds := []unix.PollFd{{Fd: int32(list), Events: unix.POLLPRI}, {Fd: int32(pipe[0]), Events: unix.POLLIN}}
			if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
				return
			}
			if fds[0].Revents&unix.POLLPRI != 0 {
				select {
				case changed <- struct{}{}:
				default:
				}
			}
		}
	}()
	return changed, nil
}
