package facts

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Routes lists the routes of all tables but the kernel's own for local addresses: IPv4 first, by table, destination and metric.
// Of one with several next hops there is an entry for each.
func Routes() ([]Route, error) {
	messages, err := dump(syscall.RTM_GETROUTE, syscall.RTM_NEWROUTE)
	if err != nil {
		return nil, err
	}
	var routes []Route
	for _, m := range messages {
		if len(m.Data) < syscall.SizeofRtMsg || (m.Data[0] != unix.AF_INET && m.Data[0] != unix.AF_INET6) {
			continue
		}
		attributes, err := syscall.ParseNetlinkRouteAttr(&m)
		if err != nil {
			return nil, os.NewSyscallError("netlink", err)
		}
		routes = append(routes, parseRoute(m.Data, attributes)...)
	}
	slices.SortStableFunc(routes, func(a, b Route) int {
		return cmp.Or(
			cmp.Compare(a.Destination.Addr().BitLen(), b.Destination.Addr().BitLen()), cmp.Compare(b.Table, a.Table),
			a.Destination.Addr().Compare(b.Destination.Addr()), cmp.Compare(a.Destination.Bits(), b.Destination.Bits()),
			cmp.Compare(a.Metric, b.Metric))
	})
	return routes, nil
}

// Of rtnetlink(7), where golang.org/x/sys/unix has no names for them.
const (
	offsetDstLen, offsetTable, offsetProtocol, offsetScope, offsetType, offsetFlags = 1, 4, 5, 6, 7, 8 // in rtmsg

	sizeofNextHop = 8 // struct rtnexthop: length, flags, weight less one, index of the interface
)

// routeTypes are those of what a guest sends: others are the kernel's, for what it receives.
var routeTypes = map[uint8]string{
	unix.RTN_UNICAST: "unicast", unix.RTN_BLACKHOLE: "blackhole", unix.RTN_UNREACHABLE: "unreachable", unix.RTN_PROHIBIT: "prohibit",
	unix.RTN_THROW: "throw",
}

var routeProtocols = map[uint8]string{
	unix.RTPROT_UNSPEC: "unspec", unix.RTPROT_REDIRECT: "redirect", unix.RTPROT_KERNEL: "kernel", unix.RTPROT_BOOT: "boot",
	unix.RTPROT_STATIC: "static", unix.RTPROT_RA: "ra", unix.RTPROT_DHCP: "dhcp", unix.RTPROT_ZEBRA: "zebra", unix.RTPROT_BIRD: "bird",
	unix.RTPROT_KEEPALIVED: "keepalived", unix.RTPROT_BABEL: "babel", unix.RTPROT_BGP: "bgp", unix.RTPROT_ISIS: "isis",
	unix.RTPROT_OSPF: "ospf", unix.RTPROT_RIP: "rip", unix.RTPROT_EIGRP: "eigrp",
}

var routeScopes = map[uint8]string{
	unix.RT_SCOPE_UNIVERSE: "global", unix.RT_SCOPE_SITE: "site", unix.RT_SCOPE_LINK: "link", unix.RT_SCOPE_HOST: "host",
	unix.RT_SCOPE_NOWHERE: "nowhere",
}

// parseRoute returns what one message says; nothing for what is none of Routes.
func parseRoute(header []byte, attributes []syscall.NetlinkRouteAttr) []Route {
	kind, known := routeTypes[header[offsetType]]
	flags := binary.NativeEndian.Uint32(header[offsetFlags:])
	if !known || flags&unix.RTM_F_CLONED != 0 {
		return nil
	}
	any := netip.IPv4Unspecified()
	if header[0] == unix.AF_INET6 {
		any = netip.IPv6Unspecified()
	}
	r := Route{
		Destination: netip.PrefixFrom(any, int(header[offsetDstLen])), Table: uint32(header[offsetTable]), Kind: kind,
		Protocol: named(routeProtocols, header[offsetProtocol]), Scope: named(routeScopes, header[offsetScope]),
	}
	var hops []byte
	for _, a := range attributes {
		switch addr, isAddr := netip.AddrFromSlice(a.Value); a.Attr.Type & typeMask {
		case unix.RTA_DST:
			if isAddr {
				r.Destination = netip.PrefixFrom(addr, r.Destination.Bits())
			}
		case unix.RTA_PREFSRC:
			r.Source = addr
		case unix.RTA_PRIORITY:
			r.Metric = number(a.Value)
		case unix.RTA_TABLE:
			r.Table = number(a.Value)
		case unix.RTA_MULTIPATH:
			hops = a.Value
		default:
			r.setHop(a.Attr.Type&typeMask, a.Value)
		}
	}
	if r.Table == unix.RT_TABLE_LOCAL || r.Table == unix.RT_TABLE_UNSPEC {
		return nil
	}
	if hops == nil {
		return []Route{r}
	}
	return r.each(hops)
}

// setHop stores one attribute of a next hop.
func (r *Route) setHop(kind uint16, value []byte) {
	switch kind {
	case unix.RTA_GATEWAY:
		r.Gateway, _ = netip.AddrFromSlice(value)
	case unix.RTA_VIA: // a family, and an address of it
		if len(value) > 2 {
			r.Gateway, _ = netip.AddrFromSlice(value[2:])
		}
	case unix.RTA_OIF:
		r.Link = int(number(value))
	}
}

// each returns the route once for each of its next hops.
func (r Route) each(hops []byte) (list []Route) {
	for len(hops) >= sizeofNextHop {
		size := int(binary.NativeEndian.Uint16(hops))
		if size < sizeofNextHop || size > len(hops) {
			break
		}
		hop := r
		hop.Link = int(int32(binary.NativeEndian.Uint32(hops[4:])))
		for rest := hops[sizeofNextHop:size]; len(rest) >= syscall.SizeofRtAttr; {
			n := int(binary.NativeEndian.Uint16(rest))
			if n < syscall.SizeofRtAttr || n > len(rest) {
				break
			}
			hop.setHop(binary.NativeEndian.Uint16(rest[2:])&typeMask, rest[syscall.SizeofRtAttr:n])
			rest = rest[min((n+3)&^3, len(rest)):]
		}
		list = append(list, hop)
		hops = hops[min((size+3)&^3, len(hops)):]
	}
	return list
}

func number(value []byte) uint32 {
	if len(value) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(value)
}

func named(names map[uint8]string, n uint8) string {
	if name, ok := names[n]; ok {
		return name
	}
	return strconv.Itoa(int(n))
}
