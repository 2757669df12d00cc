package netplan

import (
	"fmt"
	"slices"
	"strings"
)

// linkFile is the .link file (systemd.link(5)), by which udev names the interface.
func (d *device) linkFile() string {
	if d.setName == "" {
		return ""
	}
	return "[Match]\nPermanentMACAddress=" + d.mac + "\n\n[Link]\nName=" + d.setName + "\n"
}

// netdev is the .netdev file of a virtual interface.
func (d *device) netdev() string {
	kind := map[string]string{"vlans": "vlan", "bridges": "bridge", "bonds": "bond"}[d.kind]
	if kind == "" {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "[NetDev]\nName=%s\nKind=%s\n", d.id, kind)
	if d.setMAC != "" {
		fmt.Fprintf(&b, "MACAddress=%s\n", d.setMAC)
	}
	if d.kind == "vlans" {
		fmt.Fprintf(&b, "\n[VLAN]\nId=%d\n", d.vlan)
	}
	section := ""
	for _, name := range sortedKeys(d.parameters) {
		p := parameters[d.kind][name]
		if p[1] == "" {
			continue
		}
		if section != p[0] {
			section = p[0]
			fmt.Fprintf(&b, "\n[%s]\n", section)
		}
		value := d.parameters[name]
		if slices.Contains(inMilliseconds, name) && strings.Trim(value, "0123456789") == "" {
			value += "ms"
		}
		if name == "arp-ip-targets" {
			value = strings.ReplaceAll(value, ",", " ")
		}
		fmt.Fprintf(&b, "%s=%s\n", p[1], value)
	}
	return b.String()
}

// network is the .network file.
func (d *device) network() string {
	var b strings.Builder
	b.WriteString("[Match]\n")
	if d.mac != "" {
		fmt.Fprintf(&b, "PermanentMACAddress=%s\n", d.mac)
	}
	if name := d.called(); name != "" {
		fmt.Fprintf(&b, "Name=%s\n", name)
	}
	if d.mtu > 0 || d.optional || d.setMAC != "" && d.kind == "ethernets" {
		b.WriteString("\n[Link]\n")
		if d.mtu > 0 {
			fmt.Fprintf(&b, "MTUBytes=%d\n", d.mtu)
		}
		if d.setMAC != "" && d.kind == "ethernets" {
			fmt.Fprintf(&b, "MACAddress=%s\n", d.setMAC)
		}
		if d.optional {
			b.WriteString("RequiredForOnline=no\n")
		}
	}
	b.WriteString("\n[Network]\n")
	if d.master != nil {
		kind := map[string]string{"bridges": "Bridge", "bonds": "Bond"}[d.master.kind]
		fmt.Fprintf(&b, "LinkLocalAddressing=no\n%s=%s\n", kind, d.master.id)
		if d.master.parameters["primary"] == d.id {
			b.WriteString("PrimarySlave=true\n")
		}
	} else {
		if dhcp := map[[2]bool]string{{true, false}: "ipv4", {false, true}: "ipv6", {true, true}: "yes"}[d.dhcp]; dhcp != "" {
			fmt.Fprintf(&b, "DHCP=%s\n", dhcp)
		}
		b.WriteString("LinkLocalAddressing=ipv6\n")
		if d.acceptRA != nil {
			fmt.Fprintf(&b, "IPv6AcceptRA=%t\n", *d.acceptRA)
		}
	}
	for _, address := range d.addresses {
		fmt.Fprintf(&b, "Address=%v\n", address)
	}
	for _, server := range d.nameservers {
		fmt.Fprintf(&b, "DNS=%v\n", server)
	}
	if len(d.search) > 0 {
		fmt.Fprintf(&b, "Domains=%s\n", strings.Join(d.search, " "))
	}
	for _, vlan := range d.vlans {
		fmt.Fprintf(&b, "VLAN=%s\n", vlan)
	}
	if d.kind == "bridges" || d.kind == "bonds" || d.kind == "vlans" {
		b.WriteString("ConfigureWithoutCarrier=yes\n")
	}
	if cost, rank := d.asPort(); cost != "" || rank != "" {
		b.WriteString("\n[Bridge]\n")
		if cost != "" {
			fmt.Fprintf(&b, "Cost=%s\n", cost)
		}
		if rank != "" {
			fmt.Fprintf(&b, "Priority=%s\n", rank)
		}
	}
	for _, w := range d.routes {
		fmt.Fprintf(&b, "\n[Route]\nDestination=%v\nGateway=%v\n", w.to, w.via)
		if w.metric >= 0 {
			fmt.Fprintf(&b, "Metric=%d\n", w.metric)
		}
		if w.table > 0 {
			fmt.Fprintf(&b, "Table=%d\n", w.table)
		}
		if w.onLink {
			b.WriteString("GatewayOnLink=true\n")
		}
	}
	if d.dhcp != [2]bool{} {
		b.WriteString("\n[DHCP]\nRouteMetric=100\nUseMTU=true\n") // as netplan has it
	}
	return b.String()
}
