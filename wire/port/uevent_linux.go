package port

import (
	"bytes"
	"context"
	"os"

	"golang.org/x/sys/unix"
)

// Announced returns a channel that gets a value with each uevent of a virtio-serial port: one was plugged in, got its name, or
// was unplugged. It is closed when ctx ends. An error means that uevents cannot be received, as in a container; the caller then
// has to poll.
func Announced(ctx context.Context) (<-chan struct{}, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: ueventKernelGroup}); err != nil {
		unix.Close(fd)
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "uevents")
	stop := context.AfterFunc(ctx, func() { file.Close() })
	events := make(chan struct{}, 1)
	go func() {
		defer close(events)
		defer stop()
		defer file.Close()
		message := make([]byte, 8<<10) // the kernel's are at most 2 KiB
		for {
			n, err := file.Read(message)
			if err != nil && ctx.Err() != nil {
				return
			}
			// After an error some were lost, which may have been of such a port.
			if err == nil && !bytes.Contains(message[:n], []byte("\x00SUBSYSTEM=virtio-ports\x00")) {
				continue
			}
			select {
			case events <- struct{}{}:
			default:
			}
			if err != nil && !isOverrun(err) {
				return
			}
		}
	}()
	return events, nil
}

// ueventKernelGroup is the multicast group of the kernel's own messages; udev's are 2.
const ueventKernelGroup = 1
