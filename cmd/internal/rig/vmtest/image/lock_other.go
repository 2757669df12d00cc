//go:build !linux

package image

import (
	"errors"
	"fmt"
)

func lock(path string) (unlock func() error, err error) {
	return nil, fmt.Errorf("%s: %w: the guest is built on Linux", path, errors.ErrUnsupported)
}
