package telemetry

import (
	"bytes"
	"context"
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
)

// listen starts what notices that links, addresses, mounts or disks may have changed. Where one of the sources is not there, as
// uevents in some containers, the others go on: then changes wait for the next report.
func listen(ctx context.Context, sources *sync.WaitGroup, touched chan<- struct{}) {
	touch := func() {
		select {
		case touched <- struct{}{}:
		default:
		}
	}
	for _, s := range []struct {
		protocol int
		groups   uint32
		matters  func(message []byte) bool
	}{
		{unix.NETLINK_ROUTE, facts.LinkGroups, func([]byte) bool { return true }},
		{unix.NETLINK_KOBJECT_UEVENT, kernelUevents, isBlockUevent},
	} {
		socket, err := facts.Multicast(s.protocol, s.groups)
		if err != nil {
			continue
		}
		stop := context.AfterFunc(ctx, func() { socket.Close() })
		sources.Go(func() {
			defer stop()
			defer socket.Close()
			message := make([]byte, 512) // what is cut off does not matter
			for {
				n, err := socket.Read(message)
				switch {
				case err == nil:
				case errors.Is(err, unix.ENOBUFS): // some were lost
				default:
					return
				}
				if err != nil || s.matters(message[:n]) {
					touch()
				}
			}
		})
	}
	listenMounts(ctx, sources, touch)
}

// kernelUevents is the multicast group of the kernel's own messages; udev's are 2.
const kernelUevents = 1

// isBlockUevent reports whether a message, "ACTION@/devices/…/block/NAME" and more, is of a disk.
func isBlockUevent(message []byte) bool {
	header, _, _ := bytes.Cut(message, []byte{0})
	return bytes.Contains(header, []byte("/block/"))
}

// listenMounts waits for changes of the list of mounts, which the kernel reports by an event on its file:
// proc_pid_mountinfo(5). The runtime's poller waits, so it takes no thread.
func listenMounts(ctx context.Context, sources *sync.WaitGroup, touch func()) {
	list, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return
	}
	raw, err := list.SyscallConn()
	if err != nil {
		list.Close()
		return
	}
	stop := context.AfterFunc(ctx, func() { list.Close() })
	sources.Go(func() {
		defer stop()
		defer list.Close()
		first := true
		_ = raw.Read(func(uintptr) bool { // returns when the file is closed
			if !first {
				touch()
			}
			first = false
			return false
		})
	})
}
