package fsys

import (
	"os"
	"strconv"
	"strings"

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
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fault.Cause(err)
	}
	for line := range strings.Lines(string(mounts)) {
		fields := strings.SplitN(line, " ", 6)
		if len(fields) < 6 {
			continue
		}
		if point := unescapeMount(fields[4]); point != path && Within(point, path) {
			return fault.Refuse("a file system is mounted on %s", text.EscapePath(point))
		}
	}
	return nil
}

// unescapeMount decodes the octal escapes that mountinfo has for blanks.
func unescapeMount(text string) string {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] == '\\' && i+3 < len(text) {
			if code, err := strconv.ParseUint(text[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(code))
				i += 3
				continue
			}
		}
		b.WriteByte(text[i])
	}
	return b.String()
}
