package netplan

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// snapshot is the network at one moment.
type snapshot struct {
	links     []facts.Link
	addresses []address
}

func (r *Room) look(context.Context) (n *snapshot, err error) {
	n = &snapshot{}
	if n.links, err = r.system.links(); err == nil {
		n.addresses, err = addresses()
	}
	return n, err
}

func (n *snapshot) name(index int) string {
	for _, l := range n.links {
		if l.Index == index {
			return l.Name
		}
	}
	return fmt.Sprintf("interface %d", index)
}

// find returns the interfaces that a part of the configuration is about.
func (n *snapshot) find(l *link) (found []facts.Link) {
	for _, have := range n.links {
		if l.virtual != "" && have.Name == l.virtual || l.virtual == "" && l.is(have) {
			found = append(found, have)
		}
	}
	return found
}

// of are the addresses of an interface, but for those that never leave the link.
func (n *snapshot) of(index int) (list []address) {
	for _, a := range n.addresses {
		if a.index == index && !a.prefix.Addr().IsLinkLocalUnicast() {
			list = append(list, a)
		}
	}
	return list
}

// answering are the default gateways that answer now, and how long they take, by interface.
func (n *snapshot) answering(ctx context.Context) (list []gateway, took map[int]time.Duration) {
	all, err := gateways()
	if err != nil {
		return nil, nil
	}
	type answer struct {
		gateway
		took time.Duration
		err  error
	}
	answers, asked := make(chan answer, len(all)), 0
	for _, g := range all {
		q, err := g.question()
		if err != nil {
			continue
		}
		asked++
		go func() {
			began := time.Now()
			_, err := q.ask(ctx)
			answers <- answer{g, time.Since(began), err}
		}()
	}
	took = map[int]time.Duration{}
	for range asked {
		if a := <-answers; a.err == nil {
			list = append(list, a.gateway)
			took[a.index] = a.took
		}
	}
	return list, took
}

// managed refuses to change an interface that another daemon manages than the one that would get the configuration.
func (n *snapshot) managed(ctx context.Context, d *daemons, p *plan) error {
	managers, err := findManagers(ctx, d)
	if err != nil {
		return err
	}
	for _, l := range p.changed {
		for _, have := range n.find(l) {
			if who, _ := managers.of(have); who != "" && who != l.renderer && l.renderer != "" {
				return fault.On(have.Name, fault.Unsupported("%s manages it, and netplan would give it to %s", who, l.renderer))
			}
		}
	}
	if err := n.notOthers(p); err != nil {
		return err
	}
	return n.ownedByIfup(n.ofIfup(p))
}

// undo is how a rollback comes back from a plan.
func (n *snapshot) undo(p *plan, answered []gateway) *pb.NetplanUndo {
	undo := &pb.NetplanUndo{Action: pb.NetplanUndo_ACTION_RESTORE, BootId: facts.BootID(), Made: p.made}
	for _, file := range p.paths {
		g := &pb.NetplanGenerated{Path: file, Absent: true}
		if have := p.have[file]; have != nil && !lasting(file) {
			g = &pb.NetplanGenerated{
				Path: file, Content: have.content, Mode: have.mode, Uid: have.uid, Gid: have.gid, Target: have.target,
			}
		}
		undo.Files = append(undo.Files, g)
	}
	seen := map[int]bool{}
	for _, set := range []map[string]*link{p.old, p.new} {
		for _, id := range idsOf(set) {
			for _, have := range n.find(set[id]) {
				if !seen[have.Index] {
					seen[have.Index] = true
					undo.Links = append(undo.Links, n.before(have))
				}
			}
		}
	}
	if ifup := n.ofIfup(p); len(ifup) > 0 {
		up, _ := configured() // the plan could not be made without it
		undo.Interfaces, undo.IfupAfter = interfacesOf(p.want), ifup
		undo.IfupBefore = slices.DeleteFunc(up, func(name string) bool { return !slices.Contains(ifup, name) })
	}
	for _, g := range answered {
		undo.Gateways = append(undo.Gateways, &pb.NetplanGateway{Link: n.name(g.index), Address: g.addr.String()})
	}
	return undo
}

// identity is what an interface that stays is known by.
func identity(have facts.Link) *pb.NetplanLinkBefore {
	b := &pb.NetplanLinkBefore{Name: have.Name, Index: int32(have.Index)}
	if have.Kind == "physical" || have.Kind == "veth" {
		b.Mac = have.MAC
	}
	return b
}

// renamed gives interfaces the names back that they had. Those whose names are exchanged get other ones in between. An
// interface whose name somebody else has taken meanwhile keeps its own, or, where another one has that by now, is reported.
func (n *snapshot) renamed(links []*pb.NetplanLinkBefore, is sameness) error {
	names, held := map[int]string{}, map[string]int{}
	for _, was := range links {
		for i, have := range n.links {
			if was.Mac != "" && have.Kind == "physical" && have.Name != was.Name && is(n, have, was, links) {
				names[have.Index], held[have.Name] = was.Name, have.Index
				n.links[i].Name = was.Name
			}
		}
	}
	indexes, aside := slices.Sorted(maps.Keys(names)), map[int]bool{}
	for _, index := range indexes {
		holder, exchanged := held[names[index]]
		if !exchanged {
			continue
		}
		aside[holder] = true
		if err := renameLink(holder, fmt.Sprintf("quantix%d", holder)); err != nil {
			return fault.On(names[index], err)
		}
	}
	for _, index := range indexes {
		if err := renameLink(index, names[index]); err != nil && (aside[index] || !errors.Is(err, unix.EEXIST)) {
			return fault.On(names[index], err)
		}
	}
	return nil
}

// alone reports whether no two interfaces have, or had, the hardware address of one: those of a bond have that in common.
func (n *snapshot) alone(have facts.Link, links []*pb.NetplanLinkBefore) bool {
	count := 0
	for _, other := range n.links {
		if other.Kind == "physical" && other.MAC == have.MAC {
			count++
		}
	}
	for _, was := range links {
		if was.Mac == have.MAC {
			count++
		}
	}
	return count <= 2
}

// sameness reports whether an interface is the one that was known, among others.
type sameness func(n *snapshot, have facts.Link, was *pb.NetplanLinkBefore, all []*pb.NetplanLinkBefore) bool

// sameIndex is for the same boot, and sameMAC for another one.
func sameIndex(_ *snapshot, have facts.Link, was *pb.NetplanLinkBefore, _ []*pb.NetplanLinkBefore) bool {
	return have.Index == int(was.Index)
}

func sameMAC(n *snapshot, have facts.Link, was *pb.NetplanLinkBefore, all []*pb.NetplanLinkBefore) bool {
	return have.MAC == was.Mac && n.alone(have, all)
}

func (n *snapshot) before(have facts.Link) *pb.NetplanLinkBefore {
	b := identity(have)
	b.Up, b.Mtu = have.Up, have.MTU
	for _, a := range n.of(have.Index) {
		switch {
		case !a.leased():
			b.Addresses = append(b.Addresses, a.prefix.String())
		case a.prefix.Addr().Is4():
			b.Leased4 = true
		default:
			b.Leased6 = true
		}
	}
	return b
}

// checks are what must be so of interfaces: of those that change, and of those that carried an address.
func (n *snapshot) checks(r *Room, d *daemons, p *plan) (list []check) {
	for _, id := range idsOf(p.new) {
		l := p.new[id]
		before := &former{}
		if old := p.old[id]; old != nil {
			before.dhcp = old.dhcp
		}
		for _, have := range n.find(l) {
			before.bare = before.bare || have.Enabled && !have.Up
			for _, a := range n.of(have.Index) {
				before.addresses = append(before.addresses, a.prefix)
			}
		}
		if !slices.Contains(p.changed, l) && len(before.addresses) == 0 {
			continue
		}
		fresh := slices.Contains(p.changed, l)
		list = append(list, check{"link", l.id, func(ctx context.Context) (string, error) {
			now, err := r.look(ctx)
			if err != nil {
				return "", err
			}
			return now.fits(ctx, d, l, before, fresh)
		}})
	}
	return list
}

// fits says what is to be seen of an interface, and why it is not as it was asked for. One that had no carrier before need not
// have one. fresh: its manager must have taken the new configuration.
func (n *snapshot) fits(ctx context.Context, d *daemons, l *link, before *former, fresh bool) (string, error) {
	found := n.find(l)
	if len(found) == 0 {
		if l.optional {
			return "it is not there, and optional", nil
		}
		return "", errors.New("there is no such interface")
	}
	var words []string
	for _, have := range found {
		seen, err := n.fitsOne(ctx, d, l, have, before, fresh)
		if err != nil {
			return "", err
		}
		words = append(words, seen)
	}
	return strings.Join(words, "; "), nil
}

func (n *snapshot) fitsOne(
	ctx context.Context, d *daemons, l *link, have facts.Link, before *former, fresh bool,
) (string, error) {
	switch {
	case l.rename != "" && have.Name != l.rename:
		return "", fmt.Errorf("its name is %s, not %s", have.Name, l.rename)
	case l.off:
		return have.Name + " is left as it is", nil
	case !have.Enabled:
		return "", fmt.Errorf("%s is down", have.Name)
	case l.master != "" && n.name(have.Master) != l.master:
		return "", fmt.Errorf("%s is no port of %s", have.Name, l.master)
	case l.virtual != "" && l.renderer == byIfupdown && have.Kind != l.kind:
		return "", fmt.Errorf("%s is a %s, and no %s", have.Name, have.Kind, l.kind)
	case !have.Up && (before.bare || l.optional):
		return have.Name + " has no carrier, and had none before", nil
	case l.port:
		return have.Name + " is up, and a port", nil
	case !have.Up:
		return "", fmt.Errorf("%s has no carrier", have.Name)
	}
	words := []string{have.Name + " is up"}
	for _, want := range l.addresses {
		at := slices.IndexFunc(n.addresses, func(a address) bool { return a.index == have.Index && a.prefix == want })
		if at < 0 {
			return "", fmt.Errorf("%s has no %v", have.Name, want)
		}
		if trouble := n.addresses[at].trouble(); trouble != "" {
			return "", fmt.Errorf("%s has %v, and %s", have.Name, want, trouble)
		}
		words = append(words, want.String())
	}
	leases, err := n.leases(l, have, before)
	if err != nil {
		return "", err
	}
	words = append(words, leases...)
	if err := l.hasRoutes(have); err != nil {
		return "", err
	}
	if fresh && l.renderer == byNetworkd {
		if err := taken(ctx, d, have.Index); err != nil {
			return "", err
		}
	}
	return strings.Join(words, ", "), nil
}

// hasRoutes returns an error about a route that was asked for, and the kernel does not have.
func (l *link) hasRoutes(have facts.Link) error {
	if len(l.routes) == 0 {
		return nil
	}
	there, err := routes()
	if err != nil {
		return err
	}
	for _, want := range l.routes {
		if !slices.ContainsFunc(there, func(r hop) bool {
			return r.index == have.Index && r.addr == want.via.WithZone("") && r.to == want.to.Masked()
		}) {
			return fmt.Errorf("%s has no route to %v by %v", have.Name, want.to, want.via)
		}
	}
	return nil
}

// leases are the addresses that an interface got by DHCP, or of a router. One of a family is enough where it asks for both:
// a guest that asks for IPv6 as well need not be in a network that has it.
func (n *snapshot) leases(l *link, have facts.Link, before *former) (words []string, err error) {
	if l.optional || l.dhcp == [2]bool{} {
		return nil, nil
	}
	for _, a := range n.of(have.Index) {
		six := family(a.prefix.Addr())
		// A lease without an end looks like an address that was set; one that was there before is not it.
		if l.dhcp[six] && (a.leased() || !slices.Contains(l.addresses, a.prefix) && !before.set(a.prefix, six)) {
			words = append(words, a.prefix.String()+" by DHCP")
		}
	}
	switch fixed := len(l.addresses) > 0; {
	case len(words) > 0 || !l.dhcp[0] && fixed:
		return words, nil
	case l.dhcp[0]:
		return nil, fmt.Errorf("%s got no address of IPv4 by DHCP", have.Name)
	}
	return nil, fmt.Errorf("%s got no address of IPv6 by DHCP", have.Name)
}

// former is what an interface was before it was changed.
type former struct {
	bare      bool // it had no carrier
	addresses []netip.Prefix
	dhcp      [2]bool
}

// set reports whether an address was there, and no lease.
func (f *former) set(prefix netip.Prefix, six int) bool {
	return f != nil && !f.dhcp[six] && slices.Contains(f.addresses, prefix)
}

// restored waits until the network is as an undo has it, for limit at most.
func (r *Room) restored(ctx context.Context, in *pb.NetplanUndo, limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errLate)
	defer cancel()
	kernel := watchKernel()
	defer kernel.close()
	var checks []check
	for _, was := range in.Links {
		checks = append(checks, check{"link", was.Name, func(ctx context.Context) (string, error) {
			now, err := r.look(ctx)
			if err != nil {
				return "", err
			}
			return "", now.isAs(was)
		}})
	}
	for _, g := range in.Gateways {
		checks = append(checks, check{"gateway", g.Address, func(ctx context.Context) (string, error) {
			now, err := r.look(ctx)
			if err != nil {
				return "", err
			}
			used, err := gateways()
			if err != nil {
				return "", err
			}
			for _, have := range used {
				if have.addr.String() == g.Address && now.name(have.index) == g.Link {
					_, err := have.ask(ctx)
					return "", err
				}
			}
			return "", fmt.Errorf("it is not the default gateway on %s", g.Link)
		}})
	}
	for _, c := range checks {
		if seen, err := wait(ctx, kernel, c); errors.Is(err, errLate) {
			return fault.On(c.object, fault.Wrapf(fault.ErrOutput, "the former network does not work: %s", seen))
		} else if err != nil {
			return err
		}
	}
	return nil
}

// isAs returns in what an interface is not as it was.
func (n *snapshot) isAs(was *pb.NetplanLinkBefore) error {
	at := slices.IndexFunc(n.links, func(l facts.Link) bool { return l.Name == was.Name })
	if at < 0 {
		return errors.New("it is not there")
	}
	have := n.links[at]
	if was.Mtu != 0 && have.MTU != was.Mtu {
		return fmt.Errorf("its MTU is %d, not %d", have.MTU, was.Mtu)
	}
	if was.Mac != "" && have.MAC != was.Mac {
		return fmt.Errorf("its hardware address is %s, not %s", have.MAC, was.Mac)
	}
	if was.Up && !have.Up {
		return errors.New("it is down, or has no carrier")
	}
	var leased [2]bool
	var fixed []string
	for _, a := range n.of(have.Index) {
		if a.leased() {
			leased[family(a.prefix.Addr())] = true
		} else {
			fixed = append(fixed, a.prefix.String())
		}
	}
	for _, want := range was.Addresses {
		if !slices.Contains(fixed, want) {
			return fmt.Errorf("it has no %s", want)
		}
	}
	if was.Leased4 && !leased[0] || was.Leased6 && !leased[1] {
		return errors.New("it has no lease")
	}
	return nil
}
