package netplan

import (
	"fmt"
	"net/netip"
	"strings"
)

// keyfile is the profile of NetworkManager.
func (d *device) keyfile(t *translation) string {
	kind := map[string]string{"ethernets": "ethernet", "vlans": "vlan", "bridges": "bridge", "bonds": "bond"}[d.kind]
	var b strings.Builder
	fmt.Fprintf(&b, "[connection]\nid=quantix-%s\ntype=%s\nautoconnect-priority=100\n", d.id, kind)
	if name := d.called(); name != "" && !strings.ContainsAny(name, "*?[") {
		fmt.Fprintf(&b, "interface-name=%s\n", name)
	}
	if d.master != nil {
		kind := map[string]string{"bridges": "bridge", "bonds": "bond"}[d.master.kind]
		fmt.Fprintf(&b, "slave-type=%s\nmaster=%s\n", kind, d.master.id)
	}
	if cost, rank := d.asPort(); cost != "" || rank != "" {
		b.WriteString("\n[bridge-port]\n")
		if cost != "" {
			fmt.Fprintf(&b, "path-cost=%s\n", cost)
		}
		if rank != "" {
			fmt.Fprintf(&b, "priority=%s\n", rank)
		}
	}
	if name := d.called(); strings.ContainsAny(name, "*?[") {
		fmt.Fprintf(&b, "\n[match]\ninterface-name=%s;\n", name)
	}
	if d.mtu > 0 || d.mac != "" || d.setMAC != "" {
		b.WriteString("\n[ethernet]\n")
		if d.mac != "" {
			fmt.Fprintf(&b, "mac-address=%s\n", d.mac)
		}
		if d.setMAC != "" {
			fmt.Fprintf(&b, "cloned-mac-address=%s\n", d.setMAC)
		}
		if d.mtu > 0 {
			fmt.Fprintf(&b, "mtu=%d\n", d.mtu)
		}
	}
	switch d.kind {
	case "vlans":
		below := t.devices[d.link]
		fmt.Fprintf(&b, "\n[vlan]\nid=%d\nparent=%s\n", d.vlan, below.called())
	case "bridges":
		if len(d.parameters) > 0 {
			b.WriteString("\n[bridge]\n")
		}
		for _, name := range sortedKeys(d.parameters) {
			fmt.Fprintf(&b, "%s=%s\n", parameters[d.kind][name][2], d.parameters[name])
		}
	case "bonds":
		b.WriteString("\n[bond]\n")
		for _, name := range sortedKeys(d.parameters) {
			value := d.parameters[name]
			if name == "primary" {
				value = t.devices[value].called()
			}
			fmt.Fprintf(&b, "%s=%s\n", parameters[d.kind][name][2], value)
		}
	}
	if d.master == nil {
		d.family(&b, 0)
		d.family(&b, 1)
	}
	return b.String()
}

// family writes the section of a profile for IPv4 or IPv6.
func (d *device) family(b *strings.Builder, six int) {
	var addresses []netip.Prefix
	for _, address := range d.addresses {
		if family(address.Addr()) == six {
			addresses = append(addresses, address)
		}
	}
	method := "disabled"
	switch {
	case d.dhcp[six]:
		method = "auto"
	case len(addresses) > 0:
		method = "manual"
	case six == 1 && (d.acceptRA == nil || *d.acceptRA):
		method = "auto" // of the routers
	}
	fmt.Fprintf(b, "\n[%s]\nmethod=%s\n", [2]string{"ipv4", "ipv6"}[six], method)
	for i, address := range addresses {
		fmt.Fprintf(b, "address%d=%v\n", i+1, address)
	}
	number := 0
	for _, w := range d.routes {
		if family(w.via) != six {
			continue
		}
		number++
		fmt.Fprintf(b, "route%d=%v,%v", number, w.to, w.via)
		if w.metric >= 0 {
			fmt.Fprintf(b, ",%d", w.metric)
		}
		var options []string
		if w.onLink {
			options = append(options, "onlink=true")
		}
		if w.table > 0 {
			options = append(options, fmt.Sprintf("table=%d", w.table))
		}
		if len(options) > 0 {
			fmt.Fprintf(b, "\nroute%d_options=%s", number, strings.Join(options, ","))
		}
		b.WriteString("\n")
	}
	var servers []string
	for _, server := range d.nameservers {
		if family(server) == six {
			servers = append(servers, server.String()+";")
		}
	}
	if len(servers) > 0 {
		fmt.Fprintf(b, "dns=%s\n", strings.Join(servers, ""))
	}
	if len(d.search) > 0 && method != "disabled" {
		fmt.Fprintf(b, "dns-search=%s;\n", strings.Join(d.search, ";"))
	}
}
