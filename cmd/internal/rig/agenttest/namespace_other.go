//go:build !linux

package agenttest

import "os/exec"

// asOwnKernel does nothing: there are no namespaces.
func asOwnKernel(*exec.Cmd) {}
