package netplan

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

const (
	// ifupdownState lists the interfaces that ifup(8) has configured, as interface=name of its configuration.
	ifupdownState = "/run/network/ifstate"

	ifupTime = 2 * time.Minute // its own limit for DHCP is one
)

// configured are the interfaces that ifup has configured, but for the loopback.
func configured() (names []string, err error) {
	text, err := os.ReadFile(ifupdownState)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fault.On(ifupdownState, err)
	}
	for line := range strings.Lines(string(text)) {
		if name, _, _ := strings.Cut(strings.TrimSpace(line), "="); name != "" && name != "lo" {
			names = append(names, name)
		}
	}
	return names, nil
}

// forIfup makes the files that ifup reads of a set of netplan's.
func (r *Room) forIfup(set []*document) (map[string]*generated, error) {
	t, err := readSet(set, byIfupdown)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(r.guest.Root())
	if err != nil {
		return nil, fault.Cause(err)
	}
	defer root.Close()
	by := ifupdown{elsewhere: map[string]string{}, named: r.byMAC}
	if by.have, err = readGenerated(root, "", "etc/network"); err != nil {
		return nil, err
	}
	for _, program := range []string{"/sbin/resolvconf", "/usr/sbin/resolvconf"} {
		if _, err := root.Stat(program[1:]); err == nil {
			by.dns = true
		}
	}
	for _, file := range sorted(by.have) {
		if strings.HasPrefix(file, ownInterfaces) {
			continue
		}
		for _, other := range sourced(root, string(by.have[file].content)) {
			if text, err := root.ReadFile(other[1:]); err == nil && by.have[other] == nil {
				by.elsewhere[other] = string(text)
			}
		}
	}
	return t.interfaces(by)
}

// sourced are the files that a file of ifup has read besides, as far as there are any.
func sourced(root *os.Root, text string) (files []string) {
	paragraphs(text, func(_ int, line string, words []string) {
		f := strings.Fields(line)
		if len(f) < 2 || len(words) == 0 || f[0] != words[0] || f[0] != "source" && f[0] != "source-directory" {
			return
		}
		pattern := f[1]
		if !path.IsAbs(pattern) {
			pattern = path.Join(path.Dir(interfacesFile), pattern)
		}
		if f[0] == "source-directory" {
			pattern += "/*"
		}
		found, _ := fs.Glob(root.FS(), path.Clean(pattern)[1:]) // a pattern that is none has nothing
		for _, file := range found {
			files = append(files, "/"+file)
		}
	})
	return files
}

func (r *Room) byMAC(mac string) (string, error) {
	links, err := r.system.links()
	if err != nil {
		return "", err
	}
	for _, l := range links {
		if l.MAC == mac && l.Kind == "physical" {
			return l.Name, nil
		}
	}
	return "", fault.Wrapf(fs.ErrNotExist, "there is no interface %s", mac)
}

// ofIfup are the interfaces that a plan is about which ifup shall configure, or has configured. A VLAN goes with the interface
// that it is on.
func (n *snapshot) ofIfup(p *plan) (names []string) {
	add := func(l *link) {
		if l.renderer != byIfupdown {
			return
		}
		if l.virtual != "" {
			names = append(names, l.virtual)
		}
		for _, have := range n.find(l) {
			names = append(names, have.Name)
		}
	}
	for _, l := range p.changed {
		add(l)
	}
	for _, id := range idsOf(p.old) {
		if p.new[id] == nil {
			add(p.old[id])
		}
	}
	for before := -1; before != len(names); {
		before = len(names)
		for _, set := range []map[string]*link{p.old, p.new} {
			for _, id := range idsOf(set) {
				if l := set[id]; l.below != "" && slices.Contains(names, l.below) && !slices.Contains(names, l.virtual) {
					names = append(names, l.virtual)
				}
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// notOthers refuses to make a virtual interface where there is one of that name which ifup has not made: it is not of the files
// that were made here, and ifup has not configured it.
func (n *snapshot) notOthers(p *plan) error {
	up, err := configured()
	if err != nil {
		return err
	}
	for _, l := range p.changed {
		own := p.old[l.id] != nil && p.old[l.id].virtual == l.virtual
		if l.renderer == byIfupdown && l.virtual != "" && !own && !slices.Contains(up, l.virtual) && len(n.find(l)) > 0 {
			return fault.On(l.virtual, fault.Refuse("it is there already, and ifup has not made it"))
		}
	}
	return nil
}

// ownedByIfup refuses an interface with addresses that ifup did not give it: nothing would bring them back.
func (n *snapshot) ownedByIfup(names []string) error {
	up, err := configured()
	if err != nil {
		return err
	}
	for _, have := range n.links {
		if slices.Contains(names, have.Name) && !slices.Contains(up, have.Name) && len(n.of(have.Index)) > 0 {
			return fault.On(have.Name, fault.Refuse("it has addresses, and ifup has not configured it"))
		}
	}
	return nil
}

// takeDown has ifdown take down what ifup has configured of some interfaces, as the files say or, if it is not empty, another
// text. What it does not do, the look at the network finds.
func (r *Room) takeDown(ctx context.Context, names []string, text string) error {
	up, err := configured()
	if err != nil {
		return err
	}
	names = slices.DeleteFunc(slices.Clone(names), func(name string) bool { return !slices.Contains(up, name) })
	if len(names) == 0 {
		return nil
	}
	argv := []string{"ifdown", "--force"}
	if text != "" {
		scratch, err := newScratch(r.guest.Root(), true)
		if err != nil {
			return err
		}
		defer scratch.remove()
		if err := scratch.put("/interfaces", []byte(text)); err != nil {
			return err
		}
		argv = append(argv, "--interfaces="+scratch.path+"/interfaces")
	}
	_, err = r.ifup(ctx, append(argv, names...))
	return err
}

// bringUp has ifup configure those of some interfaces that its files are about.
func (r *Room) bringUp(ctx context.Context, names []string) error {
	root, err := os.OpenRoot(r.guest.Root())
	if err != nil {
		return fault.Cause(err)
	}
	defer root.Close()
	files, err := readGenerated(root, "", "etc/network")
	if err != nil {
		return err
	}
	known := func(name string) bool {
		for _, file := range files {
			if line, _ := firstOf(string(file.content), map[string]string{name: name}); line > 0 {
				return true
			}
		}
		return false
	}
	for _, name := range names {
		if !known(name) {
			continue
		}
		result, err := r.ifup(ctx, []string{"ifup", name})
		if err == nil {
			err = result.Err()
		}
		if err != nil {
			return fault.On(name, err)
		}
	}
	return nil
}

// ifup runs ifup or ifdown. What they start, a client of DHCP, stays.
func (r *Room) ifup(ctx context.Context, argv []string) (*proc.Result, error) {
	return r.guest.Run(ctx, guest.Command{Line: guest.Quote(argv), Irreversible: true}, proc.Spec{
		Argv: argv, Timeout: ifupTime, MaxOutput: 64 << 10,
	})
}

// interfacesOf is what the files that were made here say, put together.
func interfacesOf(set map[string]*generated) string {
	var b strings.Builder
	for _, file := range sorted(set) {
		if ofNetplanFile(file, set[file]) != "" {
			b.Write(set[file].content)
		}
	}
	return b.String()
}
