package netplan

import (
	"net/netip"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/text/lazyregexp"
)

// parameters are those that are translated, with what they are to systemd-networkd (systemd.netdev(5)); the names of
// NetworkManager are the kernel's (bonding.rst).
var parameters = map[string]map[string][3]string{
	"bonds": {
		"mode": {"Bond", "Mode", "mode"}, "mii-monitor-interval": {"Bond", "MIIMonitorSec", "miimon"},
		"lacp-rate": {"Bond", "LACPTransmitRate", "lacp_rate"}, "transmit-hash-policy": {"Bond", "TransmitHashPolicy",
			"xmit_hash_policy"},
		"up-delay": {"Bond", "UpDelaySec", "updelay"}, "down-delay": {"Bond", "DownDelaySec", "downdelay"},
		"min-links": {"Bond", "MinLinks", "min_links"}, "ad-select": {"Bond", "AdSelect", "ad_select"},
		"fail-over-mac-policy":    {"Bond", "FailOverMACPolicy", "fail_over_mac"},
		"primary-reselect-policy": {"Bond", "PrimaryReselectPolicy", "primary_reselect"},
		"arp-interval":            {"Bond", "ARPIntervalSec", "arp_interval"},
		"arp-ip-targets":          {"Bond", "ARPIPTargets", "arp_ip_target"},
		"arp-validate":            {"Bond", "ARPValidate", "arp_validate"},
		"arp-all-targets":         {"Bond", "ARPAllTargets", "arp_all_targets"},
		"primary":                 {"", "", "primary"}, // to systemd-networkd a matter of the port
	},
	"bridges": {
		"stp": {"Bridge", "STP", "stp"}, "priority": {"Bridge", "Priority", "priority"},
		"forward-delay": {"Bridge", "ForwardDelaySec", "forward-delay"}, "hello-time": {"Bridge", "HelloTimeSec", "hello-time"},
		"max-age": {"Bridge", "MaxAgeSec", "max-age"}, "ageing-time": {"Bridge", "AgeingTimeSec", "ageing-time"},
	},
}

// inMilliseconds are those that netplan counts in them, and systemd-networkd in seconds.
var inMilliseconds = []string{"mii-monitor-interval", "up-delay", "down-delay", "arp-interval"}

// parameterValue is what may stand as one: a word or a number.
var parameterValue = lazyregexp.New(`^[A-Za-z0-9_.+-]{1,64}$`)

func (d *device) parameter(v *yaml.Node, path string) error {
	if d.kind == "bridges" && d.parameters["stp"] == "" {
		d.parameters["stp"] = "true" // as netplan has it, if there are parameters
	}
	for key, value := range pairs(v) {
		where := join(path, key.Value)
		var err error
		switch {
		case key.Value == "path-cost" && d.kind == "bridges":
			err = ofPorts(value, where, d.portCost, 1, 65535)
		case key.Value == "port-priority" && d.kind == "bridges":
			err = ofPorts(value, where, d.portRank, 0, 63)
		case key.Value == "arp-ip-targets" && d.kind == "bonds":
			err = d.targets(value, where)
		default:
			err = d.single(key, value, where)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// single reads a parameter that is one value.
func (d *device) single(key, value *yaml.Node, where string) error {
	if _, known := parameters[d.kind][key.Value]; !known || value.Kind != yaml.ScalarNode {
		return untranslated(key, where)
	}
	text := value.Value
	if key.Value == "stp" {
		text = strconv.FormatBool(isTrue(value))
	}
	if !parameterValue().MatchString(text) {
		return fault.Invalid("line %d: %s is %q", value.Line, where, value.Value)
	}
	d.parameters[key.Value] = text
	return nil
}

// ofPorts reads a number for each of some ports into a table.
func ofPorts(list *yaml.Node, where string, to map[string]string, least, most int) error {
	if list.Kind != yaml.MappingNode {
		return fault.Invalid("line %d: %s: names of interfaces were expected, each with a number", list.Line, where)
	}
	for port, value := range pairs(list) {
		number, err := strconv.Atoi(value.Value)
		if err != nil || value.Kind != yaml.ScalarNode || number < least || number > most {
			return fault.Invalid("line %d: %s.%s is %q, and no number from %d to %d", value.Line, where, port.Value, value.Value, least, most)
		}
		to[port.Value] = strconv.Itoa(number)
	}
	return nil
}

const maxTargets = 16 // BOND_MAX_ARP_TARGETS of the kernel

// targets reads the addresses that a bond asks for, as one text with commas.
func (d *device) targets(list *yaml.Node, where string) error {
	var targets []string
	err := each(list, where, func(n *yaml.Node) error {
		addr, err := netip.ParseAddr(n.Value)
		if err != nil || !addr.Is4() {
			return fault.Invalid("line %d: %s: %q is no address of IPv4", n.Line, where, n.Value)
		}
		targets = append(targets, addr.String())
		return nil
	})
	if err == nil && len(targets) > maxTargets {
		err = fault.Invalid("line %d: %s has %d addresses, at most %d are taken", list.Line, where, len(targets), maxTargets)
	}
	if err == nil && len(targets) > 0 {
		d.parameters["arp-ip-targets"] = strings.Join(targets, ",")
	}
	return err
}
