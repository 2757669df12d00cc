package policy

import (
	"errors"
	"slices"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// searched is where the names of rules are looked for: the directories of a login of root, of which those of any other
// login are a part.
const searched = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// wrappers are programs that run what their arguments name.
var wrappers = []string{
	"sh", "bash", "dash", "ash", "zsh", "ksh", "mksh", "busybox", "toybox", "coreutils", "env", "nice", "ionice", "nohup",
	"timeout", "setsid", "stdbuf", "xargs", "find", "sudo", "doas", "su", "runuser", "chroot", "unshare", "nsenter", "setpriv",
	"systemd-run", "time", "watch", "script", "parallel", "taskset", "chrt", "flock", "strace", "command", "exec", "start-stop-daemon",
}

// several are programs that are many, by the name that they are called by.
var several = []string{"busybox", "toybox", "coreutils"}

// command checks a command against the lists of programs.
func (p *Policy) command(c builtins.Command) error {
	if len(p.security.AllowedCommands)+len(p.security.DeniedCommands) == 0 || len(c.Argv) == 0 || c.Argv[0] == "" {
		return nil // the operation itself refuses an empty one
	}
	found, err := p.guest.programs(c.Argv[0], c.Paths, c.Dir)
	if err != nil {
		return fault.On(c.Argv[0], err)
	}
	if len(p.security.AllowedCommands) > 0 {
		if name := unlisted(c.Env, p.security.AllowedVariables); name != "" {
			return p.refuse("command_allowlist", p.security.AllowedCommands[0].Line, "the environment variable "+name+
				" may bring other code into a program; command_environment says which may be set")
		}
		for _, program := range found {
			if err := p.listed(program, c.Argv[1:]); err != nil {
				return err
			}
		}
		if len(found) == 0 {
			return p.refuse("command_allowlist", p.security.AllowedCommands[0].Line, c.Argv[0]+" is not listed")
		}
	}
	return p.blocked(c, found)
}

// listed returns why a program may not run with some arguments under a list of allowed ones. What counts is the place where it
// lies: a program that goes by many names is only what it is called.
func (p *Policy) listed(program string, args []string) error {
	place, err := p.guest.Files.Resolve(program, false)
	if err != nil {
		return fault.On(program, err)
	}
	line, why := p.security.AllowedCommands[0].Line, place+" is not listed"
	for _, rule := range p.security.AllowedCommands {
		words := strings.Fields(rule.Value)
		switch {
		case !p.guest.isProgram(words[0], place):
		case len(words) == 1 || haveForm(args, words[1:]):
			return nil
		default:
			line, why = rule.Line, place+" is not listed with these arguments"
		}
	}
	return p.refuse("command_allowlist", line, why)
}

// haveForm reports whether arguments are those of a rule: each the same word, or any that is no option where the rule has *.
func haveForm(args, form []string) bool {
	return slices.EqualFunc(args, form, func(arg, word string) bool {
		return arg == word || word == "*" && arg != "" && !strings.HasPrefix(arg, "-")
	})
}

// isProgram reports whether the program that a rule names lies at a resolved place.
func (g *Guest) isProgram(rule, place string) bool {
	found, err := g.programs(rule, []string{searched}, "")
	if err != nil {
		return false
	}
	return slices.ContainsFunc(found, func(program string) bool {
		at, err := g.Files.Resolve(program, false)
		return err == nil && at == place
	})
}

// blocked returns why a command may not run under a list of forbidden programs.
func (p *Policy) blocked(c builtins.Command, found []string) error {
	names := []string{fsys.Base(c.Argv[0])}
	for _, rule := range p.security.DeniedCommands {
		denied, err := p.guest.isDenied(rule.Value, c.Argv[0], found)
		if err != nil {
			return fault.On(c.Argv[0], err)
		}
		if denied {
			return p.refuse("command_blocklist", rule.Line, first(found, c.Argv[0]))
		}
	}
	if len(p.security.DeniedCommands) == 0 {
		return nil
	}
	for _, program := range found {
		target, err := p.guest.Files.Resolve(program, true)
		if err != nil {
			return fault.On(program, err)
		}
		names = append(names, fsys.Base(target))
	}
	if !slices.ContainsFunc(names, func(name string) bool { return slices.Contains(wrappers, name) }) {
		return nil
	}
	for _, word := range words(c.Argv[1:]) {
		for _, rule := range p.security.DeniedCommands {
			there, err := p.guest.programs(word, c.Paths, c.Dir)
			if errors.Is(err, errNowhere) {
				there, err = nil, nil
			}
			if err != nil {
				continue // it is no path that leads to a program
			}
			if denied, err := p.guest.isDenied(rule.Value, word, there); err == nil && denied {
				return p.refuse("command_blocklist", rule.Line, c.Argv[0]+" with "+fsys.Base(rule.Value))
			}
		}
	}
	return nil
}

// isDenied reports whether a program, called by a name and found at some places, is the one that a rule names.
func (g *Guest) isDenied(rule, called string, found []string) (bool, error) {
	bare := !strings.Contains(rule, "/")
	if bare && fsys.Base(called) == rule {
		return true, nil
	}
	var lie []string // where the rule's program lies
	if !bare {
		lie = []string{rule}
	} else {
		for _, dir := range strings.Split(searched, ":") {
			lie = append(lie, fsys.Join(dir, rule))
		}
	}
	for _, program := range found {
		at, err := g.look(program, nil)
		if err != nil {
			return false, err
		}
		target := at.places[len(at.places)-1]
		if bare && fsys.Base(target) == rule {
			return true, nil
		}
		for _, denied := range lie {
			if same, err := g.sameProgram(denied, called, at, target); same || err != nil {
				return same, err
			}
		}
	}
	return false, nil
}

// sameProgram reports whether a program is the one at a path.
func (g *Guest) sameProgram(denied, called string, at object, target string) (bool, error) {
	own, err := g.Files.Resolve(denied, false)
	if err != nil {
		return false, err
	}
	if slices.Contains(at.places, own) {
		return true, nil
	}
	meta, err := g.Files.Identify(denied)
	switch {
	case err != nil && gone(err):
		return false, nil
	case err != nil:
		return false, err
	case at.names == 0 || at.file.Dev != meta.Dev || at.file.Ino != meta.Ino:
		return false, nil
	}
	if behind, err := g.Files.Resolve(denied, true); err == nil && (slices.Contains(several, fsys.Base(behind)) || slices.Contains(several, fsys.Base(target))) {
		return fsys.Base(called) == fsys.Base(denied), nil
	}
	return true, nil
}

// errNowhere: it is not known where a relative program would be looked for.
var errNowhere = fault.Wrapf(builtins.ErrPolicy, "refused: under a list of programs a relative one needs the directory to be said")

// programs gives what a name may stand for: by each list of directories the first program in it.
func (g *Guest) programs(name string, paths []string, dir string) ([]string, error) {
	if strings.Contains(name, "/") {
		if !fsys.IsAbs(name) {
			if !fsys.IsAbs(dir) {
				return nil, errNowhere
			}
			name = fsys.Join(dir, name)
		}
		return []string{name}, nil
	}
	var found []string
	for _, list := range paths {
		for _, dir := range strings.Split(list, ":") {
			program := fsys.Join(dir, name)
			if !fsys.IsAbs(dir) {
				continue
			}
			if meta, err := g.Files.Identify(program); err == nil && meta.Kind == fsys.File && meta.Mode&0o111 != 0 {
				if !slices.Contains(found, program) {
					found = append(found, program)
				}
				break
			}
		}
	}
	return found, nil
}

// words are all the words that a shell could make of arguments, and some more.
func words(args []string) []string {
	var list []string
	for _, arg := range args {
		list = append(list, strings.FieldsFunc(arg, func(c rune) bool {
			return strings.ContainsRune(" \t\r\n;|&()<>$`\"'{}=,!\\", c)
		})...)
	}
	return list
}

func first(list []string, otherwise string) string {
	if len(list) > 0 {
		return list[0]
	}
	return otherwise
}
