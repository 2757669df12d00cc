// Package sysbus calls services on the guest's D-Bus system bus: systemd, logind, timedated, hostnamed, localed.
//
//	Open ─► one connection, authenticated within Timeout ─► Call ─► the reply, or an error of the fault table
//
// A connection lives for one operation, or for some that follow each other within seconds: none is kept for longer, so that a
// bus that was restarted is found again, and an agent at rest holds nothing.
//
// Not here: what a service's methods mean, which the rooms know.
package sysbus

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Timeout bounds the connection to the bus, and each call by Call.
const Timeout = 5 * time.Second

// Socket is where the system bus listens, unless DBUS_SYSTEM_BUS_ADDRESS says otherwise (D-Bus specification, "Well-known
// message bus instances").
const Socket = "/run/dbus/system_bus_socket"

// Available reports whether there is a system bus to connect to.
func Available() bool {
	if os.Getenv("DBUS_SYSTEM_BUS_ADDRESS") != "" {
		return true
	}
	info, err := os.Stat(Socket)
	return err == nil && info.Mode()&fs.ModeSocket != 0
}

// Conn is a connection to the system bus. It is safe for concurrent use.
type Conn struct {
	*dbus.Conn
	stop func()
}

// Open connects to the system bus. The connection ends with ctx, or by Close. Without a bus the error is unsupported; a bus
// that does not answer within Timeout is an error that says so.
func Open(ctx context.Context) (*Conn, error) {
	return open(ctx, "the system bus", "there is no D-Bus system bus in this guest", func(ctx context.Context) (*dbus.Conn, error) {
		return dbus.ConnectSystemBus(dbus.WithContext(ctx))
	})
}

// OpenPeer connects to a service that takes connections of its own at the socket path, as Open does to the bus: each call then
// goes one way less far. Calls name the service as they do on the bus; signals come without being asked for.
func OpenPeer(ctx context.Context, path string) (*Conn, error) {
	return open(ctx, path, "there is no "+path+" in this guest", func(ctx context.Context) (*dbus.Conn, error) {
		conn, err := dbus.Dial("unix:path="+path, dbus.WithContext(ctx))
		if err != nil {
			return nil, err
		}
		if err := conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Getuid()))}); err != nil {
			conn.Close()
			return nil, err
		}
		return conn, nil
	})
}

// OpenSession connects to the bus of a user's session at a D-Bus address, as Open does to the system bus. Only its user may.
func OpenSession(ctx context.Context, address string) (*Conn, error) {
	return open(ctx, "the session bus", "there is no D-Bus session bus", func(ctx context.Context) (*dbus.Conn, error) {
		conn, err := dbus.Dial(address, dbus.WithContext(ctx))
		if err != nil {
			return nil, err
		}
		err = conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Getuid()))})
		if err == nil {
			err = conn.Hello()
		}
		if err != nil {
			conn.Close()
			return nil, err
		}
		return conn, nil
	})
}

func open(ctx context.Context, name, none string, dial func(context.Context) (*dbus.Conn, error)) (*Conn, error) {
	ctx, stop := context.WithCancelCause(ctx)
	late := time.AfterFunc(Timeout, func() { stop(silent(name, nil)) })
	conn, err := dial(ctx)
	if !late.Stop() && err == nil {
		conn.Close()
		err = context.DeadlineExceeded
	}
	if err != nil {
		cause := context.Cause(ctx)
		stop(nil)
		switch {
		case cause != nil:
			return nil, cause
		case errors.Is(err, fs.ErrNotExist):
			return nil, fault.Unsupported("%s", none)
		}
		return nil, fault.On("D-Bus: "+name, err)
	}
	return &Conn{Conn: conn, stop: func() { stop(nil) }}, nil
}

// Close ends the connection.
func (c *Conn) Close() error {
	defer c.stop()
	return c.Conn.Close()
}

// Call calls a method, such as org.freedesktop.login1.Manager.PowerOff, of the object at path of a service, and stores what it
// returns in out, a pointer for each value, as dbus.Store does. It waits for Timeout at most.
func (c *Conn) Call(ctx context.Context, service string, path dbus.ObjectPath, method string, out []any, args ...any) error {
	ctx, cancel := context.WithTimeoutCause(ctx, Timeout, silent(service, nil))
	defer cancel()
	call := c.Object(service, path).CallWithContext(ctx, method, 0, args...)
	if call.Err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return Error(service, call.Err)
	}
	if len(out) == 0 {
		return nil
	}
	if err := call.Store(out...); err != nil {
		return fault.On(service, err)
	}
	return nil
}

// Property reads a property, such as org.freedesktop.systemd1.Unit.ActiveState, of the object at path of a service into out,
// a pointer. It waits for Timeout at most.
func (c *Conn) Property(ctx context.Context, service string, path dbus.ObjectPath, iface, name string, out any) error {
	var value dbus.Variant
	if err := c.Call(ctx, service, path, "org.freedesktop.DBus.Properties.Get", []any{&value}, iface, name); err != nil {
		return err
	}
	if err := value.Store(out); err != nil {
		return fault.On(service+" "+iface+"."+name, err)
	}
	return nil
}

// silent is the error about a service that does not answer.
func silent(service string, err error) error {
	if err == nil {
		err = context.DeadlineExceeded
	}
	return fault.Wrapf(err, "%s does not answer (waited for %d s)", service, int(Timeout.Seconds()))
}

// Names of D-Bus errors (D-Bus specification, "Error names"), each with the cause that it stands for in the fault table.
var causes = map[string]error{
	"org.freedesktop.DBus.Error.ServiceUnknown":                   errors.ErrUnsupported,
	"org.freedesktop.DBus.Error.NameHasNoOwner":                   errors.ErrUnsupported,
	"org.freedesktop.DBus.Error.UnknownMethod":                    errors.ErrUnsupported,
	"org.freedesktop.DBus.Error.UnknownInterface":                 errors.ErrUnsupported,
	"org.freedesktop.DBus.Error.NotSupported":                     errors.ErrUnsupported,
	"org.freedesktop.DBus.Error.AccessDenied":                     fs.ErrPermission,
	"org.freedesktop.DBus.Error.AuthFailed":                       fs.ErrPermission,
	"org.freedesktop.DBus.Error.InteractiveAuthorizationRequired": fs.ErrPermission,
	"org.freedesktop.DBus.Error.InvalidArgs":                      fs.ErrInvalid,
	"org.freedesktop.DBus.Error.FileNotFound":                     fs.ErrNotExist,
	"org.freedesktop.DBus.Error.UnknownObject":                    fs.ErrNotExist,
	"org.freedesktop.DBus.Error.NoReply":                          context.DeadlineExceeded,
	"org.freedesktop.DBus.Error.Timeout":                          context.DeadlineExceeded,
}

// Error returns what a failed call of a service comes to in the fault table. An error whose name has no row keeps its text.
func Error(service string, err error) error {
	var reply dbus.Error
	if !errors.As(err, &reply) {
		return fault.On(service, err)
	}
	cause := causes[reply.Name]
	switch {
	case cause == nil:
		return fault.On(service, err)
	case errors.Is(cause, context.DeadlineExceeded):
		return silent(service, cause)
	}
	return fault.On(service, fault.Wrapf(cause, "%s", reply.Error()))
}
