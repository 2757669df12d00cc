package netplan

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/quantix-kvm/guest-agent/builtins/internal/sysbus"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

const (
	settingsPath   = networkManagers + "/Settings"
	activatedState = 2 // NM_ACTIVE_CONNECTION_STATE_ACTIVATED
	endedState     = 4 // NM_ACTIVE_CONNECTION_STATE_DEACTIVATED
)

// profiles are the profiles among generated files, as NetworkManager calls them: netplan-ens3.
func profiles(paths []string) (list []string) {
	for _, file := range paths {
		if forNetworkManager(file) {
			list = append(list, strings.TrimSuffix(path.Base(file), ".nmconnection"))
		}
	}
	return list
}

// nm is a connection to NetworkManager.
type nm struct{ *sysbus.Conn }

// openNM connects to NetworkManager, which must run, by the connection of d.
func openNM(ctx context.Context, d *daemons) (*nm, error) {
	conn, err := d.open(ctx)
	if err != nil {
		return nil, err
	}
	runs, err := has(ctx, conn, networkManager)
	if err == nil && !runs {
		err = fault.Unsupported("NetworkManager does not run, and is the renderer")
	}
	if err != nil {
		return nil, err
	}
	return &nm{conn}, nil
}

// checkpoint has NetworkManager go back by itself to what it does now, after some time: should the agent end, and nobody start
// it again, the guest is not cut off.
func (c *nm) checkpoint(ctx context.Context, after time.Duration) (made dbus.ObjectPath, err error) {
	const allowOverlapping = 8
	err = c.Call(ctx, networkManager, networkManagers, networkManager+".CheckpointCreate", []any{&made},
		[]dbus.ObjectPath{}, uint32(after.Seconds()), uint32(allowOverlapping))
	return made, err
}

// endCheckpoint keeps NetworkManager from going back by itself. A checkpoint that is gone has ended already.
func endCheckpoint(ctx context.Context, d *daemons, made string) {
	if made == "" {
		return
	}
	c, err := openNM(ctx, d)
	if err != nil {
		return
	}
	_ = c.Call(ctx, networkManager, networkManagers, networkManager+".CheckpointDestroy", nil, dbus.ObjectPath(made))
}

// reload has NetworkManager read the profiles again, and returns those that were made of files of netplan by name.
func (c *nm) reload(ctx context.Context) (map[string]dbus.ObjectPath, error) {
	const settings = networkManager + ".Settings"
	var ok bool
	if err := c.Call(ctx, networkManager, settingsPath, settings+".ReloadConnections", []any{&ok}); err != nil {
		return nil, err
	}
	var list []dbus.ObjectPath
	if err := c.Call(ctx, networkManager, settingsPath, settings+".ListConnections", []any{&list}); err != nil {
		return nil, err
	}
	found := map[string]dbus.ObjectPath{}
	for _, profile := range list {
		var values map[string]map[string]dbus.Variant
		err := c.Call(ctx, networkManager, profile, settings+".Connection.GetSettings", []any{&values})
		if isGone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		id, _ := values["connection"]["id"].Value().(string)
		if strings.HasPrefix(id, "netplan-") || strings.HasPrefix(id, "quantix-") {
			found[id] = profile
		}
	}
	return found, nil
}

// activate has NetworkManager use a profile, on the interface that it chooses for it, and waits until it does.
func (c *nm) activate(ctx context.Context, profile dbus.ObjectPath) error {
	var active dbus.ObjectPath
	err := c.Call(ctx, networkManager, networkManagers, networkManager+".ActivateConnection", []any{&active},
		profile, dbus.ObjectPath("/"), dbus.ObjectPath("/"))
	if err != nil {
		return err
	}
	for pace := pace(0); ; {
		var state uint32
		err := c.Property(ctx, networkManager, active, networkManager+".Connection.Active", "State", &state)
		switch {
		case isGone(err), state == endedState:
			return fault.Wrapf(fault.ErrOutput, "NetworkManager gave the activation up")
		case err != nil:
			return err
		case state == activatedState:
			return nil
		}
		timer := pace.next()
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fault.Wrapf(context.Cause(ctx), "NetworkManager is still activating it")
		}
	}
}

// useProfiles has NetworkManager use those of the profiles that are there. What does not come up is an error, but all are
// tried.
func useProfiles(ctx context.Context, d *daemons, names []string) error {
	if len(names) == 0 {
		return nil
	}
	c, err := openNM(ctx, d)
	if err != nil {
		return err
	}
	found, err := c.reload(ctx)
	if err != nil {
		return err
	}
	// A port comes with the bridge or bond that it belongs to, whose profile is after it otherwise.
	for _, name := range slices.Sorted(slices.Values(names)) {
		profile, there := found[name]
		if !there {
			continue
		}
		if failed := c.activate(ctx, profile); failed != nil {
			err = errors.Join(err, fault.On(name, failed))
		}
	}
	return err
}

// isGone reports whether an error is that of an object that is not there any more.
func isGone(err error) bool {
	return errors.Is(err, errors.ErrUnsupported) || errors.Is(err, fs.ErrNotExist)
}

// guard has NetworkManager go back by itself if nobody ends that checkpoint within some time; empty: it is not concerned.
func guard(ctx context.Context, d *daemons, p *plan, limit time.Duration) (checkpoint string, err error) {
	if !p.touches(forNetworkManager) {
		return "", nil
	}
	c, err := openNM(ctx, d)
	if err != nil {
		return "", err
	}
	// Longer than all that the agent itself may take, twice.
	made, err := c.checkpoint(ctx, 2*(limit+restoreTime))
	if err != nil {
		return "", fmt.Errorf("checkpoint: %w", err)
	}
	return string(made), nil
}
