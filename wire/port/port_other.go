//go:build !linux && !windows

package port

import (
	"errors"
	"fmt"
	"net"
)

func listDevices() ([]device, error) {
	return nil, fmt.Errorf("find a port: %w", errors.ErrUnsupported)
}

func openDevice(path, _ string) (Port, error) {
	return nil, fmt.Errorf("open %s: %w", path, errors.ErrUnsupported)
}

func listenPrivate(path string) (*net.UnixListener, error) {
	return nil, fmt.Errorf("listen %s: %w", path, errors.ErrUnsupported)
}

func checkPeer(*net.UnixConn) error { return errors.ErrUnsupported }

func isRefused(error) bool { return false }

func isHeld(error) bool { return false }

// haveVsock is whether the system may have vsock.
const haveVsock = false
