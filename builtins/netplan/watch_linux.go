package netplan

import (
	"cmp"
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// kernel notices changes of the kernel's links, addresses and routes.
type kernel struct {
	socket  *os.File // nil: there are no notifications
	changed chan struct{}
	done    sync.WaitGroup
}

// watchKernel begins to listen. Without it those who wait look from time to time alone.
func watchKernel() *kernel {
	k := &kernel{changed: make(chan struct{}, 1)}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return k
	}
	groups := uint32(unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR |
		unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE)
	if unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}) != nil {
		_ = unix.Close(fd)
		return k
	}
	k.socket = os.NewFile(uintptr(fd), "netlink")
	k.done.Go(k.read)
	return k
}

func (k *kernel) read() {
	message := make([]byte, 4096) // what does not fit is lost, and not needed
	for {
		if _, err := k.socket.Read(message); err != nil && !errors.Is(err, unix.ENOBUFS) { // more than could be kept
			return
		}
		select {
		case k.changed <- struct{}{}:
		default: // a notification is pending already
		}
	}
}

// close ends the listening.
func (k *kernel) close() {
	if k.socket != nil {
		_ = k.socket.Close()
	}
	k.done.Wait()
}

const (
	// lookFirst and lookEvery are after how long what sends no notification is read again: the time doubles each time.
	lookFirst = 10 * time.Millisecond
	lookEvery = 200 * time.Millisecond
	// changesTogether is how long what changes in the kernel is collected before it is acted on.
	changesTogether = time.Millisecond
)

// pace is when it is looked again.
type pace time.Duration

func (p *pace) next() *time.Timer {
	*p = pace(min(max(2*time.Duration(*p), lookFirst), lookEvery))
	return time.NewTimer(time.Duration(*p))
}

// check is something that must be so.
type check struct {
	step, object string
	// try returns what is to be seen, and an error if that is not what must be.
	try func(ctx context.Context) (seen string, err error)
}

// errLate ends the wait for a network.
var errLate = errors.New("the time is up")

// wait tries until it holds, whenever something changed in the kernel and from time to time; then, or when ctx ends, it returns
// what was seen last.
func wait(ctx context.Context, kernel *kernel, c check) (seen string, err error) {
	for pace := pace(0); ; {
		now, err := c.try(ctx)
		if err == nil {
			return now, nil
		}
		// An error that says only that the time is up says less than the one before.
		if cut := context.Cause(ctx); seen == "" || cut == nil || err.Error() != cut.Error() {
			seen = cmp.Or(now, err.Error())
		}
		timer := pace.next()
		select {
		case <-timer.C:
		case <-kernel.changed:
			time.Sleep(changesTogether)
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return seen, context.Cause(ctx)
		}
	}
}
