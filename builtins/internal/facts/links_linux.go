package facts

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// typeMask removes the flags from the type of an attribute.
const typeMask = 0x3fff

// Links lists the network interfaces by index. It asks the kernel twice, for all links and for all addresses.
func Links() ([]Link, error) {
	links, err := readLinks()
	if err != nil {
		return nil, err
	}
	if err := readAddresses(links); err != nil {
		return nil, err
	}
	markPlumbing(links, slices.ContainsFunc(links, func(l Link) bool { return l.Kind == "veth" }) && ContainerKind() != "")
	return links, nil
}

func readLinks() ([]Link, error) {
	messages, err := dump(syscall.RTM_GETLINK, syscall.RTM_NEWLINK)
	if err != nil {
		return nil, err
	}
	var links []Link
	for _, m := range messages {
		if len(m.Data) < syscall.SizeofIfInfomsg {
			continue
		}
		attributes, err := syscall.ParseNetlinkRouteAttr(&m)
		if err != nil {
			return nil, os.NewSyscallError("netlink", err)
		}
		flags := binary.NativeEndian.Uint32(m.Data[8:])
		link := Link{Index: int(int32(binary.NativeEndian.Uint32(m.Data[4:]))), Loopback: flags&unix.IFF_LOOPBACK != 0,
			Enabled: flags&unix.IFF_UP != 0, Up: flags&unix.IFF_UP != 0 && flags&unix.IFF_RUNNING != 0}
		for _, a := range attributes {
			link.set(a.Attr.Type&typeMask, a.Value)
		}
		switch {
		case link.Loopback:
			link.Kind = "loopback"
		case link.Kind == "": // hardware has no IFLA_LINKINFO
			link.Kind = "physical"
		}
		links = append(links, link)
	}
	slices.SortFunc(links, func(a, b Link) int { return a.Index - b.Index })
	return links, nil
}

// set stores one attribute of a link.
func (l *Link) set(kind uint16, value []byte) {
	switch kind {
	case unix.IFLA_IFNAME:
		l.Name = strings.TrimRight(string(value), "\x00")
	case unix.IFLA_ADDRESS:
		if !l.Loopback {
			l.MAC = net.HardwareAddr(value).String()
		}
	case unix.IFLA_MTU:
		l.MTU = number(value)
	case unix.IFLA_MASTER:
		l.Master = int(number(value))
	case unix.IFLA_LINK_NETNSID:
		l.Away = true
	case unix.IFLA_LINKINFO:
		l.Kind = infoKind(value)
	case unix.IFLA_STATS64:
		if len(value) >= 32 {
			for i, field := range []*uint64{&l.RxPackets, &l.TxPackets, &l.RxBytes, &l.TxBytes} {
				*field = binary.NativeEndian.Uint64(value[8*i:])
			}
		}
	}
}

// infoKind returns the kind among the attributes nested in IFLA_LINKINFO.
func infoKind(value []byte) string {
	for len(value) >= syscall.SizeofRtAttr {
		size, kind := int(binary.NativeEndian.Uint16(value)), binary.NativeEndian.Uint16(value[2:])
		if size < syscall.SizeofRtAttr || size > len(value) {
			return ""
		}
		if kind&typeMask == unix.IFLA_INFO_KIND {
			return strings.TrimRight(string(value[syscall.SizeofRtAttr:size]), "\x00")
		}
		value = value[min((size+3)&^3, len(value)):]
	}
	return ""
}

func readAddresses(links []Link) error {
	messages, err := dump(syscall.RTM_GETADDR, syscall.RTM_NEWADDR)
	if err != nil {
		return err
	}
	for _, m := range messages {
		if len(m.Data) < syscall.SizeofIfAddrmsg {
			continue
		}
		attributes, err := syscall.ParseNetlinkRouteAttr(&m)
		if err != nil {
			return os.NewSyscallError("netlink", err)
		}
		index := int(binary.NativeEndian.Uint32(m.Data[4:]))
		at := slices.IndexFunc(links, func(l Link) bool { return l.Index == index })
		if prefix, ok := address(int(m.Data[1]), attributes); ok && at >= 0 {
			links[at].Prefixes = append(links[at].Prefixes, prefix)
			if m.Data[2]&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 && m.Data[2]&unix.IFA_F_OPTIMISTIC == 0 {
				links[at].Tentative = append(links[at].Tentative, prefix)
			}
		}
	}
	return nil
}

// address returns the link's own address: on a link with a peer IFA_ADDRESS is the peer's, and IFA_LOCAL the own one.
func address(bits int, attributes []syscall.NetlinkRouteAttr) (prefix netip.Prefix, ok bool) {
	var found netip.Addr
	for _, a := range attributes {
		addr, valid := netip.AddrFromSlice(a.Value)
		if valid && (a.Attr.Type == unix.IFA_LOCAL || a.Attr.Type == unix.IFA_ADDRESS && !found.IsValid()) {
			found = addr
		}
	}
	return netip.PrefixFrom(found, bits), found.IsValid()
}

// markPlumbing marks the links that do not lead outside. A bridge with a hardware port is how a guest is reached; Docker's
// has virtual ports or none. Of a container the link that leads outside is a veth, too. An overlay network is of the
// containers, unless nothing else has an address.
func markPlumbing(links []Link, container bool) {
	virtual := []string{"veth", "tun", "vxlan", "geneve", "ipip", "gretap", "ip6gretap", "dummy", "bridge"}
	overlay := func(l Link) bool { return l.Kind == "vxlan" || l.Kind == "geneve" || l.Kind == "ipip" }
	outside := map[int]bool{}
	for _, l := range links {
		if l.Master != 0 && !slices.Contains(virtual, l.Kind) {
			outside[l.Master] = true
		}
	}
	for i := range links {
		l := &links[i]
		l.Plumbing = l.Kind == "veth" && !(container && l.Away && l.Master == 0) || l.Kind == "bridge" && !outside[l.Index]
	}
	reached := slices.ContainsFunc(links, func(l Link) bool {
		return l.Enabled && !l.Loopback && !l.Plumbing && !overlay(l) && slices.ContainsFunc(l.Prefixes, func(p netip.Prefix) bool {
			return !p.Addr().IsLinkLocalUnicast()
		})
	})
	for i := range links {
		links[i].Plumbing = links[i].Plumbing || reached && overlay(links[i])
	}
}

// dump asks the kernel for all objects of a kind.
func dump(request, kind int) ([]syscall.NetlinkMessage, error) {
	raw, err := syscall.NetlinkRIB(request, syscall.AF_UNSPEC)
	if err != nil {
		return nil, os.NewSyscallError("netlink", err)
	}
	messages, err := syscall.ParseNetlinkMessage(raw)
	if err != nil {
		return nil, os.NewSyscallError("netlink", err)
	}
	return slices.DeleteFunc(messages, func(m syscall.NetlinkMessage) bool { return int(m.Header.Type) != kind }), nil
}
