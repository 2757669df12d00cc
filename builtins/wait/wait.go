// Package wait answers a host when something has come about in the guest, so that nobody has to ask again and again.
//
//	wait ─► address: netlink
//	        file:    inotify, and the list of mounts      ─► each event: look again ─► the reply
//	        unit, ready: D-Bus signals of systemd
//
// Each condition is watched first and read then, so nothing is missed in between.
//
// Not here: how a host waits for an agent that does not run yet.
package wait

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// maxTimeout is the longest time that may be asked for.
const maxTimeout = 7 * 24 * time.Hour

// Room holds the operation. It is safe for concurrent use.
type Room struct{ guest *guest.Guest }

// New makes the room for a guest.
func New(g *guest.Guest) *Room { return &Room{guest: g} }

// Room is what the table and the executor know of the room.
func (r *Room) Room() builtins.Room {
	return builtins.Room{
		Name: "wait", Features: func() map[string]string { return map[string]string{"wait": r.conditions()} },
		Ops: []builtins.Op{{
			Name: "wait", Summary: "answer when an address, a file, a unit or the end of the boot is there", Capability: "wait",
			Access: builtins.Of(access), Handler: builtins.Handle(r.wait),
		}},
	}
}

func access(in *pb.WaitRequest) builtins.Access {
	switch {
	case in.GetFile().GetPath() != "":
		return builtins.Access{Reads: []string{in.GetFile().Path}}
	case in.GetUnit().GetName() != "":
		return builtins.Access{Objects: []builtins.Object{{Kind: "unit", Name: unitName(in.GetUnit().Name)}}}
	}
	return builtins.Access{}
}

func (r *Room) wait(ctx context.Context, _ *builtins.Call, in *pb.WaitRequest) (*pb.WaitResponse, error) {
	if in.TimeoutSeconds > 0 {
		limit := min(time.Duration(in.TimeoutSeconds)*time.Second, maxTimeout)
		late := fault.Wrapf(context.DeadlineExceeded, "it did not come about within %v", limit)
		limited, cancel := context.WithTimeoutCause(ctx, limit, late)
		defer cancel()
		ctx = limited
	}
	switch condition := in.Condition.(type) {
	case *pb.WaitRequest_Address:
		return r.address(ctx, condition.Address)
	case *pb.WaitRequest_Ready:
		return r.ready(ctx)
	case *pb.WaitRequest_Unit:
		return r.unit(ctx, condition.Unit.GetName())
	case *pb.WaitRequest_File:
		return r.file(ctx, condition.File.GetPath())
	}
	return nil, fault.Invalid("nothing is named that is to be waited for")
}

// wanted is the address that is waited for.
type wanted struct {
	network netip.Prefix // not valid: any that others reach the guest by
	mac     string
}

func parseWanted(in *pb.WaitAddress) (w wanted, err error) {
	if text := in.GetNetwork(); text != "" {
		if w.network, err = netip.ParsePrefix(text); err != nil {
			addr, bad := netip.ParseAddr(text)
			if bad != nil || addr.Zone() != "" {
				return w, fault.Invalid("%q is no address and no network, such as 192.0.2.0/24", text)
			}
			w.network = netip.PrefixFrom(addr, addr.BitLen())
		}
		w.network = w.network.Masked()
	}
	if text := in.GetMac(); text != "" {
		mac, err := net.ParseMAC(text)
		if err != nil {
			return w, fault.Invalid("%q is no hardware address, such as 52:54:00:12:34:56", text)
		}
		w.mac = mac.String()
	}
	return w, nil
}

// in returns the first address among links that is the wanted one; nil: there is none.
func (w wanted) in(links []facts.Link) *pb.WaitResponse {
	for _, link := range links {
		if !link.Up || w.mac != "" && link.MAC != w.mac || !w.network.IsValid() && (link.Loopback || link.Plumbing) {
			continue
		}
		for _, prefix := range link.Prefixes {
			addr := prefix.Addr()
			if tentative(link, prefix) {
				continue
			}
			fits := !addr.IsLoopback() && !addr.IsLinkLocalUnicast()
			if w.network.IsValid() {
				fits = w.network.Contains(addr)
			}
			if fits {
				return &pb.WaitResponse{Address: prefix.String(), Interface: link.Name}
			}
		}
	}
	return nil
}

func tentative(link facts.Link, prefix netip.Prefix) bool {
	for _, p := range link.Tentative {
		if p == prefix {
			return true
		}
	}
	return false
}

// exists reports whether something is at a path, links followed.
func (r *Room) exists(path string) (bool, error) {
	at, err := r.guest.Files.Follow(path)
	if err == nil {
		defer at.Close()
		var meta fsys.Meta
		if meta, err = at.Stat(); err == nil {
			return meta.Kind != fsys.Absent, nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) { // what is there may make way for a directory
		return false, nil
	}
	return false, fault.On(path, err)
}

// unitName is the whole name of a unit: without a suffix it is a service.
func unitName(name string) string {
	if name == "" || strings.Contains(name, ".") {
		return name
	}
	return name + ".service"
}
