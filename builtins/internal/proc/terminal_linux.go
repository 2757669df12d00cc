package proc

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// endOfInput is the end-of-file character of a terminal: Ctrl-D.
const endOfInput = "\x04"

// pseudoTerminal is the terminal of a command.
type pseudoTerminal struct {
	in, out *os.File    // our end, which is one here
	streams [3]*os.File // those of the command
}

// openTerminal makes a pseudo-terminal. Our end is nonblocking, so that a deadline ends its reads and writes.
func openTerminal(t *Terminal, user *User) (*pseudoTerminal, error) {
	master, slave, err := openPTY(t, user)
	if err != nil {
		return nil, err
	}
	return &pseudoTerminal{in: master, out: master, streams: [3]*os.File{slave, slave, slave}}, nil
}

// hangUp has nothing to do: the terminal is hung up when our end is closed.
func (*pseudoTerminal) hangUp() {}

// openPTY returns both ends of a new pseudo-terminal.
func openPTY(t *Terminal, user *User) (master, slave *os.File, err error) {
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
		err = slave.Chown(int(user.UID), -1) // the user may open it again by its name
	}
	if err == nil {
		err = setSize(fd, cmp.Or(t.Rows, 24), cmp.Or(t.Cols, 80))
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

func setSize(fd int, rows, cols uint16) error {
	return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
}

func (t *pseudoTerminal) resize(rows, cols uint16) error {
	conn, err := t.out.SyscallConn()
	if err != nil {
		return err
	}
	done := conn.Control(func(fd uintptr) {
		var now *unix.Winsize
		if now, err = unix.IoctlGetWinsize(int(fd), unix.TIOCGWINSZ); err == nil {
			err = setSize(int(fd), cmp.Or(rows, now.Row), cmp.Or(cols, now.Col))
		}
	})
	if done != nil {
		return done
	}
	return err
}

func isBrokenPipe(err error) bool { return errors.Is(err, syscall.EPIPE) }

// signal sends a signal to the process group of the command, whose ID is not used again before the process is reaped.
func (c *child) signal(signal syscall.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reaped || c.pid() <= 1 { // a released process has no PID
		return errEnded
	}
	err := unix.Kill(-c.pid(), signal)
	if err == unix.ESRCH {
		return errEnded
	}
	return err
}
