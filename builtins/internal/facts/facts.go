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
	"strings"
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
	Kind     string // loopback, physical for hardware, or the driver's name: veth, bridge, bond…; empty: not known
	Enabled  bool   // administratively up
	Up       bool   // enabled, with a carrier
	Loopback bool
	// Plumbing marks a link that only serves containers or virtual machines in the guest: a veth, a bridge without a
	// port to the outside, or an overlay network (vxlan, geneve, ipip). It is recognized by kind, not by name. In a
	// container a veth may lead outside, and an overlay where nothing else has an address.
	Plumbing bool
	Prefixes []netip.Prefix // addresses with the length of their network
	// Tentative are those of Prefixes that cannot be used yet, or at all: they are checked for duplicates, or one was found.
	Tentative []netip.Prefix

	Master int // the index of the bridge or bond that it is a port of; 0: none

	Away bool // the other end is in another network namespace

	RxBytes, TxBytes, RxPackets, TxPackets uint64
}

// Route is one route, or one next hop of it.
type Route struct {
	Destination netip.Prefix
	Gateway     netip.Addr // not valid: the destination is on the link
	Link        int        // index of the interface; 0: none
	Source      netip.Addr // not valid: the kernel chooses
	Metric      uint32     // the lowest counts
	Table       uint32     // 254 is the main one
	Protocol    string     // who made it: kernel, boot, static, dhcp, ra…, or a number
	Scope       string     // global, site, link, host, nowhere, or a number
	Kind        string     // unicast, or what is done with packets instead: blackhole, unreachable, prohibit, throw
}

// Pressure is how long tasks waited for what they had not enough of.
type Pressure struct{ CPU, Memory, IO Stall }

// Stall is the time in which some tasks waited, and in which all that had something to do did.
type Stall struct{ Some, Full StallShare }

// StallShare is in percent, over the last 10, 60 and 300 seconds, and the time since boot.
type StallShare struct {
	Avg10, Avg60, Avg300 float64
	TotalMicroseconds    uint64
}

// Limits are those of a control group: bytes and processors; 0: there is none.
type Limits struct {
	Memory, MemoryUsed uint64
	CPUs               float64
}

// BlockDevice is a disk of the guest; Size is in bytes.
type BlockDevice struct {
	Name                string
	Size                uint64
	ReadOnly, Removable bool
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

// HostnameIn returns the name in the text of a hostname(5): its first line that is neither empty nor a comment, without the dot that
// may end a full name.
func HostnameIn(text []byte) string {
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			return strings.TrimRight(line, ".")
		}
	}
	return ""
}
