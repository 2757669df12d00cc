//go:build !linux && !windows

package lua

import "errors"

// agentConn fails on systems without runners.
type agentConn struct{}

func (agentConn) Read([]byte) (int, error)  { return 0, errors.ErrUnsupported }
func (agentConn) Write([]byte) (int, error) { return 0, errors.ErrUnsupported }

func onInterrupt(func()) {}
