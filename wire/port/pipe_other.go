//go:build !windows

package port

import (
	"errors"
	"fmt"
)

func listenPipe(name string) (Port, error) {
	return nil, fmt.Errorf("listen pipe:%s: %w", name, errors.ErrUnsupported)
}
