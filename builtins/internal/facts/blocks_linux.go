package facts

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// BlockDevices lists the disks of the guest by name, whatever is on them, but for drives without a medium. What the kernel
// makes of files, memory and other disks (loop, zram, dm, md) is none. It opens no disk.
func BlockDevices() []BlockDevice {
	const dir = "/sys/block"
	names, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var list []BlockDevice
	for _, entry := range names {
		path := filepath.Join(dir, entry.Name())
		target, err := os.Readlink(path)
		if err != nil || strings.Contains(target, "/virtual/") && !strings.Contains(target, "/virtual/nvme-subsystem/") {
			continue
		}
		sectors, err := strconv.ParseUint(groupValue(path, "size"), 10, 64)
		if err != nil || sectors == 0 {
			continue
		}
		list = append(list, BlockDevice{
			Name: strings.ReplaceAll(entry.Name(), "!", "/"), Size: sectors * sectorSize,
			ReadOnly: groupValue(path, "ro") == "1", Removable: groupValue(path, "removable") == "1",
		})
	}
	return list
}

// sectorSize is the unit of sizes in sysfs, whatever the disk's own is.
const sectorSize = 512
