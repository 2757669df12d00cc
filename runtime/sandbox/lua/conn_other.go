//go:build !linux

package lua

import (
	"errors"
	"os"
)

// agentConn fails on systems without runners.
type agentConn struct{}

func (agentConn) Read([]byte) (int, error)  { return 0, errors.ErrUnsupported }
func (agentConn) Write([]byte) (int, error) { return 0, errors.ErrUnsupported }

// interruptSignal is nil: there is no such signal.
var interruptSignal os.Signal
