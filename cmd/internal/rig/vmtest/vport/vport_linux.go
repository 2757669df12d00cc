package vport

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Port is an open virtio-serial port. Writing waits while no host is connected.
type Port struct {
	*os.File
}

// Open opens the port of that name, which the host chose, and waits up to the given time for it to appear and to be free:
// a port has one holder at a time.
func Open(name string, wait time.Duration) (*Port, error) {
	deadline := time.Now().Add(wait)
	for {
		f, err := open(name)
		if err == nil {
			return &Port{f}, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("open port %s: %w", name, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// open looks the device up in sysfs, because the links in /dev/virtio-ports need udev, which starts later.
func open(name string) (*os.File, error) {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, file := range names {
		got, err := os.ReadFile(file)
		if err == nil && strings.TrimSpace(string(got)) == name {
			device := "/dev/" + filepath.Base(filepath.Dir(file))
			return os.OpenFile(device, os.O_RDWR|unix.O_NONBLOCK, 0)
		}
	}
	return nil, os.ErrNotExist
}

// Session returns a reader for one host connection: it waits until a host sends something, and returns io.EOF when that
// host has left. The next Session continues with the next host. A host that is replaced without a pause may go unnoticed.
func (p *Port) Session() io.Reader { return &session{port: p} }

type session struct {
	port  *Port
	begun bool
}

func (s *session) Read(b []byte) (int, error) {
	conn, err := s.port.SyscallConn()
	if err != nil {
		return 0, err
	}
	var n int
	var readErr error
	// The port reads as ended while no host is connected. Answering false then waits for the next edge, which the host's
	// arrival or its first bytes bring, so that an idle guest does not spin.
	err = conn.Read(func(fd uintptr) bool {
		n, readErr = unix.Read(int(fd), b)
		switch {
		case readErr == unix.EAGAIN || readErr == unix.EINTR:
			return false
		case readErr == nil && n == 0:
			return s.begun
		}
		return true
	})
	switch {
	case err != nil:
		return 0, err
	case readErr != nil:
		return 0, readErr
	case n == 0:
		return 0, io.EOF
	}
	s.begun = true
	return n, nil
}
