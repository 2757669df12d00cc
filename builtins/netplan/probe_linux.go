package netplan

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

const (
	// askTime is how long a neighbour may take to answer: the kernel's own default is 1 s for each of three questions
	// (neigh/default/retrans_time_ms). askAgain is when the question is repeated.
	askTime  = time.Second
	askAgain = 250 * time.Millisecond
	ethernet = 1 // ARPHRD_ETHER
)

// errNoNeighbours says that a link has no neighbours that could be asked, such as a tunnel.
var errNoNeighbours = errors.New("the interface has no hardware addresses")

// ask returns the hardware address of whoever has an address on a link; an error: nobody answers. The question goes past the
// kernel's own table of neighbours, which may still know one that is gone, and past its firewall. from is the sender; an
// invalid one asks as who has no address yet (RFC 5227).
func ask(ctx context.Context, index int, addr, from netip.Addr) (net.HardwareAddr, error) {
	link, err := net.InterfaceByIndex(index)
	if err != nil {
		return nil, err
	}
	if len(link.HardwareAddr) != 6 {
		return nil, errNoNeighbours
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	var who net.HardwareAddr
	if addr.Is4() {
		who, err = askARP(ctx, link, addr, from)
	} else {
		who, err = askND(ctx, link, addr)
	}
	if cut := context.Cause(ctx); err != nil && cut != nil && errors.Is(err, cut) {
		err = fault.Wrapf(err, "%v does not answer on %s", addr, link.Name)
	}
	return who, err
}

// askARP asks by ARP (RFC 826).
func askARP(ctx context.Context, link *net.Interface, addr, from netip.Addr) (net.HardwareAddr, error) {
	protocol := int(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ARP)))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, os.NewSyscallError("packet socket", err)
	}
	defer unix.Close(fd)
	everybody := [8]byte{255, 255, 255, 255, 255, 255}
	to := &unix.SockaddrLinklayer{Protocol: uint16(protocol), Ifindex: link.Index, Halen: 6, Addr: everybody}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(protocol), Ifindex: link.Index}); err != nil {
		return nil, os.NewSyscallError("packet socket", err)
	}
	sender := [4]byte{}
	if from.Is4() {
		sender = from.As4()
	}
	target := addr.As4()
	question := []byte{0, ethernet, 8, 0, 6, 4, 0, 1} // Ethernet, IPv4, lengths, request
	question = append(question, link.HardwareAddr...)
	question = append(question, sender[:]...)
	question = append(question, 0, 0, 0, 0, 0, 0)
	question = append(question, target[:]...)
	return exchange(ctx, fd, func() error { return unix.Sendto(fd, question, 0, to) }, func(answer []byte) net.HardwareAddr {
		if len(answer) < 28 || [4]byte(answer[14:18]) != target || slices.Equal(answer[8:14], link.HardwareAddr) {
			return nil
		}
		return slices.Clone(answer[8:14])
	})
}

// Of RFC 4861, section 4.
const (
	neighbourSolicitation  = 135
	neighbourAdvertisement = 136
	optionTarget           = 2
)

// askND asks by neighbour discovery (RFC 4861).
func askND(ctx context.Context, link *net.Interface, addr netip.Addr) (net.HardwareAddr, error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	if err != nil {
		return nil, os.NewSyscallError("ICMPv6 socket", err)
	}
	defer unix.Close(fd)
	filter := unix.ICMPv6Filter{}
	for i := range filter.Data {
		filter.Data[i] = ^uint32(0)
	}
	filter.Data[neighbourAdvertisement/32] &^= 1 << (neighbourAdvertisement % 32)
	err = errors.Join(
		unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, link.Name),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255),
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 255),
		unix.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, &filter),
	)
	if err != nil {
		return nil, os.NewSyscallError("ICMPv6 socket", err)
	}
	target := addr.WithZone("").As16()
	question := append([]byte{neighbourSolicitation, 0, 0, 0, 0, 0, 0, 0}, target[:]...)
	question = append(question, 1, 1) // source link-layer address
	question = append(question, link.HardwareAddr...)
	// The multicast address of all that might have the address (RFC 4291, section 2.7.1).
	group := [16]byte{0: 0xff, 1: 0x02, 11: 1, 12: 0xff, 13: target[13], 14: target[14], 15: target[15]}
	to := &unix.SockaddrInet6{Addr: group, ZoneId: uint32(link.Index)}
	return exchange(ctx, fd, func() error { return unix.Sendto(fd, question, 0, to) }, func(answer []byte) net.HardwareAddr {
		if len(answer) < 24 || answer[0] != neighbourAdvertisement || [16]byte(answer[8:24]) != target {
			return nil
		}
		if options := answer[24:]; len(options) >= 8 && options[0] == optionTarget {
			return slices.Clone(options[2:8])
		}
		return net.HardwareAddr{}
	})
}

// exchange asks again and again until read takes an answer, or ctx ends. A question that cannot be sent is repeated, too: a
// link that comes up has no address for a moment.
func exchange(ctx context.Context, fd int, send func() error, read func([]byte) net.HardwareAddr) (net.HardwareAddr, error) {
	const wait = 50 * time.Millisecond
	limit := unix.NsecToTimeval(wait.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	packet := make([]byte, 1500)
	var sent time.Time
	for {
		if time.Since(sent) >= askAgain {
			if sent = time.Now(); send() != nil {
				time.Sleep(wait)
			}
		}
		n, _, err := unix.Recvfrom(fd, packet, 0)
		if err == nil {
			if who := read(packet[:n]); who != nil {
				return who, nil
			}
		}
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.ENETDOWN) {
			return nil, os.NewSyscallError("socket", err)
		}
	}
}

// connects tries to open a connection.
func connects(ctx context.Context, address string) error {
	dialer := net.Dialer{Timeout: 5 * time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}

// resolves looks a name up as programs of the guest do, and returns an address.
func resolves(ctx context.Context, name string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	found, err := (&net.Resolver{PreferGo: true}).LookupHost(ctx, name)
	if err != nil {
		return "", err
	}
	return found[0], nil
}
