// Package facts reads what the running guest is: its system, memory, links and file systems.
//
//	/proc, netlink, statfs, os-release ──► plain values ──► host (scripts), telemetry (the host's reports)
//
// Nothing here waits for a name server, starts a process, or hangs with a file system that hangs.
//
// gopsutil is used for memory, load, uptime, and all of Windows. It is not used for links (it has no kinds and asks the
// kernel once per link), for the number of processes (it opens every one of them, or counts threads), and for the choice
// of file systems (it lists all or none of those without a block device, network file systems included).
//
// Not here: how any of it is reported, and changing it.
package facts

import (
	"context"
	"net/netip"
	"runtime"
	"time"

	"github.com/shirou/gopsutil/v3/host"
	"github.com/shirou/gopsutil/v3/mem"
)

// Unknown stands for what cannot be read.
const Unknown = "Unknown"

// Release is the name and version of the operating system.
type Release struct {
	Name    string // NAME of os-release
	Version string // VERSION_ID
	ID      string // ID
}

// Memory is in bytes. Total less Available is in use; caches count as available.
type Memory struct {
	Total, Available, SwapTotal, SwapFree uint64
}

// Link is one network interface.
type Link struct {
	Name     string
	Index    int
	MAC      string
	MTU      uint32
	Kind     string // the driver's name: veth, bridge, bond…; empty for hardware
	Enabled  bool   // administratively up
	Up       bool   // enabled, with a carrier
	Loopback bool
	// Plumbing marks a link that only serves containers or virtual machines in the guest: a veth, or a bridge without a
	// port to the outside. It is recognized by kind, not by name.
	Plumbing bool
	Prefixes []netip.Prefix // addresses with the length of their network

	Master int // the index of the bridge or bond that it is a port of; 0: none

	RxBytes, TxBytes, RxPackets, TxPackets uint64
}

// ReadMemory reads the memory of the guest.
func ReadMemory(ctx context.Context) (Memory, error) {
	vm, err := mem.VirtualMemoryWithContext(ctx)
	if err != nil {
		return Memory{}, err
	}
	// On Linux the swap is in the same file; gopsutil's own call for it would read much more.
	m := Memory{Total: vm.Total, Available: min(vm.Available, vm.Total), SwapTotal: vm.SwapTotal, SwapFree: vm.SwapFree}
	if m.SwapTotal == 0 && runtime.GOOS != "linux" {
		if swap, err := mem.SwapMemoryWithContext(ctx); err == nil {
			m.SwapTotal, m.SwapFree = swap.Total, swap.Free
		}
	}
	return m, nil
}

// Uptime returns the time since the guest was booted.
func Uptime(ctx context.Context) (time.Duration, error) {
	seconds, err := host.UptimeWithContext(ctx)
	return time.Duration(seconds) * time.Second, err
}

// Addresses returns the addresses by which the guest is reached: those of enabled links, except loopback, plumbing, and
// link-local addresses.
func Addresses(links []Link) []netip.Addr {
	var list []netip.Addr
	for _, link := range links {
		if !link.Enabled || link.Loopback || link.Plumbing {
			continue
		}
		for _, prefix := range link.Prefixes {
			if addr := prefix.Addr(); !addr.IsLinkLocalUnicast() && !addr.IsLoopback() {
				list = append(list, addr)
			}
		}
	}
	return list
}
