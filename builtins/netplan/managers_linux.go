package netplan

import (
	"context"
	"errors"
	"os"
	"strconv"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/builtins/internal/sysbus"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// managers is which daemon manages which interface, as the daemons themselves say.
type managers struct {
	networkd       map[int]string    // what it says of an interface, by index
	networkManager map[string]string // by name
	ifupdown       map[string]bool
}

// of returns who manages an interface, and what that says of it; empty: nobody does.
func (m *managers) of(have facts.Link) (who, state string) {
	if state := m.networkManager[have.Name]; state != "" {
		return byNetworkManager, state
	}
	if state := m.networkd[have.Index]; state != "" && state != "unmanaged" && state != "pending" && state != "initialized" {
		return byNetworkd, state
	}
	if m.ifupdown[have.Name] {
		return byIfupdown, "up"
	}
	return "", ""
}

// findManagers asks all daemons that run.
func findManagers(ctx context.Context, d *daemons) (*managers, error) {
	m := &managers{networkd: map[int]string{}, networkManager: map[string]string{}, ifupdown: map[string]bool{}}
	list, err := configured()
	if err != nil {
		return nil, err
	}
	for _, name := range list {
		m.ifupdown[name] = true
	}
	conn, err := d.open(ctx)
	if errors.Is(err, errors.ErrUnsupported) {
		return m, nil
	}
	if err != nil {
		return nil, err
	}
	second := make(chan error)
	go func() { second <- m.askNetworkManager(ctx, conn) }()
	return m, errors.Join(m.askNetworkd(ctx, conn), <-second)
}

func (m *managers) askNetworkd(ctx context.Context, conn *sysbus.Conn) error {
	if runs, err := has(ctx, conn, networkd); err != nil || !runs {
		return err
	}
	var links []struct {
		Index int32
		Name  string
		Path  dbus.ObjectPath
	}
	if err := conn.Call(ctx, networkd, networkdPath, networkd+".Manager.ListLinks", []any{&links}); err != nil {
		return err
	}
	for _, l := range links {
		var state string
		err := conn.Property(ctx, networkd, l.Path, networkd+".Link", "AdministrativeState", &state)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // gone meanwhile
			return err
		}
		m.networkd[int(l.Index)] = state
	}
	return nil
}

// deviceStates are NMDeviceState, in tens.
var deviceStates = []string{
	"unknown", "unmanaged", "unavailable", "disconnected", "preparing", "configuring", "needs authentication", "getting addresses",
	"checking", "waiting", "activated", "deactivating", "failed",
}

func (m *managers) askNetworkManager(ctx context.Context, conn *sysbus.Conn) error {
	if runs, err := has(ctx, conn, networkManager); err != nil || !runs {
		return err
	}
	devices, err := devicesOf(ctx, conn)
	if err != nil {
		return err
	}
	for _, device := range devices {
		var name string
		var managed bool
		var state uint32
		const iface = networkManager + ".Device"
		err := errors.Join(
			conn.Property(ctx, networkManager, device, iface, "Interface", &name),
			conn.Property(ctx, networkManager, device, iface, "Managed", &managed),
			conn.Property(ctx, networkManager, device, iface, "State", &state),
		)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if managed && err == nil && name != "lo" { // which newer ones manage in any case
			m.networkManager[name] = strconv.Itoa(int(state))
			if at := int(state / 10); at < len(deviceStates) {
				m.networkManager[name] = deviceStates[at]
			}
		}
	}
	return nil
}

// devicesOf asks NetworkManager for its devices. One that has just been started has its name on the bus a moment before it has
// anything there.
func devicesOf(ctx context.Context, conn *sysbus.Conn) (devices []dbus.ObjectPath, err error) {
	late := time.Now().Add(startTime)
	for pace := pace(0); ; {
		err = conn.Call(ctx, networkManager, networkManagers, networkManager+".GetDevices", []any{&devices})
		if !isGone(err) || time.Now().After(late) {
			return devices, err
		}
		timer := pace.next()
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, context.Cause(ctx)
		}
	}
}

// rendererHere asks who manages the network of a guest without netplan.
func rendererHere(ctx context.Context, d *daemons) (string, error) {
	defer d.use()()
	m, err := findManagers(ctx, d)
	if err != nil {
		return "", err
	}
	for _, state := range m.networkManager {
		if state == "activated" {
			return byNetworkManager, nil
		}
	}
	for _, state := range m.networkd {
		if state == "configured" || state == "configuring" {
			return byNetworkd, nil
		}
	}
	if len(m.networkManager) > 0 {
		return byNetworkManager, nil
	}
	if len(m.ifupdown) > 0 {
		return byIfupdown, nil
	}
	return "", fault.Unsupported("this guest has no netplan, and nothing that this agent knows manages an interface")
}

func (r *Room) status(ctx context.Context, call *builtins.Call, _ *pb.NoArgs) (*pb.NetplanStatus, error) {
	err := r.served()
	if err != nil {
		return nil, err
	}
	out := &pb.NetplanStatus{}
	set, err := r.checkedDocuments(ctx, call)
	if err != nil {
		return nil, err
	}
	for _, d := range set {
		out.Files = append(out.Files, d.path)
	}
	want, err := r.generate(ctx, set)
	if err != nil {
		out.Error = err.Error()
	}
	if !r.guest.Live {
		return out, nil
	}
	if err == nil {
		have, err := r.current(want)
		if err != nil {
			return nil, err
		}
		out.Pending = len(differing(have, want)) > 0
	}
	d := r.system.daemons
	defer d.use()()
	m, err := findManagers(ctx, d)
	if err != nil {
		return nil, err
	}
	n, err := r.look(ctx)
	if err != nil {
		return nil, err
	}
	for _, have := range n.links {
		if have.Loopback {
			continue
		}
		who, state := m.of(have)
		l := &pb.NetplanLink{Name: have.Name, Mac: have.MAC, Manager: who, State: state}
		if who == "" {
			l.Manager = "none"
		}
		for _, a := range n.addresses {
			if a.index == have.Index {
				l.Addresses = append(l.Addresses, a.prefix.String())
			}
		}
		out.Links = append(out.Links, l)
	}
	return out, nil
}
