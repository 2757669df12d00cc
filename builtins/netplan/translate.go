package netplan

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/text/lazyregexp"
)

// Where a guest without netplan has what is made of netplan's files. They are read before those of others.
const (
	ownNetworkd = "/etc/systemd/network/05-quantix-"
	ownProfiles = "/etc/NetworkManager/system-connections/quantix-"
)

// device is an interface as the files of netplan have it, all of them together.
type device struct {
	kind, id    string
	mac, name   string // of match
	setName     string
	setMAC      string
	dhcp        [2]bool
	acceptRA    *bool
	optional    bool
	mtu         int
	addresses   []netip.Prefix
	routes      []way
	nameservers []netip.Addr
	search      []string
	vlan        int
	link        string
	ports       []string
	parameters  map[string]string
	portCost    map[string]string // of a bridge, by port
	portRank    map[string]string

	vlans  []string // that are above it
	master *device
}

// way is a route of a file.
type way struct {
	to     netip.Prefix
	via    netip.Addr
	metric int // -1: none is said
	table  int
	onLink bool
}

// translate does the work of netplan's generator in a guest that has none: it makes files for a renderer of a set of files.
// What it cannot say it refuses, with the file, the line and the key.
func translate(set []*document, renderer string) (map[string]*generated, error) {
	t, err := readSet(set, renderer)
	if err != nil {
		return nil, err
	}
	files := map[string]*generated{}
	for _, id := range t.order {
		d := t.devices[id]
		if renderer == byNetworkManager {
			files[ownProfiles+id+".nmconnection"] = &generated{content: []byte(d.keyfile(t)), mode: 0o600}
		} else {
			files[ownNetworkd+id+".network"] = &generated{content: []byte(d.network()), mode: 0o644}
			if text := d.netdev(); text != "" {
				files[ownNetworkd+id+".netdev"] = &generated{content: []byte(text), mode: 0o644}
			}
		}
		if text := d.linkFile(); text != "" {
			files[ownNetworkd+id+".link"] = &generated{content: []byte(text), mode: 0o644}
		}
	}
	return files, nil
}

// readSet reads the interfaces of a set of files.
func readSet(set []*document, renderer string) (*translation, error) {
	t := &translation{renderer: renderer, devices: map[string]*device{}}
	for _, d := range set {
		if err := t.read(d); err != nil {
			return nil, fault.On(d.path, err)
		}
	}
	return t, t.connect()
}

type translation struct {
	renderer string
	devices  map[string]*device
	order    []string
}

// kinds are the kinds of interfaces that are translated.
var kinds = []string{"ethernets", "vlans", "bridges", "bonds"}

func (t *translation) read(d *document) error {
	if d.top == nil { // it is empty, or could not be parsed
		_, err := parse(d.path, d.text)
		return err
	}
	for key, value := range pairs(d.top) {
		if key.Value != "network" {
			return fault.Invalid("line %d: unknown key %s", key.Line, key.Value)
		}
		for kind, group := range pairs(value) {
			switch {
			case kind.Value == "version":
				if group.Value != "2" {
					return fault.Invalid("line %d: version is %s, not 2", group.Line, group.Value)
				}
			case kind.Value == "renderer":
				if err := t.mayRender(group); err != nil {
					return err
				}
			case !slices.Contains(kinds, kind.Value):
				return untranslated(kind, kind.Value)
			default:
				for name, value := range pairs(group) {
					if err := t.device(kind.Value, name, value); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

// mayRender refuses another renderer than the one that is there.
func (t *translation) mayRender(n *yaml.Node) error {
	if n.Value != t.renderer {
		return fault.Unsupported("line %d: renderer is %s, and %s manages the network of this guest", n.Line, n.Value, t.renderer)
	}
	return nil
}

func untranslated(key *yaml.Node, name string) error {
	return fault.Unsupported("line %d: %s: it is not known, or only netplan can say it, which is not here", key.Line, name)
}

func (t *translation) device(kind string, name, value *yaml.Node) error {
	d := t.devices[name.Value]
	if d == nil {
		d = &device{
			kind: kind, id: name.Value, parameters: map[string]string{}, portCost: map[string]string{}, portRank: map[string]string{},
		}
		t.devices[name.Value], t.order = d, append(t.order, name.Value)
	}
	switch {
	case d.kind != kind:
		return fault.Invalid("line %d: %s is one of %s, and of %s elsewhere", name.Line, name.Value, kind, d.kind)
	case !namePattern().MatchString(name.Value) || kind != "ethernets" && len(name.Value) > maxName:
		return fault.Invalid("line %d: %s is no name of an interface", name.Line, name.Value)
	}
	for key, v := range pairs(value) {
		if err := t.key(d, key, v, join(join(kind, name.Value), key.Value)); err != nil {
			return err
		}
	}
	return nil
}

// key reads one key of an interface. Of single values the last file's holds, and lists are put together, as netplan does it.
func (t *translation) key(d *device, key, v *yaml.Node, path string) (err error) {
	bad := func(what string) error {
		return fault.Invalid("line %d: %s is %q, which is no %s", v.Line, path, v.Value, what)
	}
	flag := func(to *bool) error {
		if !isTrue(v) && !slices.Contains([]string{"false", "no", "off", "n", "0"}, strings.ToLower(v.Value)) {
			return bad("yes or no")
		}
		*to = isTrue(v)
		return nil
	}
	switch key.Value {
	case "renderer":
		return t.mayRender(v)
	case "dhcp4":
		return flag(&d.dhcp[0])
	case "dhcp6":
		return flag(&d.dhcp[1])
	case "accept-ra":
		d.acceptRA = new(bool)
		return flag(d.acceptRA)
	case "optional":
		return flag(&d.optional)
	case "mtu":
		if d.mtu, err = strconv.Atoi(v.Value); err != nil || d.mtu < 68 || d.mtu > 65536 {
			return bad("MTU")
		}
	case "macaddress", "set-name", "match":
		return d.identity(key, v, path, bad)
	case "addresses":
		return each(v, path, func(n *yaml.Node) error {
			prefix, err := netip.ParsePrefix(n.Value)
			if err != nil || n.Kind != yaml.ScalarNode {
				return fault.Invalid("line %d: %s: %q is no address with a prefix length", n.Line, path, n.Value)
			}
			if !slices.Contains(d.addresses, prefix) {
				d.addresses = append(d.addresses, prefix)
			}
			return nil
		})
	case "gateway4", "gateway6":
		via, err := parseAddr(v.Value)
		if err != nil || via.Is4() != (key.Value == "gateway4") {
			return bad("address of a gateway")
		}
		d.routes = append(d.routes, way{to: everywhere(via), via: via, metric: -1})
	case "routes":
		return each(v, path, func(n *yaml.Node) error { return d.route(n, path) })
	case "nameservers":
		return d.names(v, path)
	case "id":
		if d.vlan, err = strconv.Atoi(v.Value); err != nil || d.vlan < 0 || d.vlan > 4094 || d.kind != "vlans" {
			return bad("number of a VLAN")
		}
	case "link":
		if d.link = v.Value; d.kind != "vlans" {
			return untranslated(key, path)
		}
	case "interfaces":
		if d.kind != "bridges" && d.kind != "bonds" {
			return untranslated(key, path)
		}
		return each(v, path, func(n *yaml.Node) error {
			if !slices.Contains(d.ports, n.Value) {
				d.ports = append(d.ports, n.Value)
			}
			return nil
		})
	case "parameters":
		return d.parameter(v, path)
	default:
		return untranslated(key, path)
	}
	return nil
}

func each(list *yaml.Node, path string, do func(n *yaml.Node) error) error {
	if list.Kind != yaml.SequenceNode {
		return fault.Invalid("line %d: %s: a list was expected", list.Line, path)
	}
	for _, n := range list.Content {
		if err := do(n); err != nil {
			return err
		}
	}
	return nil
}

// identity reads what identifies the interface.
func (d *device) identity(key, v *yaml.Node, path string, bad func(string) error) error {
	hardware := func(v *yaml.Node) (string, error) {
		mac, err := net.ParseMAC(v.Value)
		if err != nil || len(mac) != 6 {
			return "", fault.Invalid("line %d: %s: %q is no hardware address", v.Line, path, v.Value)
		}
		return mac.String(), nil
	}
	var err error
	switch {
	case key.Value == "macaddress":
		d.setMAC, err = hardware(v)
		return err
	case d.kind != "ethernets":
		return untranslated(key, path)
	case key.Value == "set-name":
		if d.setName = v.Value; !namePattern().MatchString(v.Value) || len(v.Value) > maxName {
			return bad("name of an interface")
		}
		return nil
	}
	for what, value := range pairs(v) {
		switch what.Value {
		case "macaddress":
			if d.mac, err = hardware(value); err != nil {
				return err
			}
		case "name":
			d.name = value.Value
			if !matchPattern().MatchString(d.name) {
				return fault.Invalid("line %d: %s.name is %q", value.Line, path, value.Value)
			}
		default:
			return untranslated(what, join(path, what.Value))
		}
	}
	return nil
}

// matchPattern is what may stand in match.name: a name, or a pattern of names. Renderers put it into files of their own, and
// ifupdown into lines of shell.
var matchPattern = lazyregexp.New(`^[A-Za-z0-9_*?\[\]!.-]{1,64}$`)

// parseAddr reads an address. One with a zone, which may hold any text, is none: a renderer knows the interface.
func parseAddr(text string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(text)
	if err == nil && addr.Zone() != "" {
		err = fault.Invalid("%q has a zone", text)
	}
	return addr, err
}

func (d *device) route(n *yaml.Node, path string) error {
	w := way{metric: -1}
	for key, v := range pairs(n) {
		var err error
		switch key.Value {
		case "to":
			if v.Value == "default" {
				continue
			}
			if w.to, err = netip.ParsePrefix(v.Value); err != nil {
				var addr netip.Addr
				if addr, err = parseAddr(v.Value); err == nil {
					w.to = netip.PrefixFrom(addr, addr.BitLen())
				}
			}
			w.to = w.to.Masked()
		case "via":
			w.via, err = parseAddr(v.Value)
		case "metric":
			w.metric, err = strconv.Atoi(v.Value)
		case "table":
			w.table, err = strconv.Atoi(v.Value)
		case "on-link":
			w.onLink = isTrue(v)
		default:
			return untranslated(key, join(path, key.Value))
		}
		if err != nil {
			return fault.Invalid("line %d: %s.%s is %q", v.Line, path, key.Value, v.Value)
		}
	}
	if !w.via.IsValid() {
		return fault.Unsupported("line %d: %s has no via, and only netplan can say such a route", n.Line, path)
	}
	if !w.to.IsValid() {
		w.to = everywhere(w.via)
	}
	if w.to.Addr().Is4() != w.via.Is4() {
		return fault.Invalid("line %d: %s: %v and %v are not of one family", n.Line, path, w.to, w.via)
	}
	d.routes = append(d.routes, w)
	return nil
}

func (d *device) names(v *yaml.Node, path string) error {
	for key, list := range pairs(v) {
		err := each(list, join(path, key.Value), func(n *yaml.Node) error {
			if key.Value == "search" && namePattern().MatchString(n.Value) {
				d.search = append(d.search, n.Value)
				return nil
			}
			addr, err := parseAddr(n.Value)
			if err != nil || key.Value != "addresses" {
				return fault.Invalid("line %d: %s.%s: %q", n.Line, path, key.Value, n.Value)
			}
			d.nameservers = append(d.nameservers, addr)
			return nil
		})
		if key.Value != "search" && key.Value != "addresses" {
			return untranslated(key, join(path, key.Value))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// connect finds the interfaces that others rest on.
func (t *translation) connect() error {
	find := func(d *device, name string) (*device, error) {
		if other := t.devices[name]; other != nil && other != d {
			return other, nil
		}
		return nil, fault.Invalid("%s.%s: interface %s is not defined", d.kind, d.id, name)
	}
	for _, id := range t.order {
		d := t.devices[id]
		if d.setName != "" && d.mac == "" {
			return fault.Invalid("%s.%s: set-name needs match.macaddress", d.kind, d.id)
		}
		if d.kind == "vlans" {
			if d.link == "" {
				return fault.Invalid("%s.%s: link is missing", d.kind, d.id)
			}
			below, err := find(d, d.link)
			if err != nil {
				return err
			}
			below.vlans = append(below.vlans, d.id)
		}
		for _, name := range d.ports {
			port, err := find(d, name)
			if err != nil {
				return err
			}
			if port.master != nil {
				return fault.Invalid("%s.%s: interface %s belongs to %s already", d.kind, d.id, name, port.master.id)
			}
			port.master = d
		}
		for _, list := range []map[string]string{d.portCost, d.portRank} {
			for _, name := range sortedKeys(list) {
				if !slices.Contains(d.ports, name) {
					return fault.Invalid("%s.%s.parameters: %s is none of its interfaces", d.kind, d.id, name)
				}
			}
		}
		if primary := d.parameters["primary"]; primary != "" && !slices.Contains(d.ports, primary) {
			return fault.Invalid("%s.%s.parameters.primary: %s is none of its interfaces", d.kind, d.id, primary)
		}
	}
	return nil
}

// called is the name that the interface has when it is configured.
func (d *device) called() string {
	switch {
	case d.setName != "":
		return d.setName
	case d.name != "":
		return d.name
	case d.mac != "":
		return ""
	}
	return d.id
}

// asPort are the cost and the priority that it has as a port of a bridge; empty: none is said.
func (d *device) asPort() (cost, rank string) {
	if d.master == nil {
		return "", ""
	}
	return d.master.portCost[d.id], d.master.portRank[d.id]
}

func sortedKeys(m map[string]string) []string {
	var keys []string
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// family is 0 for IPv4 and 1 for IPv6.
func family(addr netip.Addr) int {
	if addr.Is4() || addr.Is4In6() {
		return 0
	}
	return 1
}
