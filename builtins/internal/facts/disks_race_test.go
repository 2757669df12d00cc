package facts

import (
	"testing"

	"github.com/shirou/gopsutil/v3/disk"
)

// Two reports at a time see different mounts while one comes or goes: what the one forgets, the other does without.
func TestReportsBesideEachOther(t *testing.T) {
	d := Disks{usage: func(string) (*disk.UsageStat, error) { return &disk.UsageStat{Total: 1}, nil }}
	m := Disk{Mount: "/comes/and/goes", Device: "/dev/x"}
	<-d.ask(m)
	if list := d.collect(nil); len(list) != 0 {
		t.Error(list)
	}
	if list := d.collect([]Disk{m}); len(list) != 0 {
		t.Error(list)
	}
}
