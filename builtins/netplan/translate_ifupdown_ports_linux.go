package netplan

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// makeMaster writes what makes a bridge or a bond by ip(8), and removes it.
func (d *device) makeMaster(b io.Writer) error {
	options, err := d.options()
	if err != nil {
		return err
	}
	if d.kind == "bonds" { // the module makes a bond0 of its own when it is loaded, unless it gets an option
		io.WriteString(b, "    pre-up test -e /sys/class/net/bonding_masters || modprobe bonding max_bonds=0 || true\n")
	}
	fmt.Fprintf(b, "    pre-up test -e /sys/class/net/$IFACE || ip link add name $IFACE type %s\n", options)
	io.WriteString(b, "    post-down ip link delete dev $IFACE\n")
	return nil
}

// options are the kind of a bridge or a bond and its parameters, as ip-link(8) takes them. The primary port is none of them: it
// can be named when it is there.
func (d *device) options() (string, error) {
	words := []string{strings.TrimSuffix(d.kind, "s")}
	if mode, ok := d.parameters["mode"]; ok { // others depend on it
		words = append(words, "mode", mode)
	}
	for _, key := range sortedKeys(d.parameters) {
		value, where := d.parameters[key], d.kind+"."+d.id+".parameters."+key
		switch key {
		case "mode":
			continue
		case "primary":
			if mode := d.parameters["mode"]; !slices.Contains([]string{"active-backup", "balance-tlb", "balance-alb"}, mode) {
				return "", fault.Invalid("%s: no port of a bond of mode %q is the primary one", where, mode)
			}
			continue
		case "stp":
			words = append(words, "stp_state", map[string]string{"true": "1", "false": "0"}[value])
			continue
		}
		if key == "arp-ip-targets" || slices.Contains(wordParameters, key) {
			words = append(words, parameters[d.kind][key][2], value)
			continue
		}
		number, err := strconv.ParseUint(value, 10, 31)
		if err != nil || number > math.MaxInt32/100 {
			return "", fault.Unsupported("%s: %q is no number that ip takes", where, value)
		}
		if d.kind == "bridges" && key != "priority" {
			number *= 100 // of a second, which is how the kernel counts
		}
		words = append(words, strings.ReplaceAll(parameters[d.kind][key][2], "-", "_"), strconv.FormatUint(number, 10))
	}
	return strings.Join(words, " "), nil
}

// wordParameters are those of bonds that are no numbers.
var wordParameters = []string{
	"lacp-rate", "transmit-hash-policy", "fail-over-mac-policy", "ad-select", "primary-reselect-policy",
	"arp-validate", "arp-all-targets",
}

// takePorts writes what gives a bridge or a bond its ports, which have files of their own. Those that are not there yet come
// when they are brought up.
func (d *device) takePorts(b io.Writer, t *translation, by ifupdown) error {
	for _, id := range d.ports {
		port, err := by.nameOf(t.devices[id])
		if err != nil {
			return fault.On(t.devices[id].kind+"."+id, err)
		}
		fmt.Fprintf(b, "    pre-up ifup %s || true\n", port)
		fmt.Fprintf(b, "    pre-up test ! -e /sys/class/net/%[1]s || { %[2]s && ip link set dev %[1]s up; }\n", port,
			joining(port, t.devices[id]))
	}
	return nil
}

// joinMaster writes what makes the interface a port, when its bridge or bond is there: that takes it otherwise. A port has no
// addresses, also none of its own making.
func (d *device) joinMaster(b io.Writer, port string) {
	io.WriteString(b, "    pre-up ip address flush dev $IFACE\n")
	io.WriteString(b, "    pre-up ip link set dev $IFACE addrgenmode none || true\n")
	fmt.Fprintf(b, "    pre-up test ! -e /sys/class/net/%s || { %s; }\n", d.master.id,
		joining(port, d))
	io.WriteString(b, "    down ip link set dev $IFACE nomaster\n")
	io.WriteString(b, "    post-down ip link set dev $IFACE addrgenmode eui64 || true\n")
}

// joining is the command that makes an interface, of a name, the port that it shall be, if it is none yet. A bond takes only
// one that is down.
func joining(port string, d *device) string {
	master := d.master
	line := fmt.Sprintf("{ test -e /sys/class/net/%[2]s/lower_%[1]s || { ip link set dev %[1]s down && "+
		"ip link set dev %[1]s master %[2]s; }; }", port, master.id)
	if master.parameters["primary"] == d.id {
		line += fmt.Sprintf(" && ip link set dev %s type bond primary %s", master.id, port)
	}
	cost, rank := d.asPort()
	if cost != "" {
		line += fmt.Sprintf(" && ip link set dev %s type bridge_slave cost %s", port, cost)
	}
	if rank != "" {
		line += fmt.Sprintf(" && ip link set dev %s type bridge_slave priority %s", port, rank)
	}
	return line
}

// checkPort refuses what a port cannot have under ifupdown.
func (d *device) checkPort() error {
	for _, key := range []struct {
		name string
		said bool
	}{
		{"addresses", len(d.addresses) > 0}, {"routes", len(d.routes) > 0}, {"dhcp4", d.dhcp[0]}, {"dhcp6", d.dhcp[1]},
		{"nameservers", len(d.nameservers)+len(d.search) > 0}, {"accept-ra", d.acceptRA != nil && *d.acceptRA},
	} {
		if key.said {
			where := d.kind + "." + d.id + "." + key.name
			return fault.Unsupported("%s: it is a port of %s, and for ifupdown that has none", where, d.master.id)
		}
	}
	return nil
}

// below are the interfaces that an interface rests on.
func (t *translation) below(d *device) (list []*device) {
	if d.link != "" {
		list = append(list, t.devices[d.link])
	}
	for _, id := range d.ports {
		list = append(list, t.devices[id])
	}
	return list
}

// checkRest refuses an interface that rests on itself: ifup would call itself without an end.
func (t *translation) checkRest(d *device) error {
	seen, next := map[*device]bool{}, t.below(d)
	for len(next) > 0 {
		one := next[0]
		next = next[1:]
		if one == d {
			return fault.Invalid("%s.%s: it rests on itself", d.kind, d.id)
		}
		if !seen[one] {
			seen[one] = true
			next = append(next, t.below(one)...)
		}
	}
	return nil
}
