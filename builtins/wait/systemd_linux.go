package wait

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/quantix-kvm/guest-agent/builtins/internal/sysbus"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// The manager of systemd (org.freedesktop.systemd1(5)).
const (
	systemd          = "org.freedesktop.systemd1"
	systemdPath      = "/org/freedesktop/systemd1"
	managerInterface = systemd + ".Manager"
	unitInterface    = systemd + ".Unit"
	serviceInterface = systemd + ".Service"
	propertyChanged  = "org.freedesktop.DBus.Properties"
)

// booted is there where systemd is the init (sd_booted(3)).
const booted = "/run/systemd/system"

func systemdIsInit() bool {
	_, err := os.Stat(booted)
	return err == nil
}

// busPause is how long a bus that broke off is left alone.
const busPause = 200 * time.Millisecond

// errLost says that the connection to the bus broke off, as where that is restarted, or that systemd does not answer, as where
// it reads its units again.
var errLost = errors.New("the connection to the system bus broke off")

// locate returns the object whose signals report a change.
type locate func(ctx context.Context, bus *sysbus.Conn) (dbus.ObjectPath, error)

// look returns what holds now; nil without an error: not yet.
type look func(ctx context.Context, bus *sysbus.Conn) (*pb.WaitResponse, error)

// follow looks, and looks again whenever the manager or the object signals a change. A bus that is not there yet, or broke off,
// is waited for.
func (r *Room) follow(ctx context.Context, what string, path locate, holds look) (*pb.WaitResponse, error) {
	if !r.guest.Live {
		return nil, fault.Unsupported("%s is not supported: in a tree that is not booted nothing runs", what)
	}
	if !systemdIsInit() {
		return nil, fault.Unsupported("%s is not supported: the init of this guest is not systemd", what)
	}
	for {
		if !sysbus.Available() {
			if _, err := r.file(ctx, sysbus.Socket); err != nil {
				return nil, err
			}
		}
		found, err := r.onBus(ctx, path, holds)
		if found != nil || ctx.Err() != nil || !errors.Is(err, errLost) {
			if err != nil && ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return found, err
		}
		select {
		case <-time.After(busPause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// onBus is follow on one connection.
func (r *Room) onBus(ctx context.Context, path locate, holds look) (*pb.WaitResponse, error) {
	bus, err := sysbus.Open(ctx)
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, syscall.ECONNREFUSED) { // it has gone since the look
		return nil, errLost
	}
	if err != nil {
		return nil, err
	}
	defer bus.Close()
	object, err := path(ctx, bus)
	if err != nil {
		return nil, lost(ctx, bus, err)
	}
	signals := make(chan *dbus.Signal, 64)
	bus.Signal(signals)
	for _, match := range [][]dbus.MatchOption{
		{dbus.WithMatchObjectPath(systemdPath), dbus.WithMatchInterface(managerInterface)},
		{dbus.WithMatchObjectPath(object), dbus.WithMatchInterface(propertyChanged)},
	} {
		if err := bus.AddMatchSignalContext(ctx, append(match, dbus.WithMatchSender(systemd))...); err != nil {
			return nil, lost(ctx, bus, err)
		}
	}
	if err := bus.Call(ctx, systemd, systemdPath, managerInterface+".Subscribe", nil); err != nil {
		return nil, lost(ctx, bus, err)
	}
	for {
		if found, err := holds(ctx, bus); found != nil || err != nil {
			return found, lost(ctx, bus, err)
		}
		if err := next(ctx, bus, signals, object); err != nil {
			return nil, err
		}
	}
}

// lost makes an error one of a connection that broke off, if it did, or of a service that is busy.
func lost(ctx context.Context, bus *sysbus.Conn, err error) error {
	if err != nil && (!bus.Connected() || errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil) {
		return errLost
	}
	return err
}

// next waits for a signal that may mean a change.
func next(ctx context.Context, bus *sysbus.Conn, signals <-chan *dbus.Signal, object dbus.ObjectPath) error {
	for {
		select {
		case s, ok := <-signals:
			switch {
			case !ok:
				return errLost
			case s.Path == object && s.Name == propertyChanged+".PropertiesChanged",
				s.Name == managerInterface+".StartupFinished", s.Name == managerInterface+".Reloading",
				s.Name == managerInterface+".UnitNew" && about(s, object):
				return nil
			}
		case <-bus.Context().Done():
			if ctx.Err() == nil {
				return errLost
			}
			return context.Cause(ctx)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// about reports whether a signal UnitNew is of the object.
func about(s *dbus.Signal, object dbus.ObjectPath) bool {
	if len(s.Body) < 2 {
		return true
	}
	path, ok := s.Body[1].(dbus.ObjectPath)
	return !ok || path == object
}

// ready waits until systemd has started what belongs to the boot.
func (r *Room) ready(ctx context.Context) (*pb.WaitResponse, error) {
	manager := func(context.Context, *sysbus.Conn) (dbus.ObjectPath, error) { return systemdPath, nil }
	return r.follow(ctx, "waiting for ready", manager, func(ctx context.Context, bus *sysbus.Conn) (*pb.WaitResponse, error) {
		var state string
		if err := bus.Property(ctx, systemd, systemdPath, managerInterface, "SystemState", &state); err != nil {
			return nil, err
		}
		if state == "running" || state == "degraded" {
			return &pb.WaitResponse{State: state}, nil
		}
		return nil, nil
	})
}

// unit waits until a unit is active, or has done its work.
func (r *Room) unit(ctx context.Context, text string) (*pb.WaitResponse, error) {
	name := unitName(text)
	if name == "" {
		return nil, fault.Invalid("no unit is named")
	}
	var object dbus.ObjectPath
	load := func(ctx context.Context, bus *sysbus.Conn) (dbus.ObjectPath, error) {
		err := bus.Call(ctx, systemd, systemdPath, managerInterface+".LoadUnit", []any{&object}, name)
		return object, fault.On(name, err)
	}
	keep := func(ctx context.Context, bus *sysbus.Conn) (dbus.ObjectPath, error) {
		object, err := load(ctx, bus)
		if err == nil { // as long as the connection: else systemd forgets what became of it. Versions before 229 cannot
			_ = bus.Call(ctx, systemd, systemdPath, managerInterface+".RefUnit", nil, name)
		}
		return object, err
	}
	return r.follow(ctx, "waiting for a unit", keep, func(ctx context.Context, bus *sysbus.Conn) (*pb.WaitResponse, error) {
		if _, err := load(ctx, bus); err != nil { // what was not there may have been installed
			return nil, err
		}
		return unitHolds(ctx, bus, object, name)
	})
}

// unitHolds reports whether a unit is active, or has done its work; nil without an error: not yet.
func unitHolds(ctx context.Context, bus *sysbus.Conn, object dbus.ObjectPath, name string) (*pb.WaitResponse, error) {
	property := func(iface, property string, out any) error {
		return fault.On(name, bus.Property(ctx, systemd, object, iface, property, out))
	}
	var loaded, state, result, kind string
	var ended uint64
	err := errors.Join(property(unitInterface, "LoadState", &loaded), property(unitInterface, "ActiveState", &state))
	if err != nil {
		return nil, err
	}
	switch {
	case state == "active" || state == "reloading":
		return &pb.WaitResponse{State: state}, nil
	case state == "failed":
		_ = property(serviceInterface, "Result", &result) // other units have none
		return nil, fault.On(name, fault.Wrapf(fault.ErrOutput, "the unit has failed (%s)", result))
	case loaded == "masked":
		return nil, fault.On(name, fault.Refuse("the unit is masked, and never starts"))
	case state != "inactive" || loaded != "loaded" || property(serviceInterface, "Type", &kind) != nil || kind != "oneshot":
		return nil, nil
	}
	err = errors.Join(
		property(serviceInterface, "Result", &result), property(serviceInterface, "ExecMainExitTimestampMonotonic", &ended))
	if err != nil {
		return nil, err
	}
	if result == "success" && ended > 0 {
		return &pb.WaitResponse{State: state}, nil
	}
	return nil, nil
}
