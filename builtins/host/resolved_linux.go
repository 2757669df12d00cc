package host

import (
	"context"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/builtins/internal/sysbus"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// The manager of systemd-resolved (org.freedesktop.resolve1(5)).
const (
	resolveService = "org.freedesktop.resolve1"
	resolvePath    = "/org/freedesktop/resolve1"
	resolveManager = "org.freedesktop.resolve1.Manager"
)

// resolveServer is an element of the property DNSEx: the interface (0: all), the family, the address, the port (0: 53) and the
// name by which the server proves who it is.
type resolveServer struct {
	Link    int32
	Family  int32
	Address []byte
	Port    uint16
	Name    string
}

// resolveDomain is an element of the property Domains: the interface (0: all), the domain, and whether it only routes.
type resolveDomain struct {
	Link   int32
	Domain string
	Routes bool
}

// resolved returns whom systemd-resolved asks. Where it does not run the error is errors.ErrUnsupported.
func resolved(ctx context.Context) (*pb.NetDns, error) {
	bus, err := sysbus.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer bus.Close()
	var servers []resolveServer
	var domains []resolveDomain
	if bus.Property(ctx, resolveService, resolvePath, resolveManager, "DNSEx", &servers) != nil {
		var older []struct { // before version 246 it is called DNS, without port and name
			Link, Family int32
			Address      []byte
		}
		if err := bus.Property(ctx, resolveService, resolvePath, resolveManager, "DNS", &older); err != nil {
			return nil, err
		}
		for _, s := range older {
			servers = append(servers, resolveServer{Link: s.Link, Family: s.Family, Address: s.Address})
		}
	}
	if err := bus.Property(ctx, resolveService, resolvePath, resolveManager, "Domains", &domains); err != nil {
		return nil, err
	}
	links, err := facts.Links()
	if err != nil {
		return nil, err
	}
	return describeResolved(servers, domains, links), nil
}

func describeResolved(servers []resolveServer, domains []resolveDomain, links []facts.Link) *pb.NetDns {
	out := &pb.NetDns{Manager: "systemd-resolved"}
	of := func(index int32) *pb.NetDnsLink {
		name := linkName(links, int(index))
		if name == "" {
			name = strconv.Itoa(int(index)) // it is gone
		}
		i := slices.IndexFunc(out.Links, func(l *pb.NetDnsLink) bool { return l.Interface == name })
		if i < 0 {
			out.Links = append(out.Links, &pb.NetDnsLink{Interface: name})
			i = len(out.Links) - 1
		}
		return out.Links[i]
	}
	for _, s := range servers {
		text := serverText(s)
		if !slices.Contains(out.Servers, text) {
			out.Servers = append(out.Servers, text)
		}
		if s.Link != 0 {
			link := of(s.Link)
			link.Servers = append(link.Servers, text)
		}
	}
	for _, d := range domains {
		text := d.Domain
		if d.Routes {
			text = "~" + strings.TrimPrefix(text, "~")
		} else if !slices.Contains(out.Search, text) {
			out.Search = append(out.Search, text)
		}
		if d.Link != 0 {
			link := of(d.Link)
			link.Search = append(link.Search, text)
		}
	}
	return out
}

func serverText(s resolveServer) string {
	addr, ok := netip.AddrFromSlice(s.Address)
	if !ok {
		return "unknown"
	}
	if s.Port == 0 || s.Port == 53 {
		return addr.String()
	}
	return addr.String() + "#" + strconv.Itoa(int(s.Port))
}
