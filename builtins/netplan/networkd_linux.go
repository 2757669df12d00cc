package netplan

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/quantix-kvm/guest-agent/builtins/internal/sysbus"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Names of services on the system bus (org.freedesktop.systemd1(5), org.freedesktop.network1(5), NetworkManager's D-Bus API).
const (
	bus             = "org.freedesktop.DBus"
	busPath         = "/org/freedesktop/DBus"
	systemd         = "org.freedesktop.systemd1"
	systemdPath     = "/org/freedesktop/systemd1"
	networkd        = "org.freedesktop.network1"
	networkdPath    = "/org/freedesktop/network1"
	networkdUnit    = "systemd-networkd.service"
	networkManager  = "org.freedesktop.NetworkManager"
	networkManagers = "/org/freedesktop/NetworkManager"
	properties      = "org.freedesktop.DBus.Properties"
	startTime       = 30 * time.Second // of a daemon; half a second on real hardware
	beginTime       = 3 * time.Second  // for systemd-networkd to begin to change an interface; some milliseconds on real hardware
)

// has reports whether a service runs. It is not started by the question.
func has(ctx context.Context, conn *sysbus.Conn, service string) (owned bool, err error) {
	err = conn.Call(ctx, bus, busPath, bus+".NameHasOwner", []any{&owned}, service)
	return owned, err
}

// networkdUnitState returns the ActiveState of the unit of systemd-networkd, and since when it is active, in µs of the monotonic clock.
func networkdUnitState(ctx context.Context, conn *sysbus.Conn) (state string, since uint64, err error) {
	var path dbus.ObjectPath
	if err = conn.Call(ctx, systemd, systemdPath, systemd+".Manager.LoadUnit", []any{&path}, networkdUnit); err == nil {
		err = errors.Join(
			conn.Property(ctx, systemd, path, systemd+".Unit", "ActiveState", &state),
			conn.Property(ctx, systemd, path, systemd+".Unit", "ActiveEnterTimestampMonotonic", &since))
	}
	return state, since, err
}

// startsNetworkd reports whether a plan needs systemd-networkd, and it does not run.
func startsNetworkd(ctx context.Context, d *daemons, p *plan) (bool, error) {
	needed := false
	for file := range p.want {
		needed = needed || forNetworkd(file) && !strings.HasSuffix(file, ".link") // which is udev's
	}
	if !needed {
		return false, nil
	}
	conn, err := d.open(ctx)
	if err != nil {
		return false, err
	}
	if runs, err := has(ctx, conn, networkd); err != nil || runs {
		return false, err
	}
	state, _, err := networkdUnitState(ctx, conn) // one that has just been started may not be on the bus yet
	return err == nil && state != "active", err
}

// reloadNetworkd has systemd-networkd read its files again, and waits until it has begun to change the interfaces of these
// indices: before, all would look as it was. It changes those by itself for which a file is new, changed or gone
// (networkctl(1), reload).
func reloadNetworkd(ctx context.Context, d *daemons, links []int) error {
	conn, err := d.open(ctx)
	if err == nil {
		err = awaitNetworkd(ctx, conn)
	}
	if err != nil {
		return err
	}
	d.begins(nil)
	awaited := map[dbus.ObjectPath]int{}
	for _, index := range links {
		var name string
		var path dbus.ObjectPath
		err := conn.Call(ctx, networkd, networkdPath, networkd+".Manager.GetLinkByIndex", []any{&name, &path}, int32(index))
		if err != nil {
			return err
		}
		awaited[path] = index
	}
	signals := make(chan *dbus.Signal, 256)
	conn.Signal(signals)
	defer conn.RemoveSignal(signals)
	match := []dbus.MatchOption{
		dbus.WithMatchSender(networkd), dbus.WithMatchInterface(properties), dbus.WithMatchMember("PropertiesChanged"),
	}
	if err := conn.AddMatchSignalContext(ctx, match...); err != nil {
		return sysbus.Error(bus, err)
	}
	if err := conn.Call(ctx, networkd, networkdPath, networkd+".Manager.Reload", nil); err != nil {
		return err
	}
	late := time.NewTimer(beginTime)
	defer late.Stop()
	for len(awaited) > 0 {
		select {
		case s := <-signals:
			if s == nil {
				return fault.Wrapf(fault.ErrOutput, "the connection to the system bus broke")
			}
			index, is := awaited[s.Path]
			if state := began(s); is && state != "" {
				if delete(awaited, s.Path); state == "configuring" {
					d.begins(&index)
				}
			}
		case <-late.C: // it has found nothing to change
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// awaitNetworkd waits for systemd-networkd where it is being started: it does not answer yet.
func awaitNetworkd(ctx context.Context, conn *sysbus.Conn) error {
	late := fault.Wrapf(context.DeadlineExceeded, "it is started, and not on the system bus after %v", startTime)
	ctx, cancel := context.WithTimeoutCause(ctx, startTime, late)
	defer cancel()
	for pace := pace(0); ; {
		if runs, err := has(ctx, conn, networkd); err != nil || runs {
			return err
		}
		state, _, err := networkdUnitState(ctx, conn)
		if err != nil || !slices.Contains([]string{"activating", "active", "deactivating"}, state) {
			return err // the call returns what is wrong with one that is not started
		}
		timer := pace.next()
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fault.On(networkdUnit, context.Cause(ctx))
		}
	}
}

// began returns the state of an interface that is being changed, as a signal gives it; empty: it is about none. One that is
// configured may be so by what was going on before.
func began(s *dbus.Signal) string {
	if len(s.Body) < 2 {
		return ""
	}
	changed, _ := s.Body[1].(map[string]dbus.Variant)
	state, _ := changed["AdministrativeState"].Value().(string)
	if state == "configured" {
		return ""
	}
	return state
}

// startNetworkd starts systemd-networkd, or starts it again if it runs, and waits until it is active. One that runs keeps
// what it has read of a virtual interface for as long as it does, also when the interface and its file are gone, and would make
// another one of the same name like that (src/network/netdev/netdev.c of systemd 252). The addresses stay meanwhile.
func startNetworkd(ctx context.Context, d *daemons, stopped bool) error {
	conn, err := d.open(ctx)
	if err != nil {
		return err
	}
	d.begins(nil)
	_, before, err := networkdUnitState(ctx, conn)
	if err != nil {
		return err
	}
	if !stopped { // a start limit is for a service that fails
		if err := conn.Call(ctx, systemd, systemdPath, systemd+".Manager.ResetFailedUnit", nil, networkdUnit); err != nil {
			return err
		}
	}
	if err := conn.Call(ctx, systemd, systemdPath, systemd+".Manager.RestartUnit", nil, networkdUnit, "replace"); err != nil {
		return err
	}
	late := fault.Wrapf(context.DeadlineExceeded, "it is not active after %v", startTime)
	ctx, cancel := context.WithTimeoutCause(ctx, startTime, late)
	defer cancel()
	_, err = wait(ctx, &kernel{}, check{try: func(ctx context.Context) (string, error) {
		state, since, err := networkdUnitState(ctx, conn)
		if err == nil && (state != "active" || since == before) {
			err = errors.New(state)
		}
		return state, err
	}})
	return fault.On(networkdUnit, err)
}

// stopNetworkd takes a start back.
func stopNetworkd(ctx context.Context, d *daemons) error {
	conn, err := d.open(ctx)
	if err != nil {
		return err
	}
	return conn.Call(ctx, systemd, systemdPath, systemd+".Manager.StopUnit", nil, networkdUnit, "replace")
}

// reloadUnits has systemd read its units again. It answers nobody meanwhile, and with many units, or in an emulated guest, that
// takes seconds.
func reloadUnits(ctx context.Context, d *daemons) error {
	conn, err := d.open(ctx)
	if err != nil {
		return err
	}
	late := fault.Wrapf(context.DeadlineExceeded, "systemd has not read its units within %v", startTime)
	ctx, cancel := context.WithTimeoutCause(ctx, startTime, late)
	defer cancel()
	err = conn.Object(systemd, systemdPath).CallWithContext(ctx, systemd+".Manager.Reload", 0).Err
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	if err != nil {
		return sysbus.Error(systemd, err)
	}
	return nil
}

// taken returns an error unless systemd-networkd has given an interface its configuration. It may be at it still: it waits for
// routers, for up to 12 s, when all that was asked for is there.
func taken(ctx context.Context, d *daemons, index int) error {
	if d.hasBegun(index) { // it is busy with it, and slow to answer
		return nil
	}
	conn, err := d.open(ctx)
	if err != nil {
		return err
	}
	state, err := networkdState(ctx, conn, index)
	if err == nil && state != "configured" && state != "configuring" {
		err = fmt.Errorf("systemd-networkd says: %s", state)
	}
	return err
}

// networkdState is what systemd-networkd says of an interface: unmanaged, configuring, configured, failed …
func networkdState(ctx context.Context, conn *sysbus.Conn, index int) (state string, err error) {
	var name string
	var path dbus.ObjectPath
	err = conn.Call(ctx, networkd, networkdPath, networkd+".Manager.GetLinkByIndex", []any{&name, &path}, int32(index))
	if err == nil {
		err = conn.Property(ctx, networkd, path, networkd+".Link", "AdministrativeState", &state)
	}
	return state, err
}
