package netplan

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// configurations are what is translated, as files that are read one after the other.
var configurations = map[string][]string{
	"an address": {fixed},
	"DHCP":       {"network:\n  version: 2\n  ethernets:\n    eth0: {dhcp4: true, dhcp6: yes, optional: true}\n    eth1: {dhcp4: no, dhcp6: true, accept-ra: false}\n"},
	"both": {"network:\n  ethernets:\n    eth0:\n      dhcp4: true\n      mtu: 1400\n      addresses: ['2001:db8::7/64', 192.0.2.7/24]\n      gateway6: 2001:db8::1\n" +
		"      nameservers: {addresses: [192.0.2.1, '2001:db8::53'], search: [a.example, b.example]}\n"},
	"routes": {"network:\n  ethernets:\n    eth0:\n      addresses: [192.0.2.7/24]\n      routes:\n        - {to: 198.51.100.0/24, via: 192.0.2.9, metric: 7}\n" +
		"        - {to: 203.0.113.5, via: 10.0.0.1, on-link: true, table: 77}\n        - {to: 0.0.0.0/0, via: 192.0.2.1}\n"},
	"a hardware address": {"network:\n  ethernets:\n    lan:\n      match: {macaddress: '52:54:00:12:34:56'}\n      set-name: lan0\n      dhcp4: true\n" +
		"    any:\n      match: {name: 'en*'}\n      dhcp4: true\n"},
	"VLANs": {"network:\n  ethernets:\n    eth0: {}\n  vlans:\n    v5: {id: 5, link: eth0, addresses: [192.0.2.7/24]}\n    v6: {id: 6, link: eth0, dhcp4: true}\n"},
	"a bridge of a bond": {"network:\n  ethernets:\n    eth0: {}\n    eth1: {}\n  bonds:\n    bond0:\n      interfaces: [eth0, eth1]\n      parameters: {mode: active-backup, mii-monitor-interval: 100}\n" +
		"  bridges:\n    br0: {interfaces: [bond0], addresses: [192.0.2.7/24], parameters: {stp: false}}\n"},
	"several files": {"network:\n  ethernets:\n    eth0: {mtu: 1400, addresses: [192.0.2.7/24]}\n", "network:\n  ethernets:\n    eth0: {mtu: 1300, addresses: [192.0.2.8/24]}\n"},
}

func set(texts []string) (list []*document) {
	for i, text := range texts {
		d, err := parse(fmt.Sprintf("/etc/netplan/%d.yaml", i), []byte(text))
		if err != nil {
			panic(err)
		}
		list = append(list, d)
	}
	return list
}

// What is made of a configuration without netplan means the same as what netplan makes of it, for both renderers.
func TestTranslationIsNetplans(t *testing.T) {
	tr := newTree(t)
	for name, texts := range configurations {
		for _, renderer := range []string{byNetworkd, byNetworkManager} {
			t.Run(name+" "+renderer, func(t *testing.T) {
				ours, err := translate(set(texts), renderer)
				if err != nil {
					t.Fatal(err)
				}
				rendered := slices.Clone(texts)
				rendered[0] = strings.Replace(rendered[0], "network:\n", "network:\n  renderer: "+renderer+"\n", 1)
				theirs, err := tr.room.generate(t.Context(), set(rendered))
				if err != nil {
					t.Fatal(err)
				}
				for file := range ours {
					if !lasting(file) || !ofNetplan().MatchString(file) {
						t.Errorf("%s is made", file)
					}
				}
				mine, others := linksOf(ours), linksOf(theirs)
				if !slices.Equal(idsOf(mine), idsOf(others)) {
					t.Fatalf("interfaces %q, netplan has %q", idsOf(mine), idsOf(others))
				}
				for id, l := range mine {
					if got, want := meaning(l), meaning(others[id]); got != want {
						t.Errorf("%s is\n%s\nnetplan has\n%s", id, got, want)
					}
				}
			})
		}
	}
}

// meaning is what of an interface is compared.
func meaning(l *link) string {
	var parts []string
	for _, a := range l.addresses {
		parts = append(parts, "address "+a.String())
	}
	for _, w := range l.routes {
		parts = append(parts, fmt.Sprintf("route %v %v", w.to, w.via))
	}
	slices.Sort(parts)
	optional := l.optional && l.renderer == byNetworkd
	return fmt.Sprintf("%s %q mac=%s rename=%s virtual=%s kind=%s port=%t optional=%t dhcp=%v %s", l.renderer, l.name, l.mac, l.rename, l.virtual, l.kind, l.port,
		optional, l.dhcp, strings.Join(parts, ", "))
}

func TestTranslatedText(t *testing.T) {
	got := map[string]string{}
	for _, renderer := range []string{byNetworkd, byNetworkManager} {
		for _, name := range []string{"both", "routes", "a bridge of a bond"} {
			files, err := translate(set(configurations[name]), renderer)
			if err != nil {
				t.Fatal(err)
			}
			for file, g := range files {
				got[name+" "+path.Base(file)] = string(g.content)
			}
		}
	}
	for name, want := range map[string]string{
		"both 05-quantix-eth0.network": "[Match]\nName=eth0\n\n[Link]\nMTUBytes=1400\n\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=ipv6\nAddress=2001:db8::7/64\nAddress=192.0.2.7/24\n" +
			"DNS=192.0.2.1\nDNS=2001:db8::53\nDomains=a.example b.example\n\n[Route]\nDestination=::/0\nGateway=2001:db8::1\n\n[DHCP]\nRouteMetric=100\nUseMTU=true\n",
		"both quantix-eth0.nmconnection": "[connection]\nid=quantix-eth0\ntype=ethernet\nautoconnect-priority=100\ninterface-name=eth0\n\n[ethernet]\nmtu=1400\n\n" +
			"[ipv4]\nmethod=auto\naddress1=192.0.2.7/24\ndns=192.0.2.1;\ndns-search=a.example;b.example;\n\n" +
			"[ipv6]\nmethod=manual\naddress1=2001:db8::7/64\nroute1=::/0,2001:db8::1\ndns=2001:db8::53;\ndns-search=a.example;b.example;\n",
		"routes quantix-eth0.nmconnection": "[connection]\nid=quantix-eth0\ntype=ethernet\nautoconnect-priority=100\ninterface-name=eth0\n\n" +
			"[ipv4]\nmethod=manual\naddress1=192.0.2.7/24\nroute1=198.51.100.0/24,192.0.2.9,7\nroute2=203.0.113.5/32,10.0.0.1\nroute2_options=onlink=true,table=77\n" +
			"route3=0.0.0.0/0,192.0.2.1\n\n[ipv6]\nmethod=auto\n",
		"a bridge of a bond quantix-bond0.nmconnection": "[connection]\nid=quantix-bond0\ntype=bond\nautoconnect-priority=100\ninterface-name=bond0\nslave-type=bridge\nmaster=br0\n\n" +
			"[bond]\nmiimon=100\nmode=active-backup\n",
		"a bridge of a bond 05-quantix-bond0.netdev": "[NetDev]\nName=bond0\nKind=bond\n\n[Bond]\nMIIMonitorSec=100ms\nMode=active-backup\n",
		"a bridge of a bond 05-quantix-eth1.network": "[Match]\nName=eth1\n\n[Network]\nLinkLocalAddressing=no\nBond=bond0\n",
	} {
		if got[name] != want {
			t.Errorf("%s is\n%s\nwant\n%s", name, got[name], want)
		}
	}
}

// What cannot be said without netplan is refused by its key.
func TestNotTranslated(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"network:\n  wifis: {}\n", "line 2: wifis"},
		{"network:\n  renderer: NetworkManager\n", "line 2: renderer is NetworkManager, and networkd manages"},
		{"network:\n  ethernets:\n    eth0: {renderer: NetworkManager}\n", "renderer is NetworkManager"},
		{"network:\n  ethernets:\n    eth0: {wakeonlan: true}\n", "line 3: ethernets.eth0.wakeonlan"},
		{"network:\n  ethernets:\n    eth0: {dhpc4: true}\n", "ethernets.eth0.dhpc4"},
		{"network:\n  ethernets:\n    eth0: {dhcp4: maybe}\n", `ethernets.eth0.dhcp4 is "maybe"`},
		{"network:\n  ethernets:\n    eth0: {mtu: 1}\n", "ethernets.eth0.mtu"},
		{"network:\n  ethernets:\n    eth0: {addresses: [{192.0.2.7/24: {label: x}}]}\n", "no address with a prefix length"},
		{"network:\n  ethernets:\n    eth0: {addresses: 192.0.2.7/24}\n", "a list was expected"},
		{"network:\n  ethernets:\n    eth0: {match: {driver: x}, dhcp4: true}\n", "ethernets.eth0.match.driver"},
		{"network:\n  ethernets:\n    eth0: {match: {name: \"a\\nb\"}, dhcp4: true}\n", "match.name"},
		{"network:\n  ethernets:\n    eth0: {set-name: x}\n", "set-name needs match.macaddress"},
		{"network:\n  ethernets:\n    eth0: {routes: [{to: default, via: 192.0.2.1, type: blackhole}]}\n", "routes.type"},
		{"network:\n  ethernets:\n    eth0: {routes: [{to: default}]}\n", "has no via"},
		{"network:\n  ethernets:\n    eth0: {routes: [{to: '::/0', via: 192.0.2.1}]}\n", "not of one family"},
		{"network:\n  ethernets:\n    eth0: {nameservers: {servers: [192.0.2.1]}}\n", "nameservers.servers"},
		{"network:\n  ethernets:\n    eth0: {nameservers: {search: [\"a\\nb\"]}}\n", "nameservers.search"},
		{"network:\n  vlans:\n    v5: {id: 5, link: eth9}\n", "interface eth9 is not defined"},
		{"network:\n  vlans:\n    v5: {id: 5000}\n", "number of a VLAN"},
		{"network:\n  vlans:\n    v5: {id: 5}\n", "link is missing"},
		{"network:\n  ethernets:\n    eth0: {}\n  bridges:\n    br0: {interfaces: [eth0]}\n    br1: {interfaces: [eth0]}\n", "belongs to br0 already"},
		{"network:\n  ethernets:\n    eth0: {}\n  bonds:\n    eth0: {}\n", "eth0 is one of bonds, and of ethernets elsewhere"},
		{"network:\n  bonds:\n    b0: {parameters: {mode: \"a\\nb\"}}\n", "parameters.mode"},
		{"network:\n  bonds:\n    b0: {parameters: {gratuitous-arp: 1}}\n", "line 3: bonds.b0.parameters.gratuitous-arp"},
		{"network:\n  bonds:\n    b0: {parameters: {arp-interval: [1]}}\n", "parameters.arp-interval"},
		{"network:\n  bonds:\n    b0: {parameters: {arp-ip-targets: ['2001:db8::1']}}\n", "no address of IPv4"},
		{"network:\n  bonds:\n    b0: {parameters: {arp-ip-targets: 192.0.2.1}}\n", "parameters.arp-ip-targets: a list was expected"},
		{"network:\n  bonds:\n    b0: {parameters: {arp-ip-targets: [" + strings.Repeat("192.0.2.1, ", 16) + "192.0.2.1]}}\n", "at most 16"},
		{"network:\n  bonds:\n    b0: {parameters: {path-cost: {b0: 1}}}\n", "bonds.b0.parameters.path-cost"},
		{"network:\n  bridges:\n    b0: {parameters: {path-cost: 1}}\n", "parameters.path-cost: names of interfaces"},
		{"network:\n  ethernets: {eth0: {}}\n  bridges:\n    b0: {interfaces: [eth0], parameters: {path-cost: {eth0: 70000}}}\n", "path-cost.eth0 is \"70000\""},
		{"network:\n  ethernets: {eth0: {}}\n  bridges:\n    b0: {interfaces: [eth0], parameters: {port-priority: {eth0: 64}}}\n", "from 0 to 63"},
		{"network:\n  ethernets: {eth0: {}}\n  bridges:\n    b0: {parameters: {path-cost: {eth0: 7}}}\n", "eth0 is none of its interfaces"},
		{"network:\n  bridges:\n    'a b': {}\n", "no name of an interface"},
		{"network:\n  version: 3\n", "version is 3"},
	} {
		if _, err := translate(set([]string{c.text}), byNetworkd); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q gives %v, want %q", c.text, err, c.want)
		}
	}
}

func TestBrokenFilesAreNotTranslated(t *testing.T) {
	for text, want := range map[string]string{"network: [": "did not find", "network:\n\tversion: 2\n": "tab", "other: 1\n": "unknown key other"} {
		d, err := parse("/etc/netplan/x.yaml", []byte(text))
		if err != nil {
			d = &document{path: "/etc/netplan/x.yaml", text: []byte(text)} // as documents has it
		}
		if _, err := translate([]*document{d}, byNetworkd); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q gives %v", text, err)
		}
	}
	if files, err := translate(set([]string{"# nothing\n"}), byNetworkd); err != nil || len(files) > 0 {
		t.Error(files, err)
	}
}

// Where the generated files last, the transaction keeps what was there.
func TestLastingFilesAreKept(t *testing.T) {
	dir := t.TempDir()
	files, err := fsys.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { files.Close() })
	tr := &tree{TB: t, dir: dir, room: New(&guest.Guest{Files: files, Dir: dir}, Config{})}
	tr.call = &builtins.Call{Tx: keeper{tree: tr}, Changed: func(c *pb.Change) { tr.changes = append(tr.changes, c) }}
	want, err := translate(set([]string{fixed}), byNetworkManager)
	if err != nil {
		t.Fatal(err)
	}
	for file, g := range want {
		for range 2 {
			if err := tr.room.keep(t.Context(), tr.call, file, g); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Contains(tr.kept, file) {
			t.Errorf("the transaction kept %q", tr.kept)
		}
	}
	have, err := tr.room.current(nil)
	if err != nil || len(differing(have, want)) > 0 || have[ownProfiles+"eth0.nmconnection"].mode != 0o600 {
		t.Error(differing(have, want), err)
	}
	for file := range want {
		for range 2 {
			if err := tr.room.keep(t.Context(), tr.call, file, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	if have, err = tr.room.current(nil); err != nil || len(have) > 0 {
		t.Error(sorted(have), err)
	}
}
