package netplan

import "testing"

// A gateway is reached by a network of an address, or by a route without a gateway; that of a VRF by one of its interfaces.
func TestGatewaysOutOfReach(t *testing.T) {
	const networkd, profile = "/run/systemd/network/10-netplan-eth0.network", "/run/NetworkManager/system-connections/netplan-eth0.nmconnection"
	const address = "[Network]\nAddress=203.0.113.5/32\n[Route]\nDestination=0.0.0.0/0\nGateway=172.31.1.1\n"
	const keyfile = "[ipv4]\nmethod=manual\naddress1=203.0.113.5/32\nroute1=0.0.0.0/0,172.31.1.1\n"
	for name, c := range map[string]struct {
		files   map[string]string
		outside bool
	}{
		"alone":         {map[string]string{networkd: address}, true},
		"on the link":   {map[string]string{networkd: address + "[Route]\nDestination=172.31.1.1/32\nScope=link\n"}, false},
		"one address":   {map[string]string{networkd: "[Route]\nDestination=172.31.1.1\nScope=link\n" + address}, false},
		"another":       {map[string]string{networkd: address + "[Route]\nDestination=172.31.1.2/32\nScope=link\n"}, true},
		"a black hole":  {map[string]string{networkd: address + "[Route]\nDestination=172.31.0.0/16\nType=blackhole\n"}, true},
		"of a VRF":      {map[string]string{networkd: address, "/run/systemd/network/10-netplan-eth0.netdev": "[NetDev]\nName=eth0\nKind=vrf\n"}, false},
		"a profile":     {map[string]string{profile: keyfile}, true},
		"its link":      {map[string]string{profile: keyfile + "route2=172.31.1.1/32\nroute2_options=scope=253\n"}, false},
		"its metric":    {map[string]string{profile: keyfile + "route2=172.31.1.0/24,,100\n"}, false},
		"its other one": {map[string]string{profile: keyfile + "route2=172.31.2.0/24\n"}, true},
	} {
		set := map[string]*generated{}
		for file, content := range c.files {
			set[file] = &generated{content: []byte(content)}
		}
		if via, outside := linksOf(set)["eth0"].outside(); outside != c.outside {
			t.Errorf("%s: %v %v", name, via, outside)
		}
	}
}
