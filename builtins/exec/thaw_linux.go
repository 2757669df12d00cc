package exec

import (
	"errors"

	"golang.org/x/sys/unix"
)

// fithaw is FITHAW of the kernel's include/uapi/linux/fs.h.
const fithaw = 0xC0045878

// thawTarget is an open directory of a file system that is to be thawed.
type thawTarget struct{ fd int }

func openThawTarget(path string) (*thawTarget, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &thawTarget{fd}, nil
}

// thaw thaws the file system. It returns false if it was not frozen.
func (p *thawTarget) thaw() (bool, error) {
	err := unix.IoctlSetInt(p.fd, fithaw, 0)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) && unix.Geteuid() != 0 {
		return false, nil // an agent that may not thaw could not freeze
	}
	return err == nil, err
}

func (p *thawTarget) close() { unix.Close(p.fd) }
