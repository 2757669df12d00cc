package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// rowsText is a table in lines of words.
func rowsText(rows [][]string) (lines []string) {
	for _, row := range rows {
		lines = append(lines, strings.Join(row, " | "))
	}
	return lines
}

func TestNetworkRows(t *testing.T) {
	interfaces := interfaceRows([]*pb.NetInterface{
		{Name: "lo", Kind: "loopback", Up: true, Enabled: true, Mtu: 65536, Addresses: []string{"127.0.0.1/8", "::1/128"}},
		{Name: "lan0", Kind: "physical", Mac: "52:54:00:12:34:56", Mtu: 1500, Enabled: true, Addresses: []string{"2001:db8::7/64"}, Tentative: []string{"2001:db8::7/64"}},
		{Name: "port0", Kind: "veth", Master: "br0", Mtu: 1500},
	})
	routes := routeRows([]*pb.NetRoute{
		{Destination: "0.0.0.0/0", Gateway: "192.0.2.1", Interface: "lan0", Source: "192.0.2.7", Metric: 100, Table: 254, Protocol: "dhcp", Type: "unicast"},
		{Destination: "::/0", Gateway: "fe80::1", Interface: "lan0", Table: 254, Protocol: "ra", Type: "unicast"},
		{Destination: "10.0.0.0/8", Table: 77, Protocol: "static", Type: "blackhole"},
	})
	names := dnsRows(&pb.NetDns{
		Manager: "systemd-resolved", Servers: []string{"192.0.2.1", "192.0.2.2"},
		Links: []*pb.NetDnsLink{{Interface: "vpn0", Servers: []string{"192.0.2.2"}, Search: []string{"~corp.example"}}},
	})
	got := slices.Concat(rowsText(interfaces), rowsText(routes), rowsText(names))
	want := []string{
		"INTERFACE | STATE | KIND | MAC | MTU | ADDRESSES",
		"lo | up | loopback | - | 65536 | 127.0.0.1/8 ::1/128",
		"lan0 | no carrier | physical | 52:54:00:12:34:56 | 1500 | 2001:db8::7/64?",
		"port0 | off | veth of br0 | - | 1500 | -",
		"ROUTE | GATEWAY | INTERFACE | SOURCE | METRIC | PROTOCOL | TABLE",
		"default | 192.0.2.1 | lan0 | 192.0.2.7 | 100 | dhcp | -",
		"default (IPv6) | fe80::1 | lan0 | - | 0 | ra | -",
		"10.0.0.0/8 | blackhole | - | - | 0 | static | 77",
		"NAMES | SERVERS | SEARCH | MANAGER",
		"all | 192.0.2.1 192.0.2.2 | - | systemd-resolved",
		"vpn0 | 192.0.2.2 | ~corp.example | ",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if dnsRows(nil) != nil || routeRows(nil) != nil {
		t.Error("nothing has headings")
	}
}
