package facts

import (
	"context"

	"github.com/shirou/gopsutil/v3/disk"
)

// dataMounts lists the drives that hold data.
func dataMounts(ctx context.Context) ([]Disk, error) {
	partitions, err := disk.PartitionsWithContext(ctx, true)
	if err != nil {
		return nil, err
	}
	var mounts []Disk
	for _, p := range partitions {
		if holdsData(p.Fstype, p.Device) {
			mounts = append(mounts, Disk{Mount: p.Mountpoint, Device: p.Device, Type: p.Fstype})
		}
	}
	return mounts, nil
}

// sizes asks a drive how full it is.
func sizes(path string) (Disk, error) {
	u, err := disk.Usage(path)
	if err != nil {
		return Disk{}, err
	}
	return Disk{Total: u.Total, Used: u.Used, Available: u.Free, Inodes: u.InodesTotal, InodesUsed: u.InodesUsed}, nil
}
