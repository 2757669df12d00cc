package netplan

import (
	"fmt"
	"path"
	"strings"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

const (
	ownSource = "source " + ownInterfaces + "*\n"
	setAside  = "#quantix# " // before a line that does not hold as long as a file of netplan has its interface
)

// ifupdown is what the files for ifup are made with.
type ifupdown struct {
	have      map[string]*generated            // its files, as they are
	elsewhere map[string]string                // the texts of other files that these name
	named     func(mac string) (string, error) // the interface with a hardware address
	dns       bool                             // something gives name servers to the resolver
}

// interfaces makes the files that ifup reads. What the administrator's files say of an interface is set aside while a file of
// netplan has it, and holds again afterwards.
func (t *translation) interfaces(by ifupdown) (map[string]*generated, error) {
	files, taken := map[string]*generated{}, map[string]string{}
	for _, id := range t.order {
		d := t.devices[id]
		name, text, err := t.stanzas(d, by)
		if err != nil {
			return nil, err
		}
		file := ownInterfaces + strings.ReplaceAll(id, ".", "_") // source-directory reads no other names
		if files[file] != nil || taken[name] != "" {
			return nil, fault.Invalid("%s.%s: ifupdown cannot distinguish it from another interface of the configuration", d.kind, id)
		}
		files[file], taken[name] = &generated{content: []byte(text), mode: 0o644}, id
		if text := d.linkFile(); text != "" {
			files[ownNetworkd+id+".link"] = &generated{content: []byte(text), mode: 0o644}
		}
	}
	for file, text := range by.elsewhere {
		if line, name := firstOf(text, taken); line > 0 {
			return nil, fault.On(file, fault.Refuse("line %d configures %s, and this agent does not change that file", line, name))
		}
	}
	sources := false
	for _, file := range sorted(by.have) {
		if strings.HasPrefix(file, ownInterfaces) {
			continue
		}
		g := *by.have[file]
		if g.target == "" {
			text, err := setAsideOf(string(g.content), taken)
			if err != nil {
				return nil, fault.On(file, err)
			}
			sources = sources || file == interfacesFile && readsOwn(text)
			g.content = []byte(text)
		}
		files[file] = &g
	}
	switch main := files[interfacesFile]; {
	case len(taken) == 0 && main != nil && main.target == "" && len(main.content) == 0:
		delete(files, interfacesFile) // it was made for what is gone
	case sources || len(taken) == 0:
	case main == nil:
		files[interfacesFile] = &generated{content: []byte(ownSource), mode: 0o644}
	case main.target != "":
		return nil, fault.On(interfacesFile, fault.Refuse("it is a link, and does not read %s*", ownInterfaces))
	default:
		text := string(main.content)
		if text != "" && !strings.HasSuffix(text, "\n") {
			text += "\n"
		}
		main.content = []byte(text + ownSource)
	}
	return files, nil
}

// stanzas returns the name of the interface and what ifup does with it.
func (t *translation) stanzas(d *device, by ifupdown) (name, text string, err error) {
	where := d.kind + "." + d.id
	name = d.called()
	switch {
	case strings.ContainsAny(name, "*?["):
		return "", "", fault.Unsupported("%s: ifupdown takes an interface by its name, and not by a pattern", where)
	case len(d.nameservers)+len(d.search) > 0 && !by.dns:
		return "", "", fault.Unsupported("%s.nameservers: ifupdown gives them to resolvconf, which is not there", where)
	}
	if name, err = by.nameOf(d); err != nil {
		return "", "", fault.On(where, err)
	}
	if err := t.checkRest(d); err != nil {
		return "", "", err
	}
	if d.master != nil {
		if err := d.checkPort(); err != nil {
			return "", "", err
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "#netplan %s\n", d.id)
	if !d.optional || d.kind != "ethernets" { // there is no event for one that is made only then
		fmt.Fprintf(&b, "auto %s\n", name)
	}
	if d.optional {
		class := "allow-hotplug"
		if d.kind != "ethernets" {
			class = allowOptional
		}
		fmt.Fprintf(&b, "%s %s\n", class, name)
	}
	methods := d.methods()
	for i, method := range methods {
		fmt.Fprintf(&b, "iface %s %s\n", name, method)
		if i == 0 {
			if err := t.begin(&b, d, name, by); err != nil {
				return "", "", fault.On(where, err)
			}
		}
		if i == len(methods)-1 {
			d.behind(&b)
		}
	}
	return name, b.String(), nil
}

// begin writes what is done before the interface has an address.
func (t *translation) begin(b *strings.Builder, d *device, name string, by ifupdown) error {
	switch d.kind {
	case "vlans":
		below, err := by.nameOf(t.devices[d.link])
		if err != nil {
			return err
		}
		d.makeVLAN(b, below, t.devices[d.link].kind != "ethernets")
	case "bridges", "bonds":
		if err := d.makeMaster(b); err != nil {
			return err
		}
	}
	d.before(b)
	if d.master != nil {
		d.joinMaster(b, name)
	}
	return d.takePorts(b, t, by)
}

// methods are the first lines, after the name, of each stanza of the interface, with the address that it may have.
func (d *device) methods() (list []string) {
	for six, inet := range []string{"inet", "inet6"} {
		if d.dhcp[six] {
			list = append(list, inet+" dhcp")
		}
		for _, a := range d.addresses {
			if family(a.Addr()) == six {
				list = append(list, fmt.Sprintf("%s static\n    address %v", inet, a))
			}
		}
	}
	if d.acceptRA != nil && *d.acceptRA && !d.dhcp[1] {
		list = append(list, "inet6 auto")
	}
	if len(list) == 0 {
		list = []string{"inet manual\n    up ip link set dev $IFACE up\n    down ip link set dev $IFACE down"}
	}
	return list
}

// nameOf is what an interface is called, by its hardware address where the configuration knows it by that alone. It becomes a
// part of lines of shell.
func (by ifupdown) nameOf(d *device) (name string, err error) {
	if name = d.called(); name == "" {
		name, err = by.named(d.mac)
	}
	if err == nil && !namePattern().MatchString(name) {
		err = fault.Unsupported("ifupdown cannot be given an interface %q", name)
	}
	return name, err
}

// makeVLAN writes what makes the interface on another one, and removes it. One below that is made as well is made before.
func (d *device) makeVLAN(b *strings.Builder, below string, made bool) {
	if made {
		fmt.Fprintf(b, "    pre-up ifup %s\n", below)
	}
	fmt.Fprintf(b, "    pre-up ip link set dev %s up\n", below)
	fmt.Fprintf(b, "    pre-up test -e /sys/class/net/$IFACE || ip link add link %s name $IFACE type vlan id %d\n", below, d.vlan)
	b.WriteString("    post-down ip link delete dev $IFACE\n")
}

// before writes what the interface itself is given before.
func (d *device) before(b *strings.Builder) {
	if d.setMAC != "" {
		fmt.Fprintf(b, "    pre-up ip link set dev $IFACE address %s\n", d.setMAC)
	}
	if d.mtu > 0 {
		fmt.Fprintf(b, "    pre-up ip link set dev $IFACE mtu %d\n", d.mtu)
	}
	if d.acceptRA != nil && !*d.acceptRA {
		b.WriteString("    pre-up echo 0 > /proc/sys/net/ipv6/conf/$IFACE/accept_ra\n")
	}
}

// behind writes what is done when it has all its addresses.
func (d *device) behind(b *strings.Builder) {
	for _, w := range d.routes {
		fmt.Fprintf(b, "    up ip -%c route replace %v via %v dev $IFACE", "46"[family(w.via)], w.to, w.via)
		if w.metric >= 0 {
			fmt.Fprintf(b, " metric %d", w.metric)
		}
		if w.table > 0 {
			fmt.Fprintf(b, " table %d", w.table)
		}
		if w.onLink {
			b.WriteString(" onlink")
		}
		b.WriteString("\n")
	}
	if len(d.nameservers) > 0 {
		b.WriteString("    dns-nameservers")
		for _, server := range d.nameservers {
			fmt.Fprintf(b, " %v", server)
		}
		b.WriteString("\n")
	}
	if len(d.search) > 0 {
		fmt.Fprintf(b, "    dns-search %s\n", strings.Join(d.search, " "))
	}
}

// paragraphs calls do for each line of a file of ifup, with the words of the first line of what it belongs to. A line that ends
// in a backslash goes on in the next one.
func paragraphs(text string, do func(number int, line string, words []string)) {
	var words []string
	number, goesOn := 0, false
	for line := range strings.Lines(text) {
		number++
		f := strings.Fields(line)
		if !goesOn && len(f) > 0 {
			switch f[0] {
			case "iface", "mapping", "source", "source-directory", "auto", "no-auto-down", "no-scripts", "rename", "template":
				words = f
			default:
				if strings.HasPrefix(f[0], "allow-") {
					words = f
				}
			}
		}
		goesOn = strings.HasSuffix(strings.TrimRight(line, "\n"), `\`)
		do(number, line, words)
	}
}

// firstOf returns the number of the first line that configures one of some interfaces, and that; 0: none does.
func firstOf(text string, taken map[string]string) (at int, name string) {
	paragraphs(text, func(number int, line string, words []string) {
		if at == 0 && len(words) > 1 && words[0] == "iface" && taken[words[1]] != "" {
			at, name = number, words[1]
		}
	})
	return at, name
}

// setAsideOf returns a text with what it says of some interfaces set aside, and all that was set aside before back.
func setAsideOf(text string, taken map[string]string) (string, error) {
	var back, b strings.Builder
	for line := range strings.Lines(text) {
		if line != ownSource {
			back.WriteString(strings.TrimPrefix(line, setAside))
		}
	}
	var failed error
	paragraphs(back.String(), func(number int, line string, words []string) {
		blank := strings.TrimSpace(line) == "" || strings.HasPrefix(strings.TrimSpace(line), "#")
		switch {
		case len(words) < 2 || blank:
		case words[0] == "mapping":
			for _, pattern := range words[1:] {
				for name := range taken {
					if matched, err := path.Match(pattern, name); matched || err != nil {
						failed = fault.Refuse("line %d is of a mapping of %s to other names", number, name)
					}
				}
			}
		case words[0] == "iface" && taken[words[1]] != "":
			b.WriteString(setAside)
		}
		b.WriteString(line)
	})
	return b.String(), failed
}

// readsOwn reports whether a text has ifup read the files that are made here.
func readsOwn(text string) (reads bool) {
	paragraphs(text, func(_ int, line string, words []string) {
		f := strings.Fields(line)
		if len(f) < 2 || len(words) == 0 || f[0] != words[0] {
			return
		}
		at := f[1]
		if !path.IsAbs(at) {
			at = path.Join(path.Dir(interfacesFile), at)
		}
		matched, err := path.Match(at, ownInterfaces+"x")
		reads = reads || f[0] == "source" && matched && err == nil || f[0] == "source-directory" && path.Clean(at)+"/" == interfacesDir
	})
	return reads
}
