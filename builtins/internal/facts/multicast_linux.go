package facts

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// LinkGroups are the multicast groups of NETLINK_ROUTE for changes of links and addresses.
const LinkGroups = 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1)

// Multicast opens a netlink socket that receives what is sent to groups of a protocol. The caller closes it.
func Multicast(protocol int, groups uint32) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// WatchLinks returns a channel that receives a value when links or addresses may have changed. It is closed when ctx ends, or
// nothing can be heard any more. What changed before WatchLinks returned is not reported.
func WatchLinks(ctx context.Context) (<-chan struct{}, error) {
	socket, err := Multicast(unix.NETLINK_ROUTE, LinkGroups)
	if err != nil {
		return nil, err
	}
	changed := make(chan struct{}, 1)
	stop := context.AfterFunc(ctx, func() { socket.Close() })
	go func() {
		defer close(changed)
		defer stop()
		defer socket.Close()
		message := make([]byte, 512) // what is cut off does not matter
		for {
			if _, err := socket.Read(message); err != nil && !errors.Is(err, unix.ENOBUFS) { // then some were lost
				return
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	return changed, nil
}
