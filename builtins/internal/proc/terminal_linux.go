package proc

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// openTerminal makes a pseudo-terminal. master is one for the poller, so that a read or write of it can be ended.
func openTerminal(t *Terminal, user *User) (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fault.On("/dev/ptmx", err)
	}
	master = os.NewFile(uintptr(fd), "/dev/ptmx")
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		master.Close()
		return nil, nil, fault.On("/dev/ptmx", err)
	}
	path := fmt.Sprintf("/dev/pts/%d", number)
	slave, err = os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err == nil && user != nil && os.Geteuid() == 0 {
		err = slave.Chown(int(user.UID), -1) // who works on it may open it again by its name
	}
	if err == nil {
		err = setSize(fd, sizeOr(t.Rows, 24), sizeOr(t.Cols, 80))
	}
	if err != nil {
		master.Close()
		if slave != nil {
			slave.Close()
		}
		return nil, nil, fault.On(path, err)
	}
	return master, slave, nil
}

func sizeOr(n, other uint16) uint16 {
	if n == 0 {
		return other
	}
	return n
}

func setSize(fd int, rows, cols uint16) error {
	return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
}

func resizeTerminal(master *os.File, rows, cols uint16) error {
	conn, err := master.SyscallConn()
	if err != nil {
		return err
	}
	done := conn.Control(func(fd uintptr) {
		var now *unix.Winsize
		if now, err = unix.IoctlGetWinsize(int(fd), unix.TIOCGWINSZ); err == nil {
			err = setSize(int(fd), sizeOr(rows, now.Row), sizeOr(cols, now.Col))
		}
	})
	if done != nil {
		return done
	}
	return err
}

// signal reaches the process group of the command, whose number is its own until it is reaped.
func (c *child) signal(signal syscall.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reaped || c.pid() <= 1 { // a process that was let go of has no number any more
		return errOver
	}
	err := unix.Kill(-c.pid(), signal)
	if err == unix.ESRCH {
		return errOver
	}
	return err
}
