package service

import (
	"slices"
	"strings"

	"github.com/quantix-kvm/guest-agent/wire/fault"

	"github.com/quantix-kvm/guest-agent/wire/text/lazyregexp"
)

// maxName is the longest name of a unit in bytes (UNIT_NAME_MAX of systemd, without the zero after it).
const maxName = 255

// unitName is what the name of a unit is made of (systemd.unit(5)). A leading hyphen would be an option to many tools.
var unitName = lazyregexp.New(`^[A-Za-z0-9:_.\\][A-Za-z0-9:_.\\-]*(@[A-Za-z0-9:_.\\@-]*)?$`)

// unitTypes are the ends of names of units.
var unitTypes = []string{
	".service", ".socket", ".timer", ".target", ".path", ".mount", ".automount", ".swap", ".slice", ".scope", ".device",
}

// suffix is what a name without a type is meant with.
const suffix = ".service"

// unit is a unit by its whole name.
type unit string

// parseUnit reads the name of a unit, in which .service may be left out.
func parseUnit(name string) (unit, error) {
	whole := name
	if !slices.ContainsFunc(unitTypes, func(t string) bool { return strings.HasSuffix(name, t) }) {
		whole += suffix
	}
	if len(whole) > maxName || !unitName().MatchString(strings.TrimSuffix(whole, unit(whole).kind())) {
		return "", fault.On(shown(name), fault.Invalid("it is no name of a unit"))
	}
	return unit(whole), nil
}

// shown is what of a bad name an error says: it may be of any length.
func shown(name string) string {
	if len(name) > 60 {
		return name[:60] + "…"
	}
	return name
}

// kind is the type of the unit with the dot, such as .service.
func (u unit) kind() string { return string(u)[strings.LastIndexByte(string(u), '.'):] }

// short is the name without .service, as hosts, needs and rules have it.
func (u unit) short() string { return strings.TrimSuffix(string(u), suffix) }

// split returns the parts of the name of an instance: getty, tty1 of getty@tty1.service. Without an @ templated is false.
func (u unit) split() (prefix, instance string, templated bool) {
	return strings.Cut(strings.TrimSuffix(string(u), u.kind()), "@")
}

// template is the unit that an instance is made of, and u itself where it is none.
func (u unit) template() unit {
	prefix, _, templated := u.split()
	if !templated {
		return u
	}
	return unit(prefix + "@" + u.kind())
}

// isTemplate reports whether it is a template, which cannot run.
func (u unit) isTemplate() bool {
	_, instance, templated := u.split()
	return templated && instance == ""
}

// instance is the unit of a template with a name.
func (u unit) instance(name string) unit {
	prefix, _, _ := u.split()
	return unit(prefix + "@" + name + u.kind())
}
