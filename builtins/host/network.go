package host

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"slices"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	// maxRoutes bounds what is told of routes: a router of the Internet has a million.
	maxRoutes = 10_000
	// resolvConf says who is asked for names (resolv.conf(5)), and maxResolvConf how much of it is read.
	resolvConf    = "/etc/resolv.conf"
	maxResolvConf = 64 << 10
)

// network is the view of interfaces, routes and name servers, for hosts.
func (r *Room) network(ctx context.Context, call *builtins.Call, _ *pb.NetworkRequest) (*pb.NetworkResponse, error) {
	links, err := facts.Links()
	if err != nil {
		return nil, err
	}
	routes, err := listRoutes(links)
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
	links, err := facts.Links()
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
	links, err := facts.Links()
	if err != nil {
		return nil, err
	}
	routes, err := listRoutes(links)
	if err == nil && len(routes) > maxRoutes {
		err = fault.Wrapf(fault.ErrTooLarge, "there are %d routes; %d can be told", len(routes), maxRoutes)
	}
	if err != nil {
		return nil, err
	}
	return &pb.NetRoutes{Routes: routes}, nil
}

func listRoutes(links []facts.Link) (list []*pb.NetRoute, err error) {
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

// dns tells who is asked for names: what resolv.conf says, and behind the server of systemd-resolved that stands there, whom that
// asks.
func (r *Room) dns(ctx context.Context, call *builtins.Call, _ *pb.NoArgs) (*pb.NetDns, error) {
	files := r.guest.Of(call)
	if files == nil {
		return nil, fault.Unsupported("there are no files to read %s from", resolvConf)
	}
	content, err := files.ReadFile(resolvConf, maxResolvConf)
	if errors.Is(err, fs.ErrNotExist) {
		return &pb.NetDns{Manager: "resolv.conf"}, nil
	}
	if err != nil {
		return nil, fault.On(resolvConf, err)
	}
	out := parseResolvConf(string(content))
	if !r.guest.Live || call.DryRun != nil || !slices.ContainsFunc(out.Servers, isStub) {
		return out, nil
	}
	asked, err := resolved(ctx)
	if errors.Is(err, errors.ErrUnsupported) { // it does not run, so nobody answers there
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	asked.Options = out.Options
	return asked, nil
}

// isStub says whether an address is one on which systemd-resolved listens (systemd-resolved.service(8)).
func isStub(server string) bool { return server == "127.0.0.53" || server == "127.0.0.54" }

// parseResolvConf reads resolv.conf(5): of search and domain the last one counts.
func parseResolvConf(content string) *pb.NetDns {
	out := &pb.NetDns{Manager: "resolv.conf"}
	for line := range strings.Lines(content) {
		words := strings.Fields(line)
		if len(words) < 2 || strings.HasPrefix(words[0], "#") || strings.HasPrefix(words[0], ";") {
			continue
		}
		switch words[0] {
		case "nameserver":
			out.Servers = append(out.Servers, words[1])
		case "search", "domain":
			out.Search = words[1:]
		case "options":
			out.Options = append(out.Options, words[1:]...)
		}
	}
	return out
}
