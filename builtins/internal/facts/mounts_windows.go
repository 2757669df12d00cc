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
