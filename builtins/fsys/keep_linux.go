package fsys

import (
	"errors"

	"golang.org/x/sys/unix"
)

func sameMount(a, b handle) (bool, error) {
	one, err := mountID(a, "")
	if err != nil {
		return false, err
	}
	other, err := mountID(b, "")
	return one == other, err
}

func linkAt(fromDir handle, from string, toDir handle, to string) error {
	return unix.Linkat(fromDir, from, toDir, to, 0)
}

func syncAll(root handle) error {
	fd, err := unix.Openat(root, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(fd), unix.Close(fd))
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

// configfs is CONFIGFS_MAGIC of the kernel's fs/configfs/mount.c.
const configfs = 0x62656570
