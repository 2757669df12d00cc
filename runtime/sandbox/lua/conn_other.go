//go:build !linux

package lua

import (
	"errors"
	"os"
)

// connection is nothing where runners are not supported.
type connection struct{}

func (connection) Read([]byte) (int, error)  { return 0, errors.ErrUnsupported }
func (connection) Write([]byte) (int, error) { return 0, errors.ErrUnsupported }

var interruption os.Signal
