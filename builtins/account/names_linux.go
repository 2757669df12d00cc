package account

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/text/lazyregexp"
)

const (
	maxName     = 32  // bytes of a new name: what utmp and the tools take
	maxAnyName  = 256 // bytes of one that is looked up
	maxField    = 1024
	maxPassword = 511 // bytes that crypt(3) takes
	maxHash     = 384 // bytes of a hash that crypt(3) makes
)

// newName is what useradd takes for a name by default, and capitals and dots, which are in use.
var newName = lazyregexp.New(`^[A-Za-z_][A-Za-z0-9_.-]*\$?$`)

// checkName refuses what cannot be the name of a user, so that it is not looked for.
func checkName(name string) error {
	switch {
	case name == "":
		return fault.Invalid("the name is empty")
	case len(name) > maxAnyName:
		return fault.Invalid("the name has %d bytes, more than %d", len(name), maxAnyName)
	case strings.ContainsAny(name[:1], "-+#~"):
		return fault.Invalid("%q is no name: it begins with %q", name, name[0])
	case strings.ContainsAny(name, ":/, ") || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl):
		return fault.Invalid("%q is no name", name)
	}
	return nil
}

// checkNewName refuses what should not become one.
func checkNewName(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	if len(name) > maxName || !newName().MatchString(name) {
		return fault.Invalid("%q is no name for a user: letters, digits, _, . and -, not a digit first, at most %d", name, maxName)
	}
	return nil
}

// checkField refuses what a field of passwd cannot hold.
func checkField(what, value string) error {
	switch {
	case len(value) > maxField:
		return fault.Invalid("%s has %d bytes, more than %d", what, len(value), maxField)
	case strings.Contains(value, ":") || !utf8.ValidString(value) || strings.ContainsFunc(value, unicode.IsControl):
		return fault.Invalid("%s has a colon, a control character or what is not UTF-8", what)
	}
	return nil
}

// checkPath refuses what is no path for a home directory or a shell.
func checkPath(what, path string) error {
	if err := checkField(what, path); err != nil {
		return err
	}
	if !strings.HasPrefix(path, "/") || fsys.Clean(path) != path {
		return fault.Invalid("%s is %q, and no clean path from the root on", what, path)
	}
	return nil
}

// checkPassword refuses what cannot be a password, or its hash. It does not repeat it.
func checkPassword(password []byte, crypted bool) error {
	most, what := maxPassword, "the password"
	if crypted {
		most, what = maxHash, "the hash"
	}
	switch {
	case len(password) == 0:
		return fault.Invalid("%s is empty", what)
	case len(password) > most:
		return fault.Invalid("%s has %d bytes, more than %d", what, len(password), most)
	case !utf8.Valid(password) || strings.ContainsFunc(string(password), unicode.IsControl):
		return fault.Invalid("%s has a control character, or what is not UTF-8", what)
	case crypted && !isHash(string(password)):
		return fault.Invalid("it is no hash as crypt(3) makes it, and not ! or *")
	}
	return nil
}

// hashText is what a hash is written with: the setting between dollars, base64 of its kind, and what locks it in front.
var hashText = lazyregexp.New(`^!{0,2}(\*|\$[a-zA-Z0-9-]{1,16}\$[!-9;-~]+|[./0-9A-Za-z]{13}|_[./0-9A-Za-z]{19})$`)

// digestDigits are how many digits the last part of a hash has, after the last dollar: one that was cut off fits no password.
var digestDigits = map[string]int{"1": 22, "5": 43, "6": 86, "2a": 53, "2b": 53, "2y": 53, "7": 43, "y": 43, "gy": 43}

func isHash(text string) bool {
	if text == "!" || text == "!!" {
		return true
	}
	parts := strings.Split(text, "$")
	want := 0
	if len(parts) > 2 {
		want = digestDigits[parts[1]]
	}
	return hashText().MatchString(text) && (want == 0 || len(parts) > 3 && len(parts[len(parts)-1]) == want)
}
