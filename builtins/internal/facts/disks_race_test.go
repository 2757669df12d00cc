package facts

import "testing"

// Concurrent reports see different mounts while a file system is mounted or unmounted: a probe that one drops the other
// does without.
func TestConcurrentReports(t *testing.T) {
	d := Disks{sizes: func(string) (Disk, error) { return Disk{Total: 1}, nil }}
	m := Disk{Mount: "/comes/and/goes", Device: "/dev/x"}
	<-d.query(m)
	if list := d.collect(nil); len(list) != 0 {
		t.Error(list)
	}
	if list := d.collect([]Disk{m}); len(list) != 0 {
		t.Error(list)
	}
}
