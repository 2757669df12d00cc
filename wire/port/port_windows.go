package port

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"unicode/utf16"

	"golang.org/x/sys/windows"
)

// devicePrefix is where the driver of virtio-serial, vioserial, makes a link named like the port.
const devicePrefix = `\\.\Global\`

// longestNames bounds what listDevices asks for, in characters: a machine has some hundred names of about 20 characters.
const longestNames = 1 << 22

// listDevices lists the links of this machine whose names may be ports'. The driver makes one for each port that has a name.
func listDevices() ([]device, error) {
	for size := 1 << 14; ; size *= 2 {
		names := make([]uint16, size)
		n, err := windows.QueryDosDevice(nil, &names[0], uint32(size))
		if errors.Is(err, windows.ERROR_INSUFFICIENT_BUFFER) && size < longestNames {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list devices: %w", err)
		}
		var list []device
		for name := range strings.SplitSeq(string(utf16.Decode(names[:n])), "\x00") {
			if strings.HasPrefix(name, NamePrefix) || strings.HasPrefix(name, LegacyNamePrefix) {
				list = append(list, device{name: name, path: devicePrefix + name})
			}
		}
		slices.SortFunc(list, func(a, b device) int { return strings.Compare(a.name, b.name) })
		return slices.Compact(list), nil
	}
}

// listenPrivate fails: a socket's file cannot be kept from other users there in the way that it is elsewhere, and a pipe can.
func listenPrivate(path string) (*net.UnixListener, error) {
	return nil, fmt.Errorf("listen %s: use pipe:NAME on Windows: %w", path, errors.ErrUnsupported)
}

func checkPeer(*net.UnixConn) error { return errors.ErrUnsupported }

func isRefused(err error) bool { return errors.Is(err, windows.WSAECONNREFUSED) }

// isHeld reports whether a device was not opened since another process has it open.
func isHeld(err error) bool {
	return errors.Is(err, windows.ERROR_ACCESS_DENIED) || errors.Is(err, windows.ERROR_PIPE_BUSY) ||
		errors.Is(err, windows.ERROR_SHARING_VIOLATION)
}

// haveVsock: the driver viosock would have to be reached through Winsock, by an address family that it returns.
const haveVsock = false
