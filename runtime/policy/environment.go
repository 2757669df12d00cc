package policy

import (
	"slices"
	"strings"

	"github.com/quantix-kvm/guest-agent/runtime/config"
)

// plainVariables are those by which no known program runs other code than its own, with LC_ and more. A list of bad names would
// never end: PERL5OPT, TAR_OPTIONS, GIT_SSH and EDITOR are each of one program, HOME leads to the files of many, and PATH to
// what they call.
var plainVariables = []string{"LANG", "TZ", "TERM", "COLUMNS", "LINES", "NO_COLOR"}

// unlisted returns the name of a variable that a program under a list of programs must not be given; empty: none. One by which
// any program runs other code comes first. env is NAME=VALUE each; more are names that are allowed beside the plain ones.
func unlisted(env []string, more []config.Rule) string {
	other := ""
	for _, setting := range env {
		name, value, _ := strings.Cut(setting, "=")
		switch {
		case injects(name):
			return name
		case other != "" || isPlain(name, value):
		case slices.ContainsFunc(more, func(rule config.Rule) bool { return rule.Value == name }):
		default:
			other = name
		}
	}
	return other
}

// isPlain reports whether a setting of the environment is harmless. A value that leads to a file elsewhere is not.
func isPlain(name, value string) bool {
	switch {
	case name == "DEBIAN_FRONTEND": // debconf compiles the value
		return value == "noninteractive"
	case !slices.Contains(plainVariables, name) && !strings.HasPrefix(name, "LC_"):
		return false
	}
	return !strings.HasPrefix(value, "/") && !strings.HasPrefix(value, ":") && !strings.Contains(value, "..")
}

// injects reports whether any program, or any shell, runs other code than its own by a variable.
func injects(name string) bool {
	return strings.HasPrefix(name, "LD_") || strings.HasPrefix(name, "BASH_FUNC_") ||
		slices.Contains([]string{"GCONV_PATH", "LOCPATH", "BASH_ENV", "ENV"}, name)
}
