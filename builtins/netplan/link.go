package netplan

import (
	"net/netip"
	"path"
	"slices"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// link is what was generated for one interface of the configuration: what of it can be seen when it is applied.
type link struct {
	id        string // its name in the configuration
	files     []string
	renderer  string // networkd or NetworkManager
	name      string // a pattern of its name; empty: any
	mac       string // its hardware address; empty: any
	other     bool   // it is matched by something else, such as its driver
	rename    string // the name that it gets; empty: it keeps its own
	virtual   string // the name of a virtual interface that is made; empty: none is
	kind      string // of the virtual interface
	below     string // the interface that a VLAN of ifup is on
	master    string // the bridge or bond that it is a port of, where ifup makes it one
	port      bool   // it belongs to a bridge or a bond, and has no addresses
	optional  bool
	off       bool // it stays down
	addresses []netip.Prefix
	dhcp      [2]bool // IPv4, IPv6
	routes    []route
	direct    []netip.Prefix // what is reached without a gateway, beside the networks of addresses
}

// route is a way through a gateway.
type route struct {
	to     netip.Prefix
	via    netip.Addr
	onLink bool
}

const (
	byNetworkd       = "networkd"
	byNetworkManager = "NetworkManager"
	byIfupdown       = "ifupdown"
)

// linksOf reads what was generated, by the names of the configuration.
func linksOf(set map[string]*generated) map[string]*link {
	all := map[string]*link{}
	get := func(id, renderer string) *link {
		if all[id] == nil {
			all[id] = &link{id: id}
		}
		if renderer != "" {
			all[id].renderer = renderer
		}
		return all[id]
	}
	for _, file := range sorted(set) {
		base := path.Base(file)
		switch {
		case forNetworkd(file):
			_, id, _ := strings.Cut(strings.TrimSuffix(base, path.Ext(base)), "-") // 10-netplan-ens3
			_, id, _ = strings.Cut(id, "-")
			renderer := byNetworkd
			if path.Ext(base) == ".link" { // which is udev's, whoever the renderer is
				renderer = ""
			}
			l := get(id, renderer)
			l.files = append(l.files, file)
			l.readNetworkd(path.Ext(base), settings(set[file].content))
		case forNetworkManager(file):
			_, id, _ := strings.Cut(strings.TrimSuffix(base, ".nmconnection"), "-") // netplan-ens3
			l := get(id, byNetworkManager)
			l.files = append(l.files, file)
			l.readKeyfile(settings(set[file].content))
		case forIfupdown(file):
			if id := ofNetplanFile(file, set[file]); id != "" {
				l := get(id, byIfupdown)
				l.files = append(l.files, file)
				l.readInterfaces(string(set[file].content))
			}
		}
	}
	return all
}

// setting is a line of a file that has sections.
type setting struct {
	section, key, value string
	group               int // which section it is of, from the beginning of the file
}

// settings reads a file as systemd and NetworkManager have them.
func settings(content []byte) (list []setting) {
	section, group := "", 0
	for line := range strings.Lines(string(content)) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		if strings.HasPrefix(line, "[") && strings.HasSuffix(line, "]") {
			section = line[1 : len(line)-1]
			group++
			continue
		}
		if key, value, ok := strings.Cut(line, "="); ok {
			list = append(list, setting{section, strings.TrimSpace(key), strings.TrimSpace(value), group})
		}
	}
	return list
}

// readNetworkd reads a .network, .netdev or .link file (systemd.network(5), systemd.netdev(5), systemd.link(5)).
func (l *link) readNetworkd(ext string, list []setting) {
	ways, ends, dhcp := map[int]*route{}, map[int]bool{}, "" // ends: packets are not delivered
	for _, s := range list {
		switch s.section + " " + s.key + " " + ext {
		case "NetDev Name .netdev":
			l.virtual = s.value
		case "NetDev Kind .netdev":
			l.kind = s.value
		case "Link Name .link":
			l.rename = s.value
		case "Match Name .network":
			l.name = s.value
		case "Match OriginalName .link":
			if l.name == "" {
				l.name = s.value
			}
		case "Match PermanentMACAddress .network", "Match MACAddress .network",
			"Match PermanentMACAddress .link", "Match MACAddress .link":
			l.mac = strings.ToLower(s.value)
		case "Match Driver .network", "Match Path .network", "Match Property .network", "Match Type .network":
			l.other = true
		case "Network Bridge .network", "Network Bond .network":
			l.port = true
		case "Link RequiredForOnline .network":
			l.optional = l.optional || s.value == "no"
		case "Link ActivationPolicy .network":
			l.off = s.value == "manual" || s.value == "always-down" || s.value == "down"
		case "Link Unmanaged .network":
			l.off = s.value == "yes"
		case "Network DHCP .network":
			dhcp = s.value
		case "Network Address .network", "Address Address .network":
			if prefix, err := netip.ParsePrefix(s.value); err == nil {
				l.addresses = append(l.addresses, prefix)
			}
		case "Network Gateway .network":
			if via, err := netip.ParseAddr(s.value); err == nil {
				l.routes = append(l.routes, route{to: everywhere(via), via: via})
			}
		case "Route Gateway .network", "Route Destination .network", "Route GatewayOnLink .network":
			if ways[s.group] == nil {
				ways[s.group] = &route{}
			}
			ways[s.group].set(s)
		case "Route Type .network":
			ends[s.group] = s.value != "unicast"
		}
	}
	if ext == ".network" {
		l.dhcp = [2]bool{dhcp == "ipv4" || dhcp == "yes", dhcp == "ipv6" || dhcp == "yes"}
	}
	for group, way := range ways {
		switch {
		case way.via.IsValid():
			if !way.to.IsValid() {
				way.to = everywhere(way.via)
			}
			l.routes = append(l.routes, *way)
		case way.to.IsValid() && !ends[group]:
			l.direct = append(l.direct, way.to)
		}
	}
}

func (w *route) set(s setting) {
	switch s.key {
	case "Gateway":
		w.via, _ = netip.ParseAddr(s.value)
	case "Destination":
		w.to = destination(s.value)
	default:
		w.onLink = s.value == "true" || s.value == "yes"
	}
}

// destination reads a network, or one address; it is not valid if it is neither.
func destination(text string) netip.Prefix {
	if prefix, err := netip.ParsePrefix(text); err == nil {
		return prefix
	}
	if addr, err := netip.ParseAddr(text); err == nil {
		return netip.PrefixFrom(addr, addr.BitLen())
	}
	return netip.Prefix{}
}

// everywhere is the destination of a default route through a gateway.
func everywhere(via netip.Addr) netip.Prefix {
	if via.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// readKeyfile reads a profile of NetworkManager (nm-settings-keyfile(5)).
func (l *link) readKeyfile(list []setting) {
	for _, s := range list {
		family := 0
		if s.section == "ipv6" {
			family = 1
		}
		switch s.section + " " + s.key {
		case "connection interface-name":
			l.name = s.value
		case "connection type":
			if !slices.Contains([]string{"ethernet", "wifi", "gsm", "infiniband"}, s.value) {
				l.kind = s.value
			}
		case "connection slave-type", "connection port-type":
			l.port = true
		case "ethernet mac-address", "802-3-ethernet mac-address":
			l.mac = strings.ToLower(s.value)
		case "match interface-name":
			l.name = strings.TrimSuffix(s.value, ";")
		case "ipv4 method", "ipv6 method":
			l.dhcp[family] = s.value == "auto" && family == 0 || s.value == "dhcp"
		case "ipv4 gateway", "ipv6 gateway":
			if via, err := netip.ParseAddr(s.value); err == nil {
				l.routes = append(l.routes, route{to: everywhere(via), via: via})
			}
		}
		if s.section != "ipv4" && s.section != "ipv6" {
			continue
		}
		parts := strings.Split(s.value, ",")
		switch {
		case strings.HasPrefix(s.key, "address") && strings.Trim(s.key[7:], "0123456789") == "":
			if prefix, err := netip.ParsePrefix(parts[0]); err == nil {
				l.addresses = append(l.addresses, prefix)
			}
		case strings.HasPrefix(s.key, "route") && strings.Trim(s.key[5:], "0123456789") == "":
			to := destination(parts[0])
			if via, err := netip.ParseAddr(append(parts, "")[1]); to.IsValid() && err == nil {
				l.routes = append(l.routes, route{to: to, via: via})
			} else if to.IsValid() {
				l.direct = append(l.direct, to)
			}
		}
	}
	if l.kind != "" {
		l.virtual = l.name
	}
}

// is reports whether an interface of the guest is the one that is meant.
func (l *link) is(have facts.Link) bool {
	if have.Loopback {
		return l.name == "lo"
	}
	if l.mac != "" && have.MAC != l.mac {
		return false
	}
	if l.name != "" && (l.rename == "" || l.mac == "") {
		named := false
		for pattern := range strings.FieldsSeq(l.name) {
			ok, err := path.Match(pattern, have.Name)
			named = named || ok && err == nil
		}
		return named
	}
	return l.mac != "" && (have.Kind == "physical" || have.Kind == "veth")
}

// outside returns the first gateway that no network of the interface reaches; where addresses are leased nobody knows that
// before. What a VRF reaches it does by its interfaces.
func (l *link) outside() (netip.Addr, bool) {
	if l.kind == "vrf" {
		return netip.Addr{}, false
	}
	for _, w := range l.routes {
		family := 0
		if w.via.Is6() {
			family = 1
		}
		if w.onLink || w.via.IsLinkLocalUnicast() || l.dhcp[family] || l.port {
			continue
		}
		reached := func(p netip.Prefix) bool { return p.Contains(w.via) }
		if !slices.ContainsFunc(l.addresses, reached) && !slices.ContainsFunc(l.direct, reached) && l.hasFamily(family) {
			return w.via, true
		}
	}
	return netip.Addr{}, false
}

// hasFamily reports whether the interface has a fixed address of a family. IPv6 is configured by routers as well.
func (l *link) hasFamily(family int) bool {
	return family == 0 || slices.ContainsFunc(l.addresses, func(p netip.Prefix) bool { return p.Addr().Is6() })
}

// sensible returns an error about what the generator takes and no network can do: a gateway out of reach, an interface that is
// not there. Only what the file says is looked at: d, of the set.
func (r *Room) sensible(d *document, set []*document, made map[string]*generated) error {
	if err := d.checkNames(); err != nil {
		return fault.On(d.path, err)
	}
	links := linksOf(made)
	var there []facts.Link
	if r.guest.Live && r.system.links != nil {
		var err error
		if there, err = r.system.links(); err != nil {
			return err
		}
	}
	for _, named := range d.interfaces() {
		kind, name := named[0], named[1]
		l := links[name]
		if l == nil {
			continue
		}
		if via, outside := l.outside(); outside {
			file, key, line := place(d, set, name, via)
			return &fault.Error{
				Object: file, Err: fault.Invalid("line %d: %s is %v, which is in no network of %s", line, key, via, name),
				Hint: "on-link: true is for a gateway that the interface reaches all the same",
			}
		}
		if there == nil || kind != "ethernets" || l.optional || l.other || slices.ContainsFunc(there, l.is) {
			continue
		}
		what := "there is no interface " + name
		if l.mac != "" {
			what = "there is no interface with the hardware address " + l.mac
		}
		return &fault.Error{
			Object: d.path, Err: fault.Invalid("%s.%s: %s", kind, name, what),
			Hint: "optional: true is for one that comes later",
		}
	}
	return nil
}

// place returns where an address of an interface stands: in the file itself, or in another one.
func place(d *document, set []*document, name string, addr netip.Addr) (file, key string, line int) {
	for _, one := range append([]*document{d}, set...) {
		if key, line := one.find(name, addr); line > 0 {
			return one.path, key, line
		}
	}
	return d.path, name, 0
}

// readInterfaces reads a file that was made here.
func (l *link) readInterfaces(text string) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		switch {
		case len(f) < 2:
		case f[0] == "allow-hotplug" || f[0] == allowOptional:
			l.optional = true
		case f[0] == "iface":
			l.name = f[1]
			if len(f) > 3 && f[3] == "dhcp" {
				l.dhcp[strings.Count(f[2], "6")] = true
			}
		case f[0] == "address":
			if prefix, err := netip.ParsePrefix(f[1]); err == nil {
				l.addresses = append(l.addresses, prefix)
			}
		case f[0] == "pre-up" && len(f) > 11 && f[1] == "test" && f[7] == "add":
			l.virtual, l.kind = l.name, f[11]
			if f[8] == "link" && len(f) > 13 {
				l.below, l.kind = f[9], f[13]
			}
		case f[0] == "pre-up" && len(f) > 4 && f[1] == "test":
			master := path.Base(f[4]) // in the file of the bridge or bond itself it is the port
			if at := slices.Index(f, "master"); at > 0 && at+1 < len(f) && strings.TrimSuffix(f[at+1], ";") == master {
				l.port, l.master = true, master
			}
		case f[0] == "up" && len(f) > 7 && f[4] == "replace" && !slices.Contains(f, "table"):
			if via, err := netip.ParseAddr(f[7]); err == nil {
				l.routes = append(l.routes, route{to: destination(f[5]), via: via, onLink: f[len(f)-1] == "onlink"})
			}
		}
	}
}

// ofNetplanFile is the name in the configuration that a file was made for here; empty: it was not.
func ofNetplanFile(file string, g *generated) string {
	if !strings.HasPrefix(file, ownInterfaces) {
		return ""
	}
	first, _, _ := strings.Cut(string(g.content), "\n")
	return strings.TrimPrefix(first, "#netplan ")
}
