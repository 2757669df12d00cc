package account

import (
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
)

// Where the guest says how its accounts are made. What a file of the administrator's does not say because it is not there, that
// of the distribution below vendorDir says, as openSUSE has it; beside both there are files for parts of it (login.defs.d).
const (
	loginDefs   = "/etc/login.defs"
	useraddFile = "/etc/default/useradd"
	vendorDir   = "/usr"
	maxParts    = 1000
	maxDefaults = 1 << 20 // bytes of each
)

// defaults are the settings of login.defs(5) and useradd(8), by name. What a guest does not set is as shadow-utils has it.
type defaults struct{ login, useradd map[string]string }

func readDefaults(root *fsys.Root) defaults {
	d := defaults{login: map[string]string{}, useradd: map[string]string{}}
	for _, dir := range []string{"", vendorDir} {
		if addSettings(d.useradd, root, dir+useraddFile, func(r rune) bool { return r == '=' }) {
			break
		}
	}
	blank := func(r rune) bool { return r == ' ' || r == '\t' }
	for _, dir := range []string{"", vendorDir} {
		if addSettings(d.login, root, dir+loginDefs, blank) {
			break
		}
	}
	parts := map[string]string{} // of two files of one name the administrator's counts
	for _, dir := range []string{vendorDir + loginDefs + ".d", loginDefs + ".d"} {
		if at, err := openDir(root, dir); err == nil {
			names, _ := at.Names(maxParts)
			at.Close()
			for _, name := range names {
				parts[name] = dir + "/" + name
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(parts)) {
		if strings.HasSuffix(name, ".defs") {
			addSettings(d.login, root, parts[name], blank)
		}
	}
	return d
}

// addSettings reads a file of names and values, one on a line, and reports whether it could.
func addSettings(values map[string]string, root *fsys.Root, path string, between func(rune) bool) bool {
	data, err := root.ReadFile(path, maxDefaults)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		at := strings.IndexFunc(line, between)
		if at <= 0 || line[0] == '#' {
			continue
		}
		values[line[:at]] = strings.Trim(strings.TrimSpace(line[at+1:]), `"`)
	}
	return true
}

// number returns a setting of login.defs; decimal, octal or hexadecimal.
func (d defaults) number(name string, otherwise int64) int64 {
	if n, err := strconv.ParseInt(d.login[name], 0, 64); err == nil {
		return n
	}
	return otherwise
}

func (d defaults) id(name string, otherwise int64) uint32 {
	return uint32(min(max(d.number(name, otherwise), 0), math.MaxUint32-1))
}

// ids are the first and the last number of users or groups, as prefix UID or GID says.
func (d defaults) ids(prefix string, system bool) (first, last uint32) {
	first = d.id(prefix+"_MIN", 1000)
	if system {
		return d.id("SYS_"+prefix+"_MIN", 101), d.id("SYS_"+prefix+"_MAX", int64(first)-1)
	}
	return first, d.id(prefix+"_MAX", 60000)
}

// said returns a setting of useradd.
func (d defaults) said(name, otherwise string) string {
	if value := d.useradd[name]; value != "" {
		return value
	}
	return otherwise
}

func (d defaults) home(name string) string { return fsys.Join(d.said("HOME", "/home"), name) }

// skeleton is what a new home directory is a copy of.
func (d defaults) skeleton() string { return d.said("SKEL", defaultSkeleton) }

// makesMail reports whether a new user gets a mail spool.
func (d defaults) makesMail(system bool) bool {
	return !system && d.useradd["CREATE_MAIL_SPOOL"] == "yes"
}

// mailOf is the mail spool of a user.
func (d defaults) mailOf(name string) string {
	dir := d.login["MAIL_DIR"]
	if checkPath("", dir) != nil {
		dir = "/var/mail"
	}
	return fsys.Join(dir, name)
}

// homeMode is the mode of a new home directory.
func (d defaults) homeMode() uint32 {
	if mode := d.number("HOME_MODE", -1); mode >= 0 && mode <= 0o7777 {
		return uint32(mode)
	}
	return 0o777 &^ uint32(d.number("UMASK", 0o022)) & 0o777
}

// days are the fields of a new line of shadow after the day of the last change.
func (d defaults) days(system bool) []string {
	if system {
		return []string{"", "", "", d.inactive(), d.expire(), ""}
	}
	field := func(name string) string {
		if n := d.number(name, -1); n >= 0 {
			return strconv.FormatInt(n, 10)
		}
		return ""
	}
	return []string{field("PASS_MIN_DAYS"), field("PASS_MAX_DAYS"), field("PASS_WARN_AGE"), d.inactive(), d.expire(), ""}
}

// inactive is how many days after its expiry a password ends the account; empty: never.
func (d defaults) inactive() string {
	if n, err := strconv.ParseInt(d.useradd["INACTIVE"], 10, 32); err == nil && n >= 0 {
		return strconv.FormatInt(n, 10)
	}
	return ""
}

// expire is the day on which a new account ends, in days since 1970; empty: never.
func (d defaults) expire() string {
	text := d.useradd["EXPIRE"]
	if day, err := time.Parse(time.DateOnly, text); err == nil {
		return strconv.FormatInt(day.Unix()/secondsOfDay, 10)
	}
	if n, err := strconv.ParseUint(text, 10, 31); err == nil {
		return strconv.FormatUint(n, 10)
	}
	return ""
}

const secondsOfDay = 24 * 60 * 60

// today is the day, since 1970, that a change of a password gets. SOURCE_DATE_EPOCH stands for a later one, as it does for
// shadow-utils: an image that is built again is the same.
func (r *Room) today() int64 {
	now := r.now().Unix()
	if epoch, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64); err == nil && epoch >= 0 {
		now = min(now, epoch)
	}
	return now / secondsOfDay
}
