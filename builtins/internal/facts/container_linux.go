package facts

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// cgroups is where the control groups are mounted, by systemd and by containers.
const cgroups = "/sys/fs/cgroup"

// ContainerKind returns what runs the container that the guest is, in its own words: systemd-nspawn, lxc, docker, podman; empty
// where the guest is a machine.
func ContainerKind() string {
	if kind := firstLine("/", "run/systemd/container"); kind != "" { // systemd in the container wrote it
		return kind
	}
	if environment, err := os.ReadFile("/proc/1/environ"); err == nil { // https://systemd.io/CONTAINER_INTERFACE
		for _, entry := range bytes.Split(environment, []byte{0}) {
			if kind, ok := bytes.CutPrefix(entry, []byte("container=")); ok && len(kind) > 0 {
				return strings.ToValidUTF8(string(kind), "?")
			}
		}
	}
	for file, kind := range map[string]string{"/.dockerenv": "docker", "/run/.containerenv": "podman"} {
		if _, err := os.Stat(file); err == nil {
			return kind
		}
	}
	return ""
}

// GuestCgroup returns the directory of the control group that the first process is in, the guest's own where it is a container;
// empty without cgroup v2.
func GuestCgroup() string {
	if _, err := os.Stat(cgroups + "/cgroup.controllers"); err != nil {
		return ""
	}
	text, err := os.ReadFile("/proc/1/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			// systemd moves itself out of the group that the limits are of, which is the one above.
			return filepath.Join(cgroups, strings.TrimSuffix(filepath.Join("/", path), "/init.scope"))
		}
	}
	return ""
}

// ReadLimits reads the limits of a control group by its directory, those of the groups above it among them.
func ReadLimits(cgroup string) Limits { return limitsWithin(cgroups, cgroup) }

func limitsWithin(top, cgroup string) Limits {
	var l Limits
	if cgroup == "" {
		return l
	}
	l.MemoryUsed, _ = strconv.ParseUint(groupValue(cgroup, "memory.current"), 10, 64)
	for dir := cgroup; len(dir) >= len(top); dir = filepath.Dir(dir) {
		if most, err := strconv.ParseUint(groupValue(dir, "memory.max"), 10, 64); err == nil && (l.Memory == 0 || most < l.Memory) {
			l.Memory = most
		}
		if cpus := cpuLimit(groupValue(dir, "cpu.max")); cpus > 0 && (l.CPUs == 0 || cpus < l.CPUs) {
			l.CPUs = cpus
		}
	}
	return l
}

// cpuLimit reads "MICROSECONDS PERIOD" or "max PERIOD"; 0: there is no limit.
func cpuLimit(text string) float64 {
	quota, period, _ := strings.Cut(text, " ")
	most, err := strconv.ParseFloat(quota, 64)
	every, also := strconv.ParseFloat(period, 64)
	if err != nil || also != nil || every <= 0 || most <= 0 || math.IsInf(most, 0) || math.IsNaN(most) || math.IsNaN(every) {
		return 0
	}
	return most / every
}

func groupValue(dir, name string) string {
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}
