package netplan

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const bridged = "network: {version: 2, ethernets: {eth0: {mtu: 1400}, eth1: {optional: true}}, " +
	"bonds: {bond0: {interfaces: [eth0, eth1], parameters: {mode: active-backup, mii-monitor-interval: 100, primary: eth1, " +
	"fail-over-mac-policy: active}}}, vlans: {v5: {id: 5, link: bond0}, v6: {id: 6, link: br0, optional: true, addresses: [192.0.2.6/24]}}, " +
	"bridges: {br0: {interfaces: [bond0, v5], macaddress: '52:54:00:00:00:02', addresses: [192.0.2.7/24], dhcp6: true, " +
	"parameters: {stp: false, forward-delay: 4, priority: 100, ageing-time: 50}}}}\n"

// What ifup does for bridges and bonds is ip's work alone, and what was made is read as it was meant.
func TestBridgesAndBondsOfIfupdown(t *testing.T) {
	files, err := ifupFiles(t, ifupdown{}, bridged)
	if err != nil {
		t.Fatal(err)
	}
	for id, lines := range map[string][]string{
		"br0": {
			"iface br0 inet static\n    address 192.0.2.7/24\n    pre-up test -e /sys/class/net/$IFACE || ip link add name $IFACE type bridge ageing_time 5000 forward_delay 400 " +
				"priority 100 stp_state 0\n    post-down ip link delete dev $IFACE\n    pre-up ip link set dev $IFACE address 52:54:00:00:00:02\n",
			"    pre-up ifup bond0 || true\n    pre-up test ! -e /sys/class/net/bond0 || { { test -e /sys/class/net/br0/lower_bond0 || " +
				"{ ip link set dev bond0 down && ip link set dev bond0 master br0; }; } && ip link set dev bond0 up; }\n",
			"up; }\niface br0 inet6 dhcp\n",
		},
		"bond0": {
			"    pre-up test -e /sys/class/net/bonding_masters || modprobe bonding max_bonds=0 || true\n",
			"type bond mode active-backup fail_over_mac active miimon 100\n",
			"    pre-up test ! -e /sys/class/net/br0 || {", "ip link set dev bond0 type bond primary eth1 && ip link set dev eth1 up; }\n",
		},
		"eth0": {"iface eth0 inet manual\n", " mtu 1400\n", "    pre-up ip address flush dev $IFACE\n", "    down ip link set dev $IFACE nomaster\n"},
		"eth1": {"allow-hotplug eth1\n", "ip link set dev bond0 type bond primary eth1; }\n"},
		"v6":   {"auto v6\nallow-optional v6\n", "    pre-up ifup br0\n"},
	} {
		for _, line := range lines {
			if text := string(files[ownInterfaces+id].content); !strings.Contains(text, line) {
				t.Errorf("%s: %q is not in:\n%s", id, line, text)
			}
		}
	}
	links := linksOf(files)
	for id, want := range map[string]link{
		"br0": {virtual: "br0", kind: "bridge"}, "bond0": {virtual: "bond0", kind: "bond", port: true, master: "br0"},
		"eth0": {port: true, master: "bond0"}, "eth1": {port: true, master: "bond0"},
		"v5": {virtual: "v5", kind: "vlan", below: "bond0", port: true, master: "br0"}, "v6": {virtual: "v6", kind: "vlan", below: "br0"},
	} {
		if l := links[id]; l.virtual != want.virtual || l.kind != want.kind || l.below != want.below || l.port != want.port ||
			l.master != want.master || l.optional != (id == "eth1" || id == "v6") {
			t.Errorf("%s is read as %+v", id, l)
		}
	}
	for _, line := range strings.Split(string(files[ownInterfaces+"eth0"].content)+string(files[ownInterfaces+"v5"].content), "\n") {
		for words := strings.Fields(line); len(words) > 0; words = words[:len(words)-1] {
			new(link).readInterfaces(strings.Join(words, " ")) // somebody has cut it off
		}
	}
	again, err := ifupFiles(t, ifupdown{have: files}, bridged)
	if err != nil || len(differing(files, again)) > 0 {
		t.Errorf("a second time %v differ: %v", differing(files, again), err)
	}
	changed, err := ifupFiles(t, ifupdown{have: files}, strings.Replace(bridged, "priority: 100", "priority: 200", 1))
	if err != nil {
		t.Fatal(err)
	}
	p := newPlan(files, changed)
	names := (&snapshot{}).ofIfup(p)
	if !slices.Equal(p.gone, []string{"br0"}) || !slices.Equal(p.made, []string{"br0"}) || !slices.Equal(names, []string{"br0", "v6"}) {
		t.Errorf("%q are deleted, %q made, %q configured", p.gone, p.made, names)
	}
}

// What ip takes for a bond that looks for its neighbours.
func TestBondOfIfupdownAsksByARP(t *testing.T) {
	files, err := ifupFiles(t, ifupdown{}, "network: {ethernets: {eth0: {}}, bonds: {bond0: {interfaces: [eth0], parameters: {mode: active-backup, "+
		"arp-interval: 150, arp-ip-targets: [192.0.2.1, 192.0.2.2], arp-validate: all, arp-all-targets: any}}}}\n")
	if err != nil {
		t.Fatal(err)
	}
	const want = "type bond mode active-backup arp_all_targets any arp_interval 150 arp_ip_target 192.0.2.1,192.0.2.2 arp_validate all\n"
	if text := string(files[ownInterfaces+"bond0"].content); !strings.Contains(text, want) {
		t.Errorf("%q is not in:\n%s", want, text)
	}
	w := newWire(t)
	out, err := exec.Command("ip", append([]string{"link", "add", "b0"}, strings.Fields(want)...)...).CombinedOutput()
	if err != nil {
		t.Skipf("no bonds are made here: %v %s", err, out)
	}
	if got := w.run([]string{"ip", "-d", "link", "show", "b0"}); !strings.Contains(got, "arp_interval 150 arp_missed_max ") ||
		!strings.Contains(got, "arp_ip_target 192.0.2.1,192.0.2.2 arp_validate all arp_all_targets any ") {
		t.Error(got)
	}
}

// The parameters of bridges and bonds are netplan's for the other renderers as well.
func TestParametersAreNetplans(t *testing.T) {
	tr := newTree(t)
	const text = "network:\n  ethernets: {eth0: {}, eth1: {}, eth2: {}, eth3: {}, eth4: {}}\n  bonds:\n    bond0:\n      interfaces: [eth0, eth1]\n      parameters: {mode: active-backup, " +
		"primary: eth1, up-delay: 200, down-delay: 300, mii-monitor-interval: 100, fail-over-mac-policy: active, primary-reselect-policy: better}\n" +
		"    bond2: {interfaces: [eth4], parameters: {mode: balance-rr, arp-interval: 150, arp-ip-targets: [192.0.2.1, 192.0.2.2], " +
		"arp-validate: all, arp-all-targets: any}}\n" +
		"    bond1: {parameters: {mode: 802.3ad, lacp-rate: fast, min-links: 1, ad-select: bandwidth, transmit-hash-policy: layer2+3}}\n" +
		"  bridges:\n    br0: {parameters: {forward-delay: 4, hello-time: 3, max-age: 9, ageing-time: 50, priority: 100}}\n    br1: {parameters: {stp: no}}\n" +
		"    br2: {interfaces: [eth2, eth3], parameters: {path-cost: {eth2: 50}, port-priority: {eth2: 14, eth3: 20}}}\n"
	for _, renderer := range []string{byNetworkd, byNetworkManager} {
		ours, err := translate(set([]string{text}), renderer)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := tr.room.generate(t.Context(), set([]string{strings.Replace(text, "network:\n", "network:\n  renderer: "+renderer+"\n", 1)}))
		if err != nil {
			t.Fatal(err)
		}
		of := func(files map[string]*generated) (list []string) {
			for _, file := range sorted(files) {
				for _, s := range settings(files[file].content) {
					if slices.Contains([]string{"Bond", "Bridge", "bond", "bridge", "bridge-port"}, s.section) || s.key == "PrimarySlave" {
						_, id, _ := strings.Cut(strings.TrimPrefix(filepath.Base(file), "05-"), "-")
						list = append(list, strings.TrimPrefix(id, "netplan-")+" "+s.section+" "+s.key+"="+s.value)
					}
				}
			}
			slices.Sort(list)
			return list
		}
		if mine, want := of(ours), of(theirs); len(want) < 25 || !slices.Equal(mine, want) {
			t.Errorf("%s:\n%s\nnetplan has\n%s", renderer, strings.Join(mine, "\n"), strings.Join(want, "\n"))
		}
	}
}

// ownIfupdown gives the goroutine, with a network of its own, files and states of ifup of its own.
func ownIfupdown(t *testing.T) {
	t.Helper()
	for _, program := range []string{"ifup", "ifdown"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("needs %s: install ifupdown", program)
		}
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Skipf("needs mount namespaces: %v", err)
	}
	for _, m := range []struct{ kind, at string }{{"tmpfs", "/run"}, {"tmpfs", "/etc/network"}, {"sysfs", "/sys"}} {
		err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		if err == nil {
			err = unix.Mount(m.kind, m.at, m.kind, 0, "")
		}
		if err != nil {
			t.Fatal(m.at, err)
		}
	}
	dirs := []string{"/run/network", "/etc/network/interfaces.d"}
	for _, phase := range []string{"pre-up", "up", "down", "post-down"} {
		dirs = append(dirs, "/etc/network/if-"+phase+".d")
	}
	for _, dir := range dirs {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// ifup itself makes a bridge of an interface that the administrator's file configured, and takes it back.
func TestIfupMakesABridge(t *testing.T) {
	w := newWire(t)
	ownIfupdown(t)
	files, err := fsys.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	runner := proc.New(proc.Config{Name: "netplantest", Reexec: true, Cgroup: "none", JobCgroup: "none"})
	t.Cleanup(func() {
		if err := errors.Join(runner.Release(), files.Close()); err != nil {
			t.Error(err)
		}
	})
	tr := &tree{TB: t, dir: "/", room: New(&guest.Guest{Files: files, Dir: "/", Runner: runner}, Config{})}
	tr.call = &builtins.Call{Tx: keeper{tree: tr}, Changed: func(c *pb.Change) { tr.changes = append(tr.changes, c) }}
	r := tr.room
	const admin = "auto lo here\niface lo inet loopback\niface here inet static\n    address 192.0.2.9/24\n"
	if err := os.WriteFile(interfacesFile, []byte(admin), 0o644); err != nil {
		t.Fatal(err)
	}
	w.run([]string{"ifup", "here"})
	apply := func(text string) (p *plan, undo *pb.NetplanUndo) {
		t.Helper()
		want, err := r.forIfup(set([]string{text}))
		if err != nil {
			t.Fatal(err)
		}
		have, err := r.current(map[string]*generated{interfacesFile: {}})
		if err != nil {
			t.Fatal(err)
		}
		p = newPlan(have, want)
		n, err := r.look(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := n.notOthers(p); err != nil {
			t.Fatal(err)
		}
		if err := n.ownedByIfup(n.ofIfup(p)); err != nil {
			t.Fatal(err)
		}
		undo = n.undo(p, nil)
		checks := n.checks(r, &daemons{}, p)
		if err := r.act(t.Context(), &daemons{}, tr.call, p, false); err != nil {
			t.Fatal(err)
		}
		for _, c := range checks {
			w.until(c.object+" is not as it shall be", func() bool {
				seen, err := c.try(t.Context())
				if err == nil {
					t.Log(seen)
				}
				return err == nil
			})
		}
		return p, undo
	}
	has := func(line string, want ...string) {
		t.Helper()
		out := w.run(append([]string{"ip"}, strings.Fields(line)...))
		for _, word := range want {
			if !strings.Contains(out, word) {
				t.Errorf("ip %s has no %q:\n%s", line, word, out)
			}
		}
	}
	const text = "network: {version: 2, ethernets: {here: {}}, bridges: {br0: {interfaces: [here], addresses: [192.0.2.7/24], " +
		"parameters: {stp: false, forward-delay: 4, priority: 100, path-cost: {here: 77}, port-priority: {here: 14}}}}}\n"
	bridge := func(delay string) {
		t.Helper()
		has("-d link show br0", "bridge forward_delay "+delay, "stp_state 0", "priority 100")
		has("-d link show here", "master br0", "bridge_slave state ", "priority 14 cost 77 ")
		has("address show br0", "192.0.2.7/24")
		if out := w.run([]string{"ip", "address", "show", "here"}); strings.Contains(out, "inet") {
			t.Errorf("the port has an address:\n%s", out)
		}
		link, err := r.look(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		index := link.links[slices.IndexFunc(link.links, func(l facts.Link) bool { return l.Name == "br0" })].Index
		w.until("the bridge has no carrier", func() bool {
			n, err := r.look(t.Context())
			return err == nil && slices.ContainsFunc(n.links, func(l facts.Link) bool { return l.Index == index && l.Up })
		})
		if _, err := ask(t.Context(), index, netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.7")); err != nil {
			t.Error("who is behind the port:", err)
		}
	}
	apply(text)
	bridge("400")
	if p, _ := apply(text); len(p.paths)+len(p.changed)+len(p.made)+len(p.gone) > 0 {
		t.Errorf("a second time %q change", p.paths)
	}
	w.run([]string{"ifdown", "br0", "here"})
	w.run([]string{"ifup", "-a"}) // as at boot
	bridge("400")
	w.run([]string{"ifdown", "here"})
	w.run([]string{"ifup", "here"})
	bridge("400")
	apply(strings.Replace(text, "here: {}", "here: {mtu: 1400}", 1))
	bridge("400")
	has("link show here", "mtu 1400")
	apply(strings.Replace(text, "forward-delay: 4", "forward-delay: 5", 1))
	bridge("500")
	apply("network: {version: 2}\n")
	nothing := func() {
		t.Helper()
		if out, err := exec.Command("ip", "link", "show", "br0").CombinedOutput(); err == nil {
			t.Errorf("the bridge is still there: %s", out)
		}
	}
	nothing()
	has("address show here", "192.0.2.9/24", "inet6 fe80")
	if got, err := os.ReadFile(interfacesFile); err != nil || string(got) != admin {
		t.Errorf("%v\n%s", err, got)
	}

	apply(text)
	p, undo := apply(strings.Replace(text, "forward-delay: 4", "forward-delay: 5", 1))
	back := func() {
		t.Helper()
		if err := r.install(p.have); err != nil { // as the transaction does it
			t.Fatal(err)
		}
		for _, file := range p.paths {
			if p.have[file] == nil {
				if err := os.Remove(file); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := r.goBack(t.Context(), undo); err != nil {
			t.Fatal(err)
		}
	}
	back()
	bridge("400")
	apply("network: {version: 2}\n")
	p, undo = apply(text)
	back()
	nothing()
	has("address show here", "192.0.2.9/24")

	w.here("link add br0 type bridge")
	want, err := r.forIfup(set([]string{text}))
	if err != nil {
		t.Fatal(err)
	}
	look := func() *snapshot {
		t.Helper()
		n, err := r.look(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	n := look()
	if err := n.notOthers(newPlan(p.have, want)); err == nil || !strings.Contains(err.Error(), "it is there already") {
		t.Errorf("a bridge of somebody else: %v", err)
	}
	// One that ifup has given an address only, and others have made.
	if err := os.WriteFile(interfacesFile, []byte(admin+"iface br0 inet static\n    address 198.51.100.1/24\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	w.run([]string{"ifup", "br0"})
	have, err := r.current(map[string]*generated{interfacesFile: {}})
	if err == nil {
		want, err = r.forIfup(set([]string{text}))
	}
	if err != nil {
		t.Fatal(err)
	}
	p, n = newPlan(have, want), look()
	if undo = n.undo(p, nil); n.notOthers(p) != nil {
		t.Error("ifup has configured it")
	}
	if err := r.act(t.Context(), &daemons{}, tr.call, p, false); err == nil || !strings.Contains(err.Error(), "br0: it is there already") {
		t.Errorf("a bridge of somebody else that ifup has configured: %v", err)
	}
	back()
	has("address show br0", "198.51.100.1/24")
	has("address show here", "192.0.2.9/24")
	if !look().stayed("br0", undo.Links) {
		t.Error("it is another bridge now")
	}
}
