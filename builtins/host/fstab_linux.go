package host

import (
	"bytes"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	wiretext "github.com/quantix-kvm/guest-agent/wire/text"
	"github.com/quantix-kvm/guest-agent/wire/text/lazyregexp"
)

// fstabEntry is a line of fstab(5), its escapes decoded.
type fstabEntry struct {
	source, target, fstype, options string
	dump, pass                      uint64
}

// numbersBehind matches options that have the last two fields of a line of fstab in them.
var numbersBehind = lazyregexp.New(` [0-9] [0-9]$`)

// commentBehind matches the end of a line of fstab, with the comment that may stand before it.
var commentBehind = lazyregexp.New(`([ \t]+#[^\r\n]*)?\r?\n?$`)

var fstypeName = lazyregexp.New(`^[A-Za-z0-9][A-Za-z0-9._+,-]*$`)

// newEntry checks what a caller wants, for a target that was resolved.
func newEntry(in *pb.MountArgs, target string) (fstabEntry, error) {
	e := fstabEntry{
		source: wiretext.UnescapePath(in.Source), target: wiretext.UnescapePath(target), fstype: in.Fstype, options: in.Options,
		dump: uint64(in.Dump), pass: uint64(in.Pass),
	}
	if e.options == "" {
		e.options = "defaults"
	}
	switch {
	case e.source == "":
		return e, fault.Invalid("source is not said")
	case isBind(e.options) && !fsys.IsAbs(e.source):
		return e, fault.Invalid("the source of a bind mount is a path from the root on")
	case e.fstype == "" && !isBind(e.options):
		return e, fault.Invalid("fstype is not said")
	case e.fstype == "":
		e.fstype = "none"
	case e.fstype == "swap":
		return e, fault.Invalid("swap is not mounted; the script swap-file makes some")
	case !fstypeName().MatchString(e.fstype):
		return e, fault.Invalid("%q is no type of a file system", e.fstype)
	case strings.Contains(e.source, "/") && !fsys.IsAbs(e.source) && !strings.ContainsAny(e.source, ":=") &&
		!slices.Contains([]string{"zfs", "9p", "virtiofs"}, e.fstype):
		return e, fault.Invalid("%q is no path from the root on", e.source)
	case fuseProgram(e.fstype, e.source) == "":
		return e, fault.Invalid("%s with the source %q says no program", e.fstype, e.source)
	case e.dump > 9 || e.pass > 9:
		return e, fault.Invalid("dump and pass are numbers of one digit")
	}
	name, value, tagged := strings.Cut(e.source, "=")
	if tagged && tags[name] != "" && (value == "" || strings.ContainsAny(value, `"'`) || slices.Contains(strings.Split(value, "/"), "..")) {
		return e, fault.Invalid("%q names no file system", e.source)
	}
	for name, field := range map[string]string{"source": e.source, "target": e.target, "options": e.options} {
		if strings.ContainsFunc(field, unicode.IsControl) {
			return e, fault.Invalid("%s holds a control character, such as the end of a line", name)
		}
	}
	if numbersBehind().MatchString(e.options) {
		return e, fault.Invalid("options end with two numbers; they are dump and pass")
	}
	for option := range strings.SplitSeq(e.options, ",") {
		switch option {
		case "":
			return e, fault.Invalid("options hold an empty one")
		case "remount", "move":
			return e, fault.Invalid("%s is no option of a file system that is mounted anew", option)
		}
		if strings.Trim(option, " ") != option {
			return e, fault.Invalid("options: %q begins or ends with a blank", option)
		}
		for _, p := range optionPaths(option) {
			if !fsys.IsAbs(p) || strings.Contains(p, `\`) {
				return e, fault.Invalid("%s: takes paths from the root on, without backslashes", option)
			}
		}
	}
	return e, nil
}

// tags are what a source may begin with in place of a path, each with the directory in which udev lists the disks by it.
var tags = map[string]string{
	"UUID": "/dev/disk/by-uuid", "LABEL": "/dev/disk/by-label", "PARTUUID": "/dev/disk/by-partuuid",
	"PARTLABEL": "/dev/disk/by-partlabel", "ID": "/dev/disk/by-id",
}

// String is the line.
func (e fstabEntry) String() string {
	fields := []string{e.source, e.target, e.fstype, e.options}
	for i := range fields {
		fields[i] = escapeField(fields[i])
	}
	return strings.Join(append(fields, strconv.FormatUint(e.dump, 10), strconv.FormatUint(e.pass, 10)), " ")
}

// escapeField escapes what separates fields, begins a comment or begins an escape.
func escapeField(field string) string {
	var b strings.Builder
	for i := range len(field) {
		switch c := field[i]; {
		case c == ' ' || c == '\t' || c == '\\' || c == '#' && i == 0:
			b.WriteByte('\\')
			octal := strconv.FormatUint(uint64(c), 8)
			b.WriteString("000"[len(octal):] + octal)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// parseEntry reads a line; false: it is a comment, blank, or no entry.
func parseEntry(line string) (e fstabEntry, ok bool) {
	fields := fsys.MountFields(line)
	if len(fields) < 3 || strings.HasPrefix(fields[0], "#") {
		return e, false
	}
	e = fstabEntry{
		source: fsys.UnescapeMount(fields[0]), target: fsys.UnescapeMount(fields[1]), fstype: fsys.UnescapeMount(fields[2]),
		options: "defaults",
	}
	if len(fields) > 3 {
		e.options = fsys.UnescapeMount(fields[3])
	}
	for i, number := range []*uint64{&e.dump, &e.pass} {
		if len(fields) > 4+i {
			n, err := strconv.ParseUint(fields[4+i], 10, 32)
			if err != nil {
				*number = math.MaxUint64 // what is no number is nobody's wish
				return e, true
			}
			*number = n
		}
	}
	return e, true
}

// editFstab returns fstab with the entry for a target; nil: with none. All other lines stay as they are, and so does an entry
// that says the same. leads reports whether another target than this one leads to it, by a link; nil: none does.
func editFstab(
	old []byte, target string, want *fstabEntry, leads func(e fstabEntry) bool,
) (content []byte, was *fstabEntry, err error) {
	lines := bytes.SplitAfter(old, []byte("\n"))
	at := -1
	for i, line := range lines {
		e, ok := parseEntry(string(line))
		e.target = path.Clean(e.target)
		if !ok || e.fstype == "swap" || e.target != target && (leads == nil || !leads(e)) {
			continue
		}
		e.target = target
		if was != nil {
			return nil, nil, fault.Refuse("lines %d and %d are both of %s", at+1, i+1, target)
		}
		at, was = i, &e
	}
	switch {
	case was != nil && want != nil && *was == *want, was == nil && want == nil:
		return old, was, nil
	case want == nil:
		return bytes.Join(append(lines[:at:at], lines[at+1:]...), nil), was, nil
	case was != nil:
		end := strings.TrimSuffix(string(commentBehind().Find(lines[at])), "\n") + "\n"
		lines[at] = []byte(want.String() + end)
		return bytes.Join(lines, nil), was, nil
	}
	if len(old) > 0 && old[len(old)-1] != '\n' {
		old = append(bytes.Clone(old), '\n')
	}
	return append(bytes.Clone(old), want.String()+"\n"...), nil, nil
}
