package port

import (
	"bytes"
	"context"
	"os"

	"golang.org/x/sys/unix"
)

// Announced gives a value whenever the kernel tells of a virtio-serial port: one came, got its name, or went. It is closed
// when ctx ends. An error says that the kernel cannot be listened to, as in a container; then somebody has to look from
// time to time.
func Announced(ctx context.Context) (<-chan struct{}, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup}); err != nil {
		unix.Close(fd)
		return nil, err
	}
	file := os.NewFile(uintptr(fd), "uevents")
	stop := context.AfterFunc(ctx, func() { file.Close() })
	told := make(chan struct{}, 1)
	go func() {
		defer close(told)
		defer stop()
		defer file.Close()
		message := make([]byte, 8<<10) // the kernel's are at most 2 KiB
		for {
			n, err := file.Read(message)
			if err != nil && ctx.Err() != nil {
				return
			}
			// After an error some were lost, so it is as good as one of ours.
			if err == nil && !bytes.Contains(message[:n], []byte("\x00SUBSYSTEM=virtio-ports\x00")) {
				continue
			}
			select {
			case told <- struct{}{}:
			default:
			}
			if err != nil && !isOverrun(err) {
				return
			}
		}
	}()
	return told, nil
}

// kernelGroup is the multicast group of the kernel's own messages; udev's are 2.
const kernelGroup = 1
