package facts

import (
	"os"
	"path/filepath"
	"testing"
)

func TestLimits(t *testing.T) {
	top := t.TempDir()
	group := filepath.Join(top, "machine.slice", "guest")
	if err := os.MkdirAll(group, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(top, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if l := limitsWithin(top, group); l != (Limits{}) {
		t.Error(l)
	}
	write("machine.slice/guest/memory.max", "max\n")
	write("machine.slice/guest/memory.current", "4096\n")
	write("machine.slice/guest/cpu.max", "150000 100000\n")
	write("machine.slice/memory.max", "1073741824\n")
	write("machine.slice/cpu.max", "max 100000\n")
	if l := limitsWithin(top, group); l != (Limits{Memory: 1 << 30, MemoryUsed: 4096, CPUs: 1.5}) {
		t.Error(l)
	}
	write("machine.slice/guest/memory.max", "65536\n") // the least of all counts
	write("machine.slice/cpu.max", "50000 100000\n")
	if l := limitsWithin(top, group); l.Memory != 65536 || l.CPUs != 0.5 {
		t.Error(l)
	}
	for _, text := range []string{"", "max", "1", "a b", "1 0", "1 -1", "inf 1", "nan nan", "-5 100"} {
		if n := cpuLimit(text); n != 0 {
			t.Errorf("%q is %f", text, n)
		}
	}
}

func TestReadPressure(t *testing.T) {
	group := t.TempDir()
	if p := ReadPressure(group); p != nil {
		t.Error(p)
	}
	for name, text := range map[string]string{
		"cpu":    "some avg10=1.50 avg60=2.25 avg300=3.00 total=12345678901\n", // some kernels have no line of all
		"memory": "some avg10=0.00 avg60=0.00 avg300=0.10 total=5\nfull avg10=4.00 avg60=5.00 avg300=6.00 total=7\nnew avg10=9\n",
		"io":     "",
	} {
		if err := os.WriteFile(filepath.Join(group, name+".pressure"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	p := ReadPressure(group)
	if p == nil || p.CPU != (Stall{Some: StallShare{1.5, 2.25, 3, 12345678901}}) || p.IO != (Stall{}) ||
		p.Memory != (Stall{StallShare{0, 0, .1, 5}, StallShare{4, 5, 6, 7}}) {
		t.Errorf("%+v", p)
	}
	if _, err := os.Stat("/proc/pressure/memory"); err == nil && ReadPressure("") == nil {
		t.Error("the kernel tells, and nothing is read")
	}
}

// What sysfs says are disks, and no loop devices or ram disks.
func TestBlockDevices(t *testing.T) {
	for _, d := range BlockDevices() {
		if _, err := os.Stat(filepath.Join("/dev", d.Name)); err != nil || d.Size == 0 {
			t.Errorf("%+v: %v", d, err)
		}
		if target, _ := os.Readlink("/sys/block/" + d.Name); filepath.Base(filepath.Dir(filepath.Dir(target))) == "virtual" {
			t.Errorf("%+v is %s", d, target)
		}
	}
}
