package host

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// maxRoutes bounds the routes of a reply: a router of the Internet has a million.
const maxRoutes = 10_000

// network is the view of interfaces, routes and name servers, for hosts.
func (r *Room) network(ctx context.Context, call *builtins.Call, _ *pb.NetworkRequest) (*pb.NetworkResponse, error) {
	links, err := r.links()
	if err != nil {
		return nil, err
	}
	routes, err := r.listRoutes(links)
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return nil, err
	}
	out := &pb.NetworkResponse{Interfaces: describeLinks(links), Routes: routes[:min(len(routes), maxRoutes)]}
	out.RoutesDropped = uint32(len(routes) - len(out.Routes))
	if out.Dns, err = r.dns(ctx, call, nil); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return nil, err
	}
	return out, nil
}

func (r *Room) interfaces(context.Context, *builtins.Call, *pb.NoArgs) (*pb.Interfaces, error) {
	links, err := r.links()
	if err != nil {
		return nil, err
	}
	return &pb.Interfaces{Interfaces: describeLinks(links)}, nil
}

func describeLinks(links []facts.Link) (list []*pb.NetInterface) {
	for _, l := range links {
		list = append(list, &pb.NetInterface{
			Name: l.Name, Mac: l.MAC, Mtu: l.MTU, Up: l.Up, Loopback: l.Loopback, Kind: l.Kind, Index: uint32(l.Index),
			Enabled: l.Enabled, Master: linkName(links, l.Master), Addresses: texts(l.Prefixes), Tentative: texts(l.Tentative),
		})
	}
	return list
}

func texts(prefixes []netip.Prefix) (list []string) {
	for _, p := range prefixes {
		list = append(list, p.String())
	}
	return list
}

// linkName is the name of the link with an index; empty: there is none.
func linkName(links []facts.Link, index int) string {
	i := slices.IndexFunc(links, func(l facts.Link) bool { return l.Index == index })
	if index == 0 || i < 0 {
		return ""
	}
	return links[i].Name
}

func (r *Room) routes(context.Context, *builtins.Call, *pb.NoArgs) (*pb.NetRoutes, error) {
	links, err := r.links()
	if err != nil {
		return nil, err
	}
	routes, err := r.listRoutes(links)
	if err == nil && len(routes) > maxRoutes {
		err = fault.Wrapf(fault.ErrTooLarge, "there are %d routes; %d can be listed", len(routes), maxRoutes)
	}
	if err != nil {
		return nil, err
	}
	return &pb.NetRoutes{Routes: routes}, nil
}

// links are the interfaces of the running machine; a tree that is not booted has none.
func (r *Room) links() ([]facts.Link, error) {
	if r.guest.Root() != "/" {
		return nil, nil
	}
	return facts.Links()
}

func (r *Room) listRoutes(links []facts.Link) (list []*pb.NetRoute, err error) {
	if r.guest.Root() != "/" {
		return nil, nil
	}
	routes, err := facts.Routes()
	for _, route := range routes {
		list = append(list, &pb.NetRoute{
			Destination: route.Destination.String(), Gateway: addrText(route.Gateway), Interface: linkName(links, route.Link),
			Source: addrText(route.Source), Metric: route.Metric, Table: route.Table, Protocol: route.Protocol, Scope: route.Scope,
			Type: route.Kind,
		})
	}
	return list, err
}

func addrText(addr netip.Addr) string {
	if !addr.IsValid() {
		return ""
	}
	return addr.String()
}
