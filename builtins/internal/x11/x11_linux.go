// Package x11 connects to the X server of a session, in a time that is bounded.
//
//	DISPLAY ─► a local socket ─► XAUTHORITY: the cookie of this display ─► xgb.Conn
//
// The library reads the process's own environment, and waits for ever for a server that was stopped; so the connection and the
// cookie are made here, and a deadline of the socket ends what waits.
//
// Not here: any request, and servers on other machines.
package x11

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jezek/xgb"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Timeout bounds the connection to a server.
const Timeout = 2 * time.Second

const (
	cookieName = "MIT-MAGIC-COOKIE-1"
	maxCookies = 1 << 20 // bytes of an authority file that are read
	// socketDir is where servers listen, and the beginning of their abstract names, too.
	socketDir = "/tmp/.X11-unix"
)

// Conn is a connection to a server.
type Conn struct {
	*xgb.Conn
	// Screen is the number of the screen that DISPLAY names.
	Screen int

	display string
	socket  *socket
}

// Dial connects to the server that DISPLAY of a session's environment names, with the cookie that is in the session's authority
// file. Without a display, or a server, the error is unsupported.
func Dial(ctx context.Context, getenv func(string) string) (*Conn, error) {
	display := getenv("DISPLAY")
	number, screen, err := parse(display)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	plain, err := dial(ctx, number)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fault.Unsupported("there is no X server at %s", display)
	}
	if err != nil {
		return nil, fault.On("X server "+display, err)
	}
	s := &socket{Conn: plain, setup: setup(cookie(getenv, strconv.Itoa(number)))}
	s.SetDeadline(time.Now().Add(Timeout))
	xgb.Logger.SetOutput(io.Discard)
	conn, err := xgb.NewConnNet(s)
	if err != nil {
		plain.Close()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, silent(display)
		}
		return nil, fault.On("X server "+display, fault.Cause(err))
	}
	s.SetDeadline(time.Time{})
	return &Conn{Conn: conn, Screen: screen, display: display, socket: s}, nil
}

// Do runs f, which speaks to the server, and ends the connection if that takes longer than ctx allows.
func (c *Conn) Do(ctx context.Context, f func() error) error {
	stop := context.AfterFunc(ctx, func() { c.socket.SetDeadline(time.Unix(1, 0)) })
	err := f()
	if !stop() && err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, context.DeadlineExceeded) {
			return silent(c.display)
		}
		return context.Cause(ctx)
	}
	return err
}

// silent is the error about a server that does not answer.
func silent(display string) error {
	return fault.Wrapf(context.DeadlineExceeded, "the X server %s does not answer", display)
}

// parse reads the name of a display of this machine, as X(7) has it: [unix]:number[.screen].
func parse(display string) (number, screen int, err error) {
	if display == "" {
		return 0, 0, fault.Unsupported("there is no DISPLAY in the environment of the session")
	}
	host, rest, ok := strings.Cut(display, ":")
	first, second, dotted := strings.Cut(rest, ".")
	number, err = strconv.Atoi(first)
	if err == nil && dotted {
		screen, err = strconv.Atoi(second)
	}
	switch {
	case !ok || err != nil || number < 0 || screen < 0:
		return 0, 0, fault.Invalid("DISPLAY is %q, which names no display", display)
	case host != "" && host != "unix":
		return 0, 0, fault.Unsupported("the X server %s is on another machine", display)
	}
	return number, screen, nil
}

// dial connects to the socket of a display, or to its abstract one.
func dial(ctx context.Context, number int) (net.Conn, error) {
	path := filepath.Join(socketDir, "X"+strconv.Itoa(number))
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		if abstract, other := dialer.DialContext(ctx, "unix", "@"+path); other == nil {
			return abstract, nil
		}
	}
	return conn, err
}

// socket sends our own setup request in place of the library's, which has no cookie.
type socket struct {
	net.Conn
	setup []byte
}

// Write sends what the library writes, but for what it writes first.
func (s *socket) Write(p []byte) (int, error) {
	if s.setup == nil {
		return s.Conn.Write(p)
	}
	request := s.setup
	s.setup = nil
	if _, err := s.Conn.Write(request); err != nil {
		return 0, err
	}
	return len(p), nil
}

// setup is the request that begins a connection: byte order, version 11.0, and the name and data of the authorization.
func setup(cookie []byte) []byte {
	name := ""
	if cookie != nil {
		name = cookieName
	}
	b := []byte{'l', 0, 11, 0, 0, 0}
	b = binary.LittleEndian.AppendUint16(b, uint16(len(name)))
	b = binary.LittleEndian.AppendUint16(b, uint16(len(cookie)))
	b = append(b, 0, 0)
	for _, part := range []string{name, string(cookie)} {
		b = append(b, part...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
	}
	return b
}

// Families of addresses in an authority file (Xauth.h).
const (
	familyLocal = 256
	familyWild  = 65535
)

// cookie returns the cookie of a display in the session's authority file; nil: there is none, which some servers do not mind.
func cookie(getenv func(string) string, display string) []byte {
	path := getenv("XAUTHORITY")
	if path == "" {
		path = filepath.Join(getenv("HOME"), ".Xauthority")
	}
	file, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer file.Close()
	host, _ := os.Hostname()
	return findCookie(io.LimitReader(file, maxCookies), host, display)
}

// findCookie reads an authority file: of each entry the family of the address, then address, display, name and data, each with
// its length before it; all numbers have the high byte first.
func findCookie(file io.Reader, host, display string) []byte {
	for {
		var family uint16
		if binary.Read(file, binary.BigEndian, &family) != nil {
			return nil
		}
		var fields [4][]byte
		for i := range fields {
			var n uint16
			if binary.Read(file, binary.BigEndian, &n) != nil {
				return nil
			}
			fields[i] = make([]byte, n)
			if _, err := io.ReadFull(file, fields[i]); err != nil {
				return nil
			}
		}
		address, of, name, data := string(fields[0]), string(fields[1]), string(fields[2]), fields[3]
		if (family == familyWild || family == familyLocal && address == host) && (of == "" || of == display) && name == cookieName {
			return data
		}
	}
}

// String returns the display, such as :0.
func (c *Conn) String() string { return fmt.Sprintf("X server %s", c.display) }
