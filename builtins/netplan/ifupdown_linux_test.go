package netplan

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const adminInterfaces = `# The administrator's file
source-directory /run/network/interfaces.d
auto lo eth0
iface lo inet loopback

allow-hotplug eth0
iface eth0 inet static
    # the office
    address 192.0.2.9/24 \
        
    gateway 192.0.2.1
iface eth0 inet6 auto

iface eth1 inet dhcp
`

func ifupFiles(t *testing.T, by ifupdown, texts ...string) (map[string]*generated, error) {
	t.Helper()
	tr, err := readSet(set(texts), byIfupdown)
	if err != nil {
		t.Fatal(err)
	}
	return tr.interfaces(by)
}

// What a file of netplan has is set aside in the administrator's, and holds again when it is gone.
func TestInterfacesAreSetAside(t *testing.T) {
	by := ifupdown{have: map[string]*generated{interfacesFile: {content: []byte(adminInterfaces), mode: 0o600, uid: 7}}}
	const text = "network: {version: 2, ethernets: {eth0: {addresses: [192.0.2.7/24, '2001:db8::7/64'], mtu: 1400, optional: true, " +
		"routes: [{to: default, via: 192.0.2.1, metric: 5, on-link: true}]}}, vlans: {v.5: {id: 5, link: eth0, dhcp4: true}}}\n"
	files, err := ifupFiles(t, by, text)
	if err != nil {
		t.Fatal(err)
	}
	main := files[interfacesFile]
	want := strings.Replace(adminInterfaces, "iface eth0 inet static", "#quantix# iface eth0 inet static", 1)
	for _, line := range []string{"    address 192.0.2.9/24 \\\n", "        \n", "    gateway 192", "iface eth0 inet6"} {
		want = strings.Replace(want, line, setAside+line, 1)
	}
	want = strings.Replace(want, setAside+"        \n", "        \n", 1) // an empty line is no part of it
	if got := string(main.content); got != want+ownSource || main.mode != 0o600 || main.uid != 7 {
		t.Errorf("%s\nwanted:\n%s", got, want)
	}
	own := string(files[ownInterfaces+"eth0"].content)
	for _, line := range []string{
		"allow-hotplug eth0\n", "iface eth0 inet static\n    address 192.0.2.7/24\n    pre-up ip link set dev $IFACE mtu 1400\n",
		"iface eth0 inet6 static\n    address 2001:db8::7/64\n    up ip -4 route replace 0.0.0.0/0 via 192.0.2.1 dev $IFACE metric 5 onlink\n",
	} {
		if !strings.Contains(own, line) {
			t.Errorf("%q is not in:\n%s", line, own)
		}
	}
	links := linksOf(files)
	if l := links["eth0"]; l == nil || len(l.addresses) != 2 || len(l.routes) != 1 || !l.routes[0].onLink || !l.optional || l.renderer != byIfupdown {
		t.Errorf("%+v", l)
	}
	if l := links["v.5"]; l == nil || l.virtual != "v.5" || !l.dhcp[0] || files[ownInterfaces+"v_5"] == nil {
		t.Errorf("%+v", l)
	}
	again, err := ifupFiles(t, ifupdown{have: files}, text)
	if err != nil || len(differing(files, again)) > 0 {
		t.Errorf("a second time %v differ: %v", differing(files, again), err)
	}
	gone, err := ifupFiles(t, ifupdown{have: files}, "network: {version: 2}\n")
	if err != nil || len(gone) != 1 || string(gone[interfacesFile].content) != adminInterfaces {
		t.Errorf("then it is %v: %v\n%s", slices.Collect(maps.Keys(gone)), err, gone[interfacesFile].content)
	}
	if gone, err = ifupFiles(t, ifupdown{have: map[string]*generated{interfacesFile: {content: []byte(ownSource)}}}, "network: {version: 2}\n"); err != nil || len(gone) > 0 {
		t.Error(gone, err)
	}
}

func TestWhatIfupdownCannotSay(t *testing.T) {
	for text, want := range map[string]string{
		"ethernets: {e: {dhcp4: true}}, bridges: {b: {interfaces: [e]}}":                                          "ethernets.e.dhcp4",
		"ethernets: {e: {addresses: [192.0.2.7/24]}}, bonds: {b: {interfaces: [e]}}":                              "ethernets.e.addresses",
		"bridges: {b: {interfaces: [v]}}, vlans: {v: {id: 1, link: b}}":                                           "rests on itself",
		"bridges: {b: {parameters: {path-cost: 3}}}":                                                              "bridges.b.parameters.path-cost",
		"bridges: {b: {parameters: {forward-delay: 4s}}}":                                                         "bridges.b.parameters.forward-delay",
		"bridges: {b: {parameters: {ageing-time: 2147483647}}}":                                                   "bridges.b.parameters.ageing-time",
		"ethernets: {e: {}}, bonds: {b: {interfaces: [e], parameters: {primary: e}}}":                             "bonds.b.parameters.primary",
		"ethernets: {e: {}}, bonds: {b: {interfaces: [e], parameters: {mode: active-backup, primary: f}}}":        "f is none of its interfaces",
		"ethernets: {e: {match: {macaddress: '52:54:00:00:00:09'}}}, bridges: {b: {interfaces: [e]}}":             "ethernets.e: file does not",
		"ethernets: {e: {match: {name: 'e*'}}}, bonds: {b: {interfaces: [e], parameters: {mode: active-backup}}}": "ethernets.e",
		"ethernets: {e: {match: {name: 'e*'}}}":                                                                   "pattern",
		"ethernets: {e: {nameservers: {addresses: [192.0.2.3]}}}":                                                 "resolvconf",
		"ethernets: {e: {match: {macaddress: '52:54:00:00:00:09'}}}":                                              "there is no such",
		"ethernets: {mapped: {}}":  "line 3 is of a mapping of mapped",
		"ethernets: {sourced: {}}": "line 1 configures sourced",
		"ethernets: {e: {}}, vlans: {a.b: {id: 1, link: e}, a_b: {id: 2, link: e}}": "another interface",
	} {
		by := ifupdown{
			have:      map[string]*generated{interfacesFile: {content: []byte("auto x\nmapping map*\n  script /bin/true\n")}},
			elsewhere: map[string]string{"/run/network/x": "iface sourced inet dhcp\n"},
			named:     func(string) (string, error) { return "", os.ErrNotExist },
		}
		if want == "there is no such" {
			want = "file does not exist"
		}
		tr, err := readSet(set([]string{"network: {version: 2, " + text + "}\n"}), byIfupdown)
		if err == nil {
			_, err = tr.interfaces(by)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// No text of a configuration becomes a part of a line of shell, or a line of its own.
func TestNothingIsInjected(t *testing.T) {
	for _, text := range []string{
		"ethernets: {e: {routes: [{to: '2001:db8:1::/48', via: 'fe80::1%x; touch /tmp/x; #'}]}}",
		"ethernets: {e: {routes: [{to: 'fe80::1%x y', via: 'fe80::1'}]}}",
		"ethernets: {e: {gateway6: \"fe80::1%x\\n up touch /tmp/x\"}}",
		"ethernets: {e: {nameservers: {addresses: [\"fe80::1%x\\n up touch /tmp/x\"]}}}",
		"ethernets: {e: {addresses: ['fe80::1%x;y/64']}}",
		"ethernets: {e: {match: {name: 'e$(touch${IFS}/tmp/x)'}}}, vlans: {v: {id: 1, link: e}}",
		"ethernets: {e: {match: {name: 'e`x`'}}}",
		"ethernets: {e: {match: {macaddress: '52:54:00:00:00:01'}}}",
		"ethernets: {e: {match: {macaddress: '52:54:00:00:00:01'}}}, bridges: {b: {interfaces: [e]}}",
		"bridges: {'b;x': {}}",
		"bridges: {b: {interfaces: ['e;x']}}",
		"bridges: {b: {parameters: {priority: '1;x'}}}",
		"bridges: {b: {parameters: {forward-delay: \"1\\n up touch /tmp/x\"}}}",
		"bonds: {b: {parameters: {mode: 'active-backup;x'}}}",
		"bonds: {b: {parameters: {lacp-rate: '$(x)'}}}",
		"ethernets: {e: {}}, bonds: {b: {interfaces: [e], parameters: {mode: active-backup, primary: 'e`x`'}}}",
	} {
		tr, err := readSet(set([]string{"network: {version: 2, " + text + "}\n"}), byIfupdown)
		if err == nil {
			_, err = tr.interfaces(ifupdown{dns: true, named: func(string) (string, error) { return "e$(x)", nil }})
		}
		if err == nil {
			t.Errorf("%s is taken", text)
		}
	}
}

// ifup itself reads what was made.
func TestIfupReadsIt(t *testing.T) {
	ifquery, err := exec.LookPath("ifquery")
	if err != nil {
		t.Skip("needs ifquery: install ifupdown")
	}
	const text = "network: {version: 2, ethernets: {eth0: {addresses: [192.0.2.7/24, '2001:db8::7/64'], routes: [{to: default, via: 192.0.2.1}]}}, " +
		"vlans: {v.5: {id: 5, link: eth0, dhcp4: true, dhcp6: true}, v6: {id: 6, link: eth0, accept-ra: true}, v8: {id: 8, link: eth0}, v7: {id: 7, link: br0}}, bonds: {bond0: {interfaces: [v8], parameters: {mode: 802.3ad}}}, " +
		"bridges: {br0: {interfaces: [bond0]}}}\n"
	files, err := ifupFiles(t, ifupdown{have: map[string]*generated{interfacesFile: {content: []byte(adminInterfaces)}}}, text)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	all := strings.Replace(string(files[interfacesFile].content), ownSource, interfacesOf(files), 1)
	if err := os.WriteFile(filepath.Join(dir, "interfaces"), []byte(all), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"eth0": "address: 192.0.2.7\n", "v.5": "pre-up: ip link set dev eth0 up", "v6": "id 6", "v7": "id 7", "br0": "pre-up: ifup bond0 || true\n", "v8": "down: ip link set dev $IFACE nomaster\n",
		"bond0": "type bond mode 802.3ad\n"} {
		out, err := exec.Command(ifquery, "--interfaces="+filepath.Join(dir, "interfaces"), name).CombinedOutput()
		if err != nil || !strings.Contains(string(out), want) || strings.Contains(string(out), "192.0.2.9") {
			t.Errorf("%s: %v\n%s\nof\n%s", name, err, out, all)
		}
	}
}
