package netplan

import (
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// ownConflicts returns the default routes of d that get in each other's way. Both are meant by whoever wrote it, so they are no
// reason to refuse it.
func (d *document) ownConflicts() []*pb.NetplanConflict {
	own := comparison{ours: d, other: d}
	own.defaults()
	return own.found
}

// conflicts returns what other files say of the same interfaces, beside what d says.
func (d *document) conflicts(others []*document) (list []*pb.NetplanConflict) {
	for _, other := range others {
		c := comparison{ours: d, other: other}
		for kind, group := range pairs(d.network()) {
			theirs := at(other.network(), kind.Value)
			switch {
			case theirs == nil || kind.Value == "version":
			case group.Kind != yaml.MappingNode:
				c.compare(group, theirs, kind.Value)
			default:
				for name, ours := range pairs(group) {
					if theirs := at(theirs, name.Value); theirs != nil {
						key := join(kind.Value, name.Value)
						c.compare(ours, theirs, key)
						c.sources(ours, theirs, key)
					}
				}
			}
		}
		c.defaults()
		list = append(list, c.found...)
	}
	return list
}

// defaultRoute is where a file says which gateway leads everywhere.
type defaultRoute struct {
	name, key string // of the interface, and from the top on
	rank      string // routes of one rank get in each other's way: family, table, metric
	at        *yaml.Node
}

// vrfTables returns the tables of routes that name none, by the name of an interface that is a VRF or in one.
func (d *document) vrfTables() map[string]string {
	tables := map[string]string{}
	for name, vrf := range pairs(at(d.network(), "vrfs")) {
		table, members := at(vrf, "table"), at(vrf, "interfaces")
		if table == nil {
			continue
		}
		tables[name.Value] = table.Value
		for i := 0; members != nil && i < len(members.Content); i++ {
			tables[members.Content[i].Value] = table.Value
		}
	}
	return tables
}

func (d *document) defaultRoutes() (list []defaultRoute) {
	tables := d.vrfTables()
	for kind, group := range pairs(d.network()) {
		for name, value := range pairs(group) {
			key := join(kind.Value, name.Value)
			for _, old := range []string{"gateway4", "gateway6"} {
				if way := at(value, old); way != nil {
					list = append(list, defaultRoute{name.Value, join(key, old), old[7:] + " " + tables[name.Value] + " ", way})
				}
			}
			routes := at(value, "routes")
			if routes == nil {
				continue
			}
			for _, way := range routes.Content {
				to, via := at(way, "to"), at(way, "via")
				if to == nil || via == nil || !slices.Contains([]string{"default", "0.0.0.0/0", "0/0", "::/0"}, to.Value) {
					continue
				}
				family, table, metric := "4", tables[name.Value], ""
				if strings.Contains(via.Value, ":") {
					family = "6"
				}
				if said := at(way, "table"); said != nil {
					table = said.Value
				}
				if table == "254" { // where routes go that name none
					table = ""
				}
				if said := at(way, "metric"); said != nil {
					metric = said.Value
				}
				list = append(list, defaultRoute{name.Value, join(key, "routes"), family + " " + table + " " + metric, to})
			}
		}
	}
	return list
}

// defaults finds default routes of other interfaces that would be used instead, or beside: netplan takes them, and says so in a
// warning at most.
func (c *comparison) defaults() {
	for i, our := range c.ours.defaultRoutes() {
		others := c.other.defaultRoutes()
		if c.other == c.ours { // each two once
			others = others[:i]
		}
		for _, their := range others {
			if our.rank == their.rank && our.name != their.name {
				c.add(their.key, their.at, "a default route of the same metric as that of "+our.name+", so one is used by chance")
			}
		}
	}
}

// comparison collects what two files say of the same.
type comparison struct {
	ours, other *document
	found       []*pb.NetplanConflict
}

func (c *comparison) add(key string, theirs *yaml.Node, meaning string) {
	conflict := &pb.NetplanConflict{Key: key, File: c.other.path, Line: uint32(theirs.Line), Meaning: meaning}
	if baseName(c.other.path) == cloudFile {
		conflict.Hint = cloudHint
	}
	c.found = append(c.found, conflict)
}

// compare looks at one key, and at those below. netplan puts lists of several files together, and takes a single value from the
// file that it reads last. Values are not quoted: some are secrets.
func (c *comparison) compare(ours, theirs *yaml.Node, key string) {
	switch {
	case ours.Kind == yaml.MappingNode && theirs.Kind == yaml.MappingNode:
		for name, value := range pairs(ours) {
			if other := at(theirs, name.Value); other != nil {
				c.compare(value, other, join(key, name.Value))
			}
		}
	case same(ours, theirs) || len(theirs.Content) == 0 && theirs.Kind != yaml.ScalarNode:
	case ours.Kind == yaml.SequenceNode && theirs.Kind == yaml.SequenceNode:
		c.add(key, theirs, "both lists hold")
	case baseName(c.other.path) > baseName(c.ours.path):
		c.add(key, theirs, "that file is read later, so its value holds")
	default:
		c.add(key, theirs, "this file is read later, so the value here holds")
	}
}

// sources finds addresses that an interface would get beside the ones that are asked for.
func (c *comparison) sources(ours, theirs *yaml.Node, key string) {
	fixed := at(ours, "addresses")
	for _, dhcp := range []string{"dhcp4", "dhcp6"} {
		their := at(theirs, dhcp)
		if their != nil && isTrue(their) && at(ours, dhcp) == nil && fixed != nil && hasFamily(fixed, dhcp == "dhcp6") {
			c.add(join(key, dhcp), their, "the interface asks for an address as well; say here that it does not")
		}
		if our := at(ours, dhcp); our != nil && isTrue(our) && fixed == nil {
			if list := at(theirs, "addresses"); list != nil && hasFamily(list, dhcp == "dhcp6") {
				c.add(join(key, "addresses"), list, "the interface keeps these as well")
			}
		}
	}
}

// hasFamily reports whether a list has an address of IPv6, or else of IPv4.
func hasFamily(list *yaml.Node, six bool) bool {
	return slices.ContainsFunc(list.Content, func(n *yaml.Node) bool {
		text := n.Value
		if n.Kind == yaml.MappingNode && len(n.Content) > 0 {
			text = n.Content[0].Value
		}
		return strings.Contains(text, ":") == six
	})
}

func isTrue(n *yaml.Node) bool {
	return slices.Contains([]string{"true", "yes", "on", "y", "1"}, strings.ToLower(n.Value))
}

// same reports whether two values are one.
func same(a, b *yaml.Node) bool {
	if a.Kind != b.Kind || a.Value != b.Value && !(isTrue(a) && isTrue(b)) || len(a.Content) != len(b.Content) {
		return false
	}
	for i := range a.Content {
		if !same(a.Content[i], b.Content[i]) {
			return false
		}
	}
	return true
}
