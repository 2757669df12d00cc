package service

import (
	"strings"
	"unicode/utf8"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// maxName is the longest name of a service in UTF-16 units, as CreateService has it.
const maxName = 256

// suffix is what a name may be meant with: nothing.
const suffix = ""

// unit is a service by its name, in any case.
type unit string

// parseUnit reads the name of a service: not the one that is shown to people, but that by which programs know it.
func parseUnit(name string) (unit, error) {
	special := func(r rune) bool { return r < ' ' || r == '/' || r == '\\' || r == utf8.RuneError }
	if name == "" || len(name) > maxName || strings.ContainsFunc(name, special) || strings.TrimSpace(name) != name {
		return "", fault.On(shown(name), fault.Invalid("it is no name of a service"))
	}
	return unit(name), nil
}

// shown is what of a bad name an error says: it may be of any length.
func shown(name string) string {
	if len(name) > 60 {
		return strings.ToValidUTF8(name[:60], "") + "…"
	}
	return name
}

// short is the name.
func (u unit) short() string { return string(u) }
