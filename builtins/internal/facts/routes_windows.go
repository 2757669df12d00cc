package facts

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/windows"
)

// mainTable is the number that Linux has for the only table of Windows.
const mainTable = 254

// routeOrigins are names of NL_ROUTE_PROTOCOL that Linux has as well.
var routeOrigins = map[uint32]string{2: "kernel", 3: "static", 4: "redirect", 10006: "static", 10007: "static"}

// routeMakers are names of NL_ROUTE_ORIGIN, for those whose protocol is that of the manager.
var routeMakers = map[uint32]string{1: "kernel", 2: "dhcp", 3: "ra"}

// Routes lists the routes but those to the guest's own addresses and to groups: IPv4 first, by destination and metric.
func Routes() ([]Route, error) {
	var table *windows.MibIpForwardTable2
	if err := windows.GetIpForwardTable2(windows.AF_UNSPEC, &table); err != nil {
		return nil, err
	}
	defer windows.FreeMibTable(unsafe.Pointer(table))
	var routes []Route
	for _, row := range table.Rows() {
		destination := prefixOf(&row.DestinationPrefix.Prefix, int(row.DestinationPrefix.PrefixLength))
		if !destination.IsValid() || row.Loopback != 0 || destination.Addr().IsMulticast() ||
			destination.IsSingleIP() && destination.Addr() == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
			continue
		}
		route := Route{
			Destination: destination, Link: int(row.InterfaceIndex), Metric: row.Metric, Table: mainTable, Kind: "unicast", Scope: "global",
			Protocol: strconv.FormatUint(uint64(row.Protocol), 10),
		}
		if name := routeOrigins[row.Protocol]; name != "" {
			route.Protocol = name
		}
		if name := routeMakers[row.Origin]; name != "" {
			route.Protocol = name
		}
		if gateway := prefixOf(&row.NextHop, -1).Addr(); gateway.IsValid() && !gateway.IsUnspecified() {
			route.Gateway = gateway.WithZone("")
		} else {
			route.Scope = "link"
		}
		routes = append(routes, route)
	}
	slices.SortStableFunc(routes, func(a, b Route) int {
		return cmp.Or(
			cmp.Compare(a.Destination.Addr().BitLen(), b.Destination.Addr().BitLen()),
			a.Destination.Addr().Compare(b.Destination.Addr()), cmp.Compare(a.Destination.Bits(), b.Destination.Bits()),
			cmp.Compare(a.Metric, b.Metric))
	})
	return routes, nil
}

// prefixOf is an address of Windows with the length of its network; -1: the whole address. Not valid: it is of no known family.
func prefixOf(raw *windows.RawSockaddrInet, bits int) netip.Prefix {
	var addr netip.Addr
	switch raw.Family {
	case windows.AF_INET:
		addr = netip.AddrFrom4((*windows.RawSockaddrInet4)(unsafe.Pointer(raw)).Addr)
	case windows.AF_INET6:
		addr = netip.AddrFrom16((*windows.RawSockaddrInet6)(unsafe.Pointer(raw)).Addr)
	default:
		return netip.Prefix{}
	}
	if bits < 0 {
		bits = addr.BitLen()
	}
	return netip.PrefixFrom(addr, bits)
}
