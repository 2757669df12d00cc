package facts

import (
	"net"
	"net/netip"

	counters "github.com/shirou/gopsutil/v3/net"
	"golang.org/x/sys/windows"
)

// Links lists the network interfaces by index.
func Links() ([]Link, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	traffic := map[string]counters.IOCountersStat{}
	if stats, err := counters.IOCounters(true); err == nil {
		for _, s := range stats {
			traffic[s.Name] = s
		}
	}
	var links []Link
	for _, i := range interfaces {
		t := traffic[i.Name]
		link := Link{Name: i.Name, Index: i.Index, MAC: i.HardwareAddr.String(), MTU: uint32(max(i.MTU, 0)),
			Enabled: i.Flags&net.FlagUp != 0, Up: i.Flags&net.FlagRunning != 0, Loopback: i.Flags&net.FlagLoopback != 0,
			RxBytes: t.BytesRecv, TxBytes: t.BytesSent, RxPackets: t.PacketsRecv, TxPackets: t.PacketsSent}
		link.Kind = linkKind(i.Index)
		addresses, err := i.Addrs()
		if err != nil {
			return nil, err
		}
		for _, a := range addresses {
			if prefix, err := netip.ParsePrefix(a.String()); err == nil {
				link.Prefixes = append(link.Prefixes, prefix)
			}
		}
		links = append(links, link)
	}
	return links, nil
}

// linkKind says what a link is: loopback, physical for hardware, tunnel, or virtual; empty: it is not known.
func linkKind(index int) string {
	row := windows.MibIfRow2{InterfaceIndex: uint32(index)}
	if windows.GetIfEntry2Ex(windows.MibIfEntryNormal, &row) != nil {
		return ""
	}
	const hardware = 1 // of InterfaceAndOperStatusFlags
	switch {
	case row.Type == windows.IF_TYPE_SOFTWARE_LOOPBACK:
		return "loopback"
	case row.InterfaceAndOperStatusFlags&hardware != 0:
		return "physical"
	case row.Type == windows.IF_TYPE_TUNNEL:
		return "tunnel"
	}
	return "virtual"
}
