//go:build !linux

package vmtest

import (
	"errors"
	"fmt"
	"net"
)

func unixPair() (near, far net.Conn, err error) {
	return nil, nil, fmt.Errorf("socket pair: %w", errors.ErrUnsupported)
}
