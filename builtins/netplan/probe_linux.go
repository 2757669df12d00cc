package netplan

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
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
	// (neigh/default/retrans_time_ms). The question is repeated after askFirst, and then after twice as long each time, up to
	// askAgain.
	askTime  = time.Second
	askFirst = 20 * time.Millisecond
	askAgain = 250 * time.Millisecond
	ethernet = 1 // ARPHRD_ETHER
)

// errNoNeighbours says that a link has no neighbours that could be asked, such as a tunnel.
var errNoNeighbours = errors.New("the interface has no hardware addresses")

// ask returns the hardware address of whoever has an address on a link; an error: nobody answers. from is the sender; an
// invalid one asks as who has no address yet (RFC 5227).
func ask(ctx context.Context, index int, addr, from netip.Addr) (net.HardwareAddr, error) {
	q, err := newQuestion(index, addr, from)
	if err != nil {
		return nil, err
	}
	return q.ask(ctx)
}

// question is who has an address on a link. It goes past the kernel's own table of neighbours, which may still know one that is
// gone, and past its firewall.
type question struct {
	link   *net.Interface
	addr   netip.Addr
	socket *os.File
	text   []byte
	to     unix.Sockaddr
	// read returns who an answer is of; nil: it is none.
	read func(answer []byte) net.HardwareAddr
}

func newQuestion(index int, addr, from netip.Addr) (*question, error) {
	link, err := net.InterfaceByIndex(index)
	if err != nil {
		return nil, err
	}
	if len(link.HardwareAddr) != 6 {
		return nil, errNoNeighbours
	}
	q := &question{link: link, addr: addr}
	if addr.Is4() {
		err = q.byARP(from)
	} else {
		err = q.byND()
	}
	return q, err
}

// open makes the socket, which set prepares.
func (q *question) open(family, kind, protocol int, set func(fd int) error) error {
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err == nil {
		if err = set(fd); err != nil {
			_ = unix.Close(fd)
		}
	}
	if err != nil {
		return os.NewSyscallError("socket for "+q.addr.String(), err)
	}
	q.socket = os.NewFile(uintptr(fd), "socket")
	return nil
}

// byARP asks by ARP (RFC 826).
func (q *question) byARP(from netip.Addr) error {
	protocol := int(binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ARP)))
	everybody := [8]byte{255, 255, 255, 255, 255, 255}
	q.to = &unix.SockaddrLinklayer{Protocol: uint16(protocol), Ifindex: q.link.Index, Halen: 6, Addr: everybody}
	sender := [4]byte{}
	if from.Is4() {
		sender = from.As4()
	}
	target := q.addr.As4()
	q.text = []byte{0, ethernet, 8, 0, 6, 4, 0, 1} // Ethernet, IPv4, lengths, request
	q.text = append(q.text, q.link.HardwareAddr...)
	q.text = append(q.text, sender[:]...)
	q.text = append(q.text, 0, 0, 0, 0, 0, 0)
	q.text = append(q.text, target[:]...)
	q.read = func(answer []byte) net.HardwareAddr {
		if len(answer) < 28 || [4]byte(answer[14:18]) != target || slices.Equal(answer[8:14], q.link.HardwareAddr) {
			return nil
		}
		return slices.Clone(answer[8:14])
	}
	// A packet socket that has a protocol before it has an interface makes the kernel wait for all processors twice.
	return q.open(unix.AF_PACKET, unix.SOCK_DGRAM, 0, func(fd int) error {
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(protocol), Ifindex: q.link.Index})
	})
}

// Of RFC 4861, section 4.
const (
	neighbourSolicitation  = 135
	neighbourAdvertisement = 136
	optionTarget           = 2
)

// byND asks by neighbour discovery (RFC 4861).
func (q *question) byND() error {
	target := q.addr.WithZone("").As16()
	q.text = append([]byte{neighbourSolicitation, 0, 0, 0, 0, 0, 0, 0}, target[:]...)
	q.text = append(q.text, 1, 1) // source link-layer address
	q.text = append(q.text, q.link.HardwareAddr...)
	// The multicast address of all that might have the address (RFC 4291, section 2.7.1).
	group := [16]byte{0: 0xff, 1: 0x02, 11: 1, 12: 0xff, 13: target[13], 14: target[14], 15: target[15]}
	q.to = &unix.SockaddrInet6{Addr: group, ZoneId: uint32(q.link.Index)}
	q.read = func(answer []byte) net.HardwareAddr {
		if len(answer) < 24 || answer[0] != neighbourAdvertisement || [16]byte(answer[8:24]) != target {
			return nil
		}
		if options := answer[24:]; len(options) >= 8 && options[0] == optionTarget {
			return slices.Clone(options[2:8])
		}
		return net.HardwareAddr{}
	}
	return q.open(unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6, func(fd int) error {
		filter := unix.ICMPv6Filter{}
		for i := range filter.Data {
			filter.Data[i] = ^uint32(0)
		}
		filter.Data[neighbourAdvertisement/32] &^= 1 << (neighbourAdvertisement % 32)
		return errors.Join(
			unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, q.link.Name),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 255),
			unix.SetsockoptICMPv6Filter(fd, unix.IPPROTO_ICMPV6, unix.ICMPV6_FILTER, &filter),
		)
	})
}

// ask asks again and again until there is an answer, or for askTime, and closes the question. One that cannot be sent is
// repeated, too: a link that comes up has no address for a moment.
func (q *question) ask(ctx context.Context) (net.HardwareAddr, error) {
	// Until the kernel has closed a packet socket, all processors have passed by: some milliseconds, for which nobody waits.
	defer func() { go q.socket.Close() }()
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = q.socket.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	packet := make([]byte, 1500)
	for gap := askFirst; ; gap = min(2*gap, askAgain) {
		q.send()
		if err := q.socket.SetReadDeadline(time.Now().Add(gap)); err != nil {
			return nil, err
		}
		for again := false; !again; {
			if err := context.Cause(ctx); err != nil {
				return nil, fault.Wrapf(err, "%v does not answer on %s", q.addr, q.link.Name)
			}
			n, err := q.socket.Read(packet)
			switch {
			case errors.Is(err, os.ErrDeadlineExceeded):
				again = true
			case err == nil:
				if who := q.read(packet[:n]); who != nil {
					return who, nil
				}
			case !errors.Is(err, unix.ENETDOWN) && !errors.Is(err, io.EOF): // an empty packet reads as the end
				return nil, err
			}
		}
	}
}

func (q *question) send() {
	if raw, err := q.socket.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) { _ = unix.Sendto(int(fd), q.text, 0, q.to) })
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
