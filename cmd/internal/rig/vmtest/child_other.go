//go:build !linux

package vmtest

import (
	"errors"
	"fmt"
	"os/exec"
)

func startChild(cmd *exec.Cmd, exited chan<- struct{}) error {
	return fmt.Errorf("%s: %w: guests run on Linux hosts", cmd.Path, errors.ErrUnsupported)
}
