package pkg

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/packages"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// configOnly is the state of a package of which dpkg has kept the configuration.
const configOnly = "config-files"

// state is what is installed at one moment.
type state struct {
	// by are the installed packages, by name and architecture.
	by map[id]packages.Package
	// partly are the states of packages that are not, or no more, wholly installed, by name.
	partly map[string]string
	// provided are the other names of what is installed.
	provided map[string]bool
	// native is the architecture of dpkg itself; empty: not known.
	native string
}

// id identifies a package: one name may be installed for several architectures, and of rpm, as of kernels, in several versions:
// of these all but the first have it in here.
type id struct{ name, arch, another string }

// isNamed reports whether a name means the package: of dpkg and rpm it may end in the architecture. One for all architectures
// goes by the native one as well.
func (i id) isNamed(name, kind, native string) bool {
	switch kind {
	case packages.Deb:
		base, arch, said := strings.Cut(name, ":")
		return base == i.name && (!said || arch == i.arch || i.arch == "all" && arch == native)
	case packages.RPM:
		return name == i.name || name == i.name+"."+i.arch
	}
	return name == i.name
}

func (i id) compare(other id) int {
	return cmp.Or(strings.Compare(i.name, other.name), strings.Compare(i.arch, other.arch), strings.Compare(i.another, other.another))
}

// state reads what is installed, as a dry run pretends it.
func (r *Room) state(ctx context.Context, call *builtins.Call, m *manager) (*state, error) {
	list, warnings, err := packages.Of(r.guest, call).Read(ctx, m.kind)
	if err != nil {
		return nil, err
	}
	if len(warnings) > 0 { // what is missing would be installed once more
		return nil, fault.Wrapf(fault.ErrCorrupt, "%s", warnings[0])
	}
	s := newState(list)
	if call.DryRun != nil {
		pretended(call.DryRun).apply(s)
	}
	return s, nil
}

// newState makes a state of the packages of a database.
func newState(list []packages.Package) *state {
	s := &state{by: map[id]packages.Package{}, partly: map[string]string{}, provided: map[string]bool{}}
	slices.SortFunc(list, func(a, b packages.Package) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Arch, b.Arch), strings.Compare(a.Version, b.Version))
	})
	for _, p := range list {
		switch p.State {
		case packages.StateInstalled:
			i := id{name: p.Name, arch: p.Arch}
			if _, ok := s.by[i]; ok {
				i.another = p.Version
			}
			s.by[i] = p
			if p.Type == packages.Deb && p.Name == "dpkg" {
				s.native = p.Arch
			}
			for _, name := range p.Provides {
				s.provided[name] = true
			}
		case "not-installed":
		default:
			s.partly[p.Name] = p.State
		}
	}
	return s
}

// versions returns the versions of the installed packages that a name means.
func (s *state) versions(name string) (versions []string) {
	for _, i := range slices.SortedFunc(maps.Keys(s.by), id.compare) {
		if i.isNamed(name, s.by[i].Type, s.native) {
			versions = append(versions, s.by[i].Version)
		}
	}
	return versions
}

func (s *state) has(name string) bool { return len(s.versions(name)) > 0 }

// fulfils reports whether a wish is what is so already, by the package of that name.
func (s *state) fulfils(w wish) bool {
	if w.version == "" {
		return s.has(w.name)
	}
	return slices.Contains(s.versions(w.name), w.version)
}

// step is one package that changes.
type step struct {
	id
	before, after string // versions; empty: not installed
}

// action names what happens.
func (s step) action() string {
	switch {
	case s.before == "":
		return "installed"
	case s.after == "":
		return "removed"
	}
	return "updated"
}

// words are the versions for people.
func (s step) words() string {
	switch {
	case s.before == "":
		return s.after
	case s.after == "":
		return s.before
	}
	return s.before + " -> " + s.after
}

// difference returns what changed from one moment to another, by name.
func difference(before, after *state) (steps []step) {
	all := maps.Clone(before.by)
	maps.Copy(all, after.by)
	for _, i := range slices.SortedFunc(maps.Keys(all), id.compare) {
		if one := (step{i, before.by[i].Version, after.by[i].Version}); one.before != one.after {
			steps = append(steps, one)
		}
	}
	return steps
}

// broken returns the names of packages that have come into a state, other than that of kept configuration, in which they are
// not wholly installed, and were not in before.
func (s *state) broken(before *state) (names []string) {
	for _, name := range slices.Sorted(maps.Keys(s.partly)) {
		if is := s.partly[name]; is != configOnly && is != before.partly[name] {
			names = append(names, name)
		}
	}
	return names
}

// pretence is what a dry run pretends of packages: the last step of each.
type pretence map[id]step

// pretended returns what a dry run pretends; it may be added to.
func pretended(dry *builtins.DryRun) pretence {
	if dry.Pretended == nil {
		dry.Pretended = map[string]any{}
	}
	p, ok := dry.Pretended[room].(pretence)
	if !ok {
		p = pretence{}
		dry.Pretended[room] = p
	}
	return p
}

// apply makes a state what is pretended. A simulation may not have the architecture: then it is that which is installed.
func (p pretence) apply(s *state) {
	for _, one := range p {
		at := one.id
		for i := range s.by {
			if i.name == at.name && (at.arch == "" || i.arch == at.arch) {
				at = i
			}
		}
		if one.after == "" {
			delete(s.by, at)
			continue
		}
		is := s.by[at]
		is.Name, is.Arch, is.Version = at.name, at.arch, one.after
		s.by[at] = is
	}
}
