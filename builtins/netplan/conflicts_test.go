package netplan

import "testing"

// TestDefaultRoutesOfVRFs: what is a VRF, or in one, has routes of the VRF's table, which are in nobody else's way.
func TestDefaultRoutesOfVRFs(t *testing.T) {
	const ethernets = `network:
  ethernets:
    eth0: {addresses: [192.0.2.10/26], routes: [{to: default, via: 192.0.2.1}]}
    eth1: {addresses: [192.0.2.70/26], routes: [{to: default, via: 192.0.2.65}]}
    eth2: {addresses: [198.51.100.70/26], gateway4: 198.51.100.65}
  vrfs:
    red: {table: 1001, interfaces: [eth1]}
    blue: {table: 1002, interfaces: [eth2], routes: [{to: default, via: 203.0.113.1, metric: 5}]}
    green: {table: 1003, interfaces: [], routes: [{to: default, via: 203.0.113.1, metric: 5}]}
`
	for more, want := range map[string]int{
		"": 0,
		"    other: {table: 1003, interfaces: [], routes: [{to: default, via: 203.0.113.9, metric: 5, table: 1003}]}\n": 1,
	} {
		d, err := parse("/etc/netplan/a.yaml", []byte(ethernets+more))
		if err != nil {
			t.Fatal(err)
		}
		if found := d.ownConflicts(); len(found) != want {
			t.Errorf("%q: %v", more, found)
		}
	}
}
