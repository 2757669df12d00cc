package netplan

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// address is one that the kernel has on a link.
type address struct {
	index  int
	prefix netip.Prefix
	flags  uint32 // IFA_F_…
	scope  byte   // RT_SCOPE_…
}

// leased reports whether the address ends by itself: it came from a DHCP server or a router.
func (a address) leased() bool { return a.flags&unix.IFA_F_PERMANENT == 0 }

// trouble is why the address cannot be used yet, or at all; empty: it can.
func (a address) trouble() string {
	switch {
	case a.flags&unix.IFA_F_DADFAILED != 0:
		return "somebody else has it (duplicate address detection)"
	case a.flags&unix.IFA_F_TENTATIVE != 0 && a.flags&unix.IFA_F_OPTIMISTIC == 0:
		return "it is not known yet whether somebody else has it"
	}
	return ""
}

// dump asks the kernel for all objects of a kind.
func dump(request, kind int, each func(m *syscall.NetlinkMessage, attributes []syscall.NetlinkRouteAttr)) error {
	raw, err := syscall.NetlinkRIB(request, syscall.AF_UNSPEC)
	if err != nil {
		return os.NewSyscallError("netlink", err)
	}
	messages, err := syscall.ParseNetlinkMessage(raw)
	if err != nil {
		return os.NewSyscallError("netlink", err)
	}
	for i := range messages {
		if m := &messages[i]; int(m.Header.Type) == kind {
			attributes, err := syscall.ParseNetlinkRouteAttr(m)
			if err != nil {
				return os.NewSyscallError("netlink", err)
			}
			each(m, attributes)
		}
	}
	return nil
}

// addresses lists all addresses of the guest.
func addresses() (list []address, err error) {
	err = dump(syscall.RTM_GETADDR, syscall.RTM_NEWADDR, func(m *syscall.NetlinkMessage, attributes []syscall.NetlinkRouteAttr) {
		a := address{index: int(binary.NativeEndian.Uint32(m.Data[4:])), flags: uint32(m.Data[2]), scope: m.Data[3]}
		var found netip.Addr
		for _, attr := range attributes {
			switch attr.Attr.Type {
			case unix.IFA_LOCAL: // of a link with a peer IFA_ADDRESS is the peer's
				found, _ = netip.AddrFromSlice(attr.Value)
			case unix.IFA_ADDRESS:
				if addr, ok := netip.AddrFromSlice(attr.Value); ok && !found.IsValid() {
					found = addr
				}
			case unix.IFA_FLAGS:
				if len(attr.Value) >= 4 {
					a.flags = binary.NativeEndian.Uint32(attr.Value)
				}
			}
		}
		if found.IsValid() {
			a.prefix = netip.PrefixFrom(found, int(m.Data[1]))
			list = append(list, a)
		}
	})
	return list, err
}

// hop is a way through a gateway. Of several to one place the kernel takes that of the lowest metric.
type hop struct {
	to            netip.Prefix
	table, metric uint32
	gateway
}

// gateway is a neighbour by which others are reached.
type gateway struct {
	index int
	addr  netip.Addr
}

// routes lists the routes that lead through gateways.
func routes() (list []hop, err error) {
	err = dump(syscall.RTM_GETROUTE, syscall.RTM_NEWROUTE, func(m *syscall.NetlinkMessage, attributes []syscall.NetlinkRouteAttr) {
		if len(m.Data) < unix.SizeofRtMsg || m.Data[7] != unix.RTN_UNICAST {
			return
		}
		g, to, table, metric := gateway{}, netip.IPv4Unspecified(), uint32(m.Data[4]), uint32(0)
		if m.Data[0] == unix.AF_INET6 {
			to = netip.IPv6Unspecified()
		}
		var several []gateway
		for _, attr := range attributes {
			switch attr.Attr.Type {
			case unix.RTA_DST:
				to, _ = netip.AddrFromSlice(attr.Value)
			case unix.RTA_TABLE:
				table = binary.NativeEndian.Uint32(attr.Value)
			case unix.RTA_PRIORITY:
				metric = binary.NativeEndian.Uint32(attr.Value)
			case unix.RTA_OIF:
				g.index = int(binary.NativeEndian.Uint32(attr.Value))
			case unix.RTA_GATEWAY, unix.RTA_VIA:
				g.addr = via(attr)
			case unix.RTA_MULTIPATH:
				several = nextHops(attr.Value)
			}
		}
		for _, g := range append(several, g) {
			if g.addr.IsValid() && g.index != 0 {
				list = append(list, hop{netip.PrefixFrom(to, int(m.Data[1])), table, metric, g})
			}
		}
	})
	return list, err
}

// gateways lists the default gateways that the main table uses: those of the lowest metric of each family, each once.
func gateways() (list []gateway, err error) {
	all, err := routes()
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(r hop) bool { return r.table != unix.RT_TABLE_MAIN || r.to.Bits() != 0 })
	for _, r := range all {
		better := slices.ContainsFunc(all, func(o hop) bool { return family(o.addr) == family(r.addr) && o.metric < r.metric })
		if !better && !slices.Contains(list, r.gateway) {
			list = append(list, r.gateway)
		}
	}
	return list, nil
}

// via reads RTA_GATEWAY, or RTA_VIA, which has the family before the address.
func via(attr syscall.NetlinkRouteAttr) netip.Addr {
	value := attr.Value
	if attr.Attr.Type == unix.RTA_VIA && len(value) > 2 {
		value = value[2:]
	}
	addr, _ := netip.AddrFromSlice(value)
	return addr
}

// nextHops reads the structures rtnexthop of RTA_MULTIPATH.
func nextHops(value []byte) (list []gateway) {
	for len(value) >= unix.SizeofRtNexthop {
		size := int(binary.NativeEndian.Uint16(value))
		if size < unix.SizeofRtNexthop || size > len(value) {
			return list
		}
		g := gateway{index: int(int32(binary.NativeEndian.Uint32(value[4:])))}
		for rest := value[unix.SizeofRtNexthop:size]; len(rest) >= unix.SizeofRtAttr; {
			n, kind := int(binary.NativeEndian.Uint16(rest)), binary.NativeEndian.Uint16(rest[2:])
			if n < unix.SizeofRtAttr || n > len(rest) {
				break
			}
			if kind == unix.RTA_GATEWAY || kind == unix.RTA_VIA {
				g.addr = via(syscall.NetlinkRouteAttr{Attr: syscall.RtAttr{Type: kind}, Value: rest[unix.SizeofRtAttr:n]})
			}
			rest = rest[min((n+3)&^3, len(rest)):]
		}
		list = append(list, g)
		value = value[min((size+3)&^3, len(value)):]
	}
	return list
}

// attribute is one of a link, as netlink has it.
type attribute struct {
	kind  uint16 // IFLA_…
	value []byte
}

// attributes are these as they follow each other in a message.
func attributes(list ...attribute) (encoded []byte) {
	for _, a := range list {
		encoded = binary.NativeEndian.AppendUint16(encoded, uint16(unix.SizeofRtAttr+len(a.value)))
		encoded = append(binary.NativeEndian.AppendUint16(encoded, a.kind), a.value...)
		encoded = append(encoded, make([]byte, (4-len(encoded)%4)%4)...)
	}
	return encoded
}

// changeLink has the kernel change or delete a link, and waits for its answer.
func changeLink(message uint16, index int, flags, mask uint32, of ...attribute) error {
	body := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(body[4:], uint32(index))
	binary.NativeEndian.PutUint32(body[8:], flags)
	binary.NativeEndian.PutUint32(body[12:], mask)
	body = append(body, attributes(of...)...)
	request := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+len(body))
	binary.NativeEndian.PutUint32(request, uint32(unix.SizeofNlMsghdr+len(body)))
	binary.NativeEndian.PutUint16(request[4:], message)
	binary.NativeEndian.PutUint16(request[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	request = append(request, body...)

	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return os.NewSyscallError("netlink", err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("netlink", err)
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return os.NewSyscallError("netlink", err)
	}
	if n < unix.SizeofNlMsghdr+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return fault.Wrapf(fault.ErrInternal, "the kernel answered netlink with something else")
	}
	if code := int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); code != 0 {
		return syscall.Errno(-code)
	}
	return nil
}

// deleteLink deletes a virtual link; one that is gone is as good.
func deleteLink(index int) error {
	if err := changeLink(unix.RTM_DELLINK, index, 0, 0); err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	return nil
}

// renameLink gives a link another name. It is down meanwhile: a link that is up keeps its name before Linux 6.2. udev gives a
// link its other names as alternative ones at each renaming: one that is wanted is no alternative any more.
func renameLink(index int, name string) error {
	if err := changeLink(unix.RTM_NEWLINK, index, 0, unix.IFF_UP); err != nil {
		return err
	}
	wanted := append([]byte(name), 0)
	rename := func() error { return changeLink(unix.RTM_NEWLINK, index, 0, 0, attribute{unix.IFLA_IFNAME, wanted}) }
	err := rename()
	for try := 0; err == unix.EEXIST && try < 5; try++ { // udev may give it once more meanwhile
		alternative := attributes(attribute{unix.IFLA_ALT_IFNAME, wanted})
		if changeLink(unix.RTM_DELLINKPROP, index, 0, 0, attribute{unix.IFLA_PROP_LIST | unix.NLA_F_NESTED, alternative}) != nil {
			break // another link has the name
		}
		err = rename()
	}
	return err
}

// setMTU sets the MTU of a link.
func setMTU(index int, mtu uint32) error {
	value := binary.NativeEndian.AppendUint32(nil, mtu)
	return changeLink(unix.RTM_NEWLINK, index, 0, 0, attribute{unix.IFLA_MTU, value})
}

// setMAC gives a link another hardware address. Some drivers take it while the link is down alone.
func setMAC(index int, mac net.HardwareAddr) error {
	set := attribute{unix.IFLA_ADDRESS, mac}
	err := changeLink(unix.RTM_NEWLINK, index, 0, 0, set)
	if !errors.Is(err, unix.EBUSY) {
		return err
	}
	if err := changeLink(unix.RTM_NEWLINK, index, 0, unix.IFF_UP); err != nil {
		return err
	}
	return changeLink(unix.RTM_NEWLINK, index, 0, 0, set)
}
