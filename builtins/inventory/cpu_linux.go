package inventory

import (
	"context"
	"strconv"
	"strings"

	"github.com/shirou/gopsutil/v3/common"
	"github.com/shirou/gopsutil/v3/cpu"

	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/builtins/internal/smbios"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const processors = "sys/devices/system/cpu"

// cpu describes the processors that are online: models from /proc/cpuinfo, and how they share cores, sockets and caches from
// sysfs.
func (m machine) cpu(ctx context.Context, details bool, tables []smbios.Structure) *pb.CpuInfo {
	_, architecture := facts.Kernel()
	info := &pb.CpuInfo{Architecture: architecture}
	ctx = context.WithValue(ctx, common.EnvKey, common.EnvMap{
		common.HostProcEnvKey: m.path("proc"), common.HostSysEnvKey: m.path("sys"),
	})
	if list, err := cpu.InfoWithContext(ctx); err == nil && len(list) > 0 {
		info.Model, info.Vendor = strings.TrimSpace(list[0].ModelName), list[0].VendorID
		for _, one := range list {
			info.FrequencyMhz = max(info.FrequencyMhz, one.Mhz)
		}
		if details {
			info.Flags = list[0].Flags
		}
	}
	sockets, cores := map[string]bool{}, map[string]bool{}
	caches := map[string]bool{}
	for _, name := range m.list(processors) {
		if _, err := strconv.Atoi(strings.TrimPrefix(name, "cpu")); err != nil || !strings.HasPrefix(name, "cpu") {
			continue
		}
		if m.read(processors, name, "online") == "0" { // the first one may have no such file
			continue
		}
		info.Threads++
		topology := func(file string) string { return m.read(processors, name, "topology", file) }
		socket, core := topology("physical_package_id"), topology("core_id")
		if socket != "" && !strings.HasPrefix(socket, "-") {
			sockets[socket] = true
		}
		if core != "" {
			cores[socket+"/"+topology("die_id")+"/"+topology("cluster_id")+"/"+core] = true
		}
		if details {
			m.caches(name, caches, info)
		}
	}
	info.Sockets, info.Cores = uint32(len(sockets)), uint32(len(cores))
	if info.Sockets == 0 {
		info.Sockets = populatedSockets(tables)
	}
	return info
}

// caches adds those of one processor that none before has.
func (m machine) caches(name string, known map[string]bool, info *pb.CpuInfo) {
	dir := processors + "/" + name + "/cache"
	for _, index := range m.list(dir) {
		level, kind := m.read(dir, index, "level"), m.read(dir, index, "type")
		key := level + kind + m.read(dir, index, "shared_cpu_list")
		if !strings.HasPrefix(index, "index") || known[key] {
			continue
		}
		known[key] = true
		switch size := bytesOf(m.read(dir, index, "size")); level {
		case "1":
			info.L1CacheBytes += size
		case "2":
			info.L2CacheBytes += size
		case "3":
			info.L3CacheBytes += size
		}
	}
}

// bytesOf returns the number of a size as sysfs has it, such as 32K; 0: it is none.
func bytesOf(size string) uint64 {
	shift := 0
	switch {
	case strings.HasSuffix(size, "K"):
		shift = 10
	case strings.HasSuffix(size, "M"):
		shift = 20
	}
	n, err := strconv.ParseUint(strings.TrimRight(size, "KM"), 10, 40)
	if err != nil {
		return 0
	}
	return n << shift
}
