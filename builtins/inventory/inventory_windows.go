package inventory

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/builtins/internal/smbios"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const canReadHardware = true

// reader is what is known from call to call.
type reader struct{ disks *facts.Disks }

func newReader() reader { return reader{&facts.Disks{}} }

// readHardware reads what is asked for. What cannot be read is left empty.
func (r *Room) readHardware(ctx context.Context, in *pb.GetHardwareInfoRequest) (*pb.HardwareInfo, error) {
	disks, err := r.disks.Read(ctx)
	if err != nil {
		disks = nil // what is used is not known then
	}
	tables := smbios.Read("/")
	hardware := &pb.HardwareInfo{
		Cpu: processor(in.IncludeCpuDetails, tables), Memory: memory(ctx, tables), Bios: bios(tables),
		Disks: drives(facts.Drives(), disks, in.IncludeDiskDetails), Gpus: gpus(), Os: system(ctx),
	}
	if links, err := facts.Links(); err == nil {
		hardware.NetworkAdapters = adapters(links, in.IncludeNetworkDetails)
	}
	return hardware, context.Cause(ctx)
}

// bios reads what SMBIOS says of the firmware and the system.
func bios(tables []smbios.Structure) *pb.BiosInfo {
	b := &pb.BiosInfo{}
	for _, s := range tables {
		switch s.Kind {
		case smbios.BIOS:
			b.Vendor, b.Version, b.ReleaseDate = s.Text(4), s.Text(5), s.Text(8)
		case smbios.System:
			b.SystemManufacturer, b.SystemProduct, b.SystemSerial, b.SystemUuid = s.Text(4), s.Text(5), s.Text(7), s.UUID(8)
		}
	}
	return b
}

// values reads texts and numbers of a key; what is not there is empty.
type values struct{ registry.Key }

// openValues opens a key of this machine. One that is not there has no values.
func openValues(path string) values {
	key, err := registry.OpenKey(registry.LOCAL_MACHINE, path, registry.QUERY_VALUE|registry.WOW64_64KEY)
	if err != nil {
		return values{}
	}
	return values{key}
}

func (v values) close() {
	if v.Key != 0 {
		v.Close()
	}
}

func (v values) text(name string) string {
	if v.Key == 0 {
		return ""
	}
	value, _, _ := v.GetStringValue(name)
	return strings.TrimSpace(value)
}

func (v values) number(name string) uint64 {
	if v.Key == 0 {
		return 0
	}
	value, _, _ := v.GetIntegerValue(name)
	return value
}

// system reports Windows. It asks no name server.
func system(ctx context.Context) *pb.OsInfo {
	release := facts.ReadRelease(ctx, "/")
	kernel, architecture := facts.Kernel()
	info := &pb.OsInfo{
		Name: release.Name, Version: release.Version, Kernel: kernel, Architecture: architecture, Hostname: facts.Hostname("/"),
		Domain: domain(),
	}
	current := openValues(`SOFTWARE\Microsoft\Windows NT\CurrentVersion`)
	defer current.close()
	if info.Build = current.text("CurrentBuildNumber"); info.Build != "" {
		if revision := current.number("UBR"); revision > 0 {
			info.Build = fmt.Sprintf("%s.%d", info.Build, revision)
		}
	}
	if installed := current.number("InstallDate"); installed > 0 {
		info.InstallDate = timestamppb.New(time.Unix(int64(installed), 0))
	}
	if up, err := facts.Uptime(ctx); err == nil {
		info.LastBoot = timestamppb.New(time.Now().Add(-up).Truncate(time.Second))
	}
	return info
}

// domain is the domain in the full name of the machine; empty: it has none.
func domain() string {
	var name [512]uint16
	size := uint32(len(name))
	if windows.GetComputerNameEx(windows.ComputerNameDnsDomain, &name[0], &size) != nil {
		return ""
	}
	return windows.UTF16ToString(name[:size])
}

// processor reports the processors: names from the registry, and how they share cores, sockets and caches from the kernel.
func processor(details bool, tables []smbios.Structure) *pb.CpuInfo {
	_, architecture := facts.Kernel()
	info := &pb.CpuInfo{Architecture: architecture, Threads: uint32(runtime.NumCPU())}
	first := openValues(`HARDWARE\DESCRIPTION\System\CentralProcessor\0`)
	defer first.close()
	info.Model, info.Vendor, info.FrequencyMhz = first.text("ProcessorNameString"), first.text("VendorIdentifier"), float64(first.number("~MHz"))
	t := readTopology()
	info.Cores, info.Sockets = t.cores, t.sockets
	if t.threads > 0 {
		info.Threads = t.threads
	}
	if info.Sockets == 0 {
		info.Sockets = populatedSockets(tables)
	}
	if details {
		info.L1CacheBytes, info.L2CacheBytes, info.L3CacheBytes = t.caches[1], t.caches[2], t.caches[3]
	}
	return info
}
