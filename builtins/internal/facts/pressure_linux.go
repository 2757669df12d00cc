package facts

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// ReadPressure reads the stall information of the guest, or of a control group by its directory; nil where the kernel does not
// tell. See Documentation/accounting/psi.rst of the kernel.
func ReadPressure(cgroup string) *Pressure {
	read := func(name string) (Stall, bool) {
		if cgroup == "" {
			return readStall(filepath.Join("/proc/pressure", name))
		}
		return readStall(filepath.Join(cgroup, name+".pressure"))
	}
	p := &Pressure{}
	found := false
	for name, into := range map[string]*Stall{"cpu": &p.CPU, "memory": &p.Memory, "io": &p.IO} {
		stall, ok := read(name)
		*into, found = stall, found || ok
	}
	if !found {
		return nil
	}
	return p
}

// readStall reads lines such as "some avg10=0.00 avg60=0.12 avg300=0.05 total=1234".
func readStall(path string) (s Stall, ok bool) {
	text, err := os.ReadFile(path)
	if err != nil {
		return Stall{}, false
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		into := &s.Full
		switch fields[0] {
		case "some":
			into, ok = &s.Some, true
		case "full":
		default:
			continue
		}
		for _, field := range fields[1:] {
			name, value, _ := strings.Cut(field, "=")
			if name == "total" {
				into.TotalMicroseconds, _ = strconv.ParseUint(value, 10, 64)
				continue
			}
			share, _ := strconv.ParseFloat(value, 64)
			switch name {
			case "avg10":
				into.Avg10 = share
			case "avg60":
				into.Avg60 = share
			case "avg300":
				into.Avg300 = share
			}
		}
	}
	return s, ok
}
