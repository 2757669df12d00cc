package service

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

const (
	// systemDir is where administrators, and enable, put units and links.
	systemDir = "/etc/systemd/system"
	// maxUnitFile bounds what is read of a unit's file, in bytes: that of systemd's own line of settings (LONG_LINE_MAX).
	maxUnitFile = 1 << 20
	nullDevice  = "/dev/null"
	maxAlso     = 64 // units that Also leads to
	maxLinks    = 1_000
)

// unitDirs are where systemd looks for units, the first ones first (systemd.unit(5)).
var unitDirs = []string{
	systemDir, "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system",
}

// tree reads the files of units.
type tree struct{ files *fsys.Root }

// found is the file of a unit.
type found struct {
	unit     unit   // its own name, where it was asked for by an alias; that of a template for an instance
	path     string // where it stands
	masked   bool
	linked   bool // its name in systemDir is a link to a file elsewhere
	install  install
	instance string // the default one of a template
}

// install is what the section [Install] says.
type install struct{ wantedBy, requiredBy, upheldBy, alias, also []string }

// enables reports whether enabling makes a link.
func (i install) enables() bool {
	return len(i.wantedBy)+len(i.requiredBy)+len(i.upheldBy)+len(i.alias) > 0
}

// hasUnits reports whether the tree is one of systemd.
func (t tree) hasUnits() bool {
	return t.isDir("/usr/lib/systemd/system") || t.isDir("/lib/systemd/system")
}

func (t tree) isDir(path string) bool {
	at, err := t.files.Follow(path)
	if err != nil {
		return false
	}
	defer at.Close()
	meta, err := at.Stat()
	return err == nil && meta.Kind == fsys.Directory
}

// find returns the file of a unit, or that of its template. The error is fs.ErrNotExist where there is none, and says so of one
// that is made from something else.
func (t tree) find(u unit) (*found, error) {
	f, err := t.lookup(u, u, 0)
	if errors.Is(err, fs.ErrNotExist) && u != u.template() {
		f, err = t.lookup(u.template(), u, 0)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = t.absent(u)
	}
	return f, err
}

// absent is the error about a unit without a file of its own.
func (t tree) absent(u unit) error {
	for _, dir := range slices.Sorted(maps.Keys(generatedDirs)) {
		if kind, _, err := t.what(dir + "/" + string(u)); err == nil && kind != fsys.Absent {
			return fault.Unsupported("it is %s, of this boot alone: what it is made from says when it starts", generatedDirs[dir])
		}
	}
	if kind, _, err := t.what(openrcInit + "/" + u.short()); err == nil && kind == fsys.File && u.kind() == suffix {
		return fault.Unsupported("it is a script in /etc/init.d, which update-rc.d or chkconfig enables")
	}
	return fault.Wrapf(fs.ErrNotExist, "there is no such unit")
}

// maxAliases is how many aliases may lead to a unit.
const maxAliases = 8

// lookup returns the file of a unit, with what stands beside it for the instance that was asked for.
func (t tree) lookup(u, asked unit, depth int) (*found, error) {
	for _, dir := range unitDirs {
		path := dir + "/" + string(u)
		kind, target, err := t.what(path)
		switch {
		case err != nil:
			return nil, err
		case kind == fsys.Absent:
			continue
		case kind == fsys.Symlink && leads(dir, target) == nullDevice:
			return &found{unit: u, path: path, masked: true}, nil
		case kind == fsys.Symlink && fsys.Base(target) != string(u) && depth < maxAliases:
			if other := unit(fsys.Base(target)); other.kindKnown() && slices.Contains(unitDirs, fsys.Parent(leads(dir, target))) {
				return t.lookup(other, other, depth+1)
			}
		}
		f := &found{unit: u, path: path, linked: kind == fsys.Symlink && dir == systemDir}
		if f.linked {
			f.path = leads(dir, target)
			f.linked = !slices.Contains(unitDirs, fsys.Parent(f.path))
		}
		return f, t.read(f, asked)
	}
	return nil, fs.ErrNotExist
}

// maxSearched is how many files of units are read for an alias.
const maxSearched = 10_000

// aliased returns the file of the unit that has an alias in its section [Install]; nil: none has.
func (t tree) aliased(ctx context.Context, alias unit) *found {
	read := 0
	for _, dir := range unitDirs {
		for _, name := range t.names(dir) {
			u := unit(name)
			if !u.kindKnown() || u.kind() != alias.kind() || u.isTemplate() {
				continue
			}
			if read++; read > maxSearched || context.Cause(ctx) != nil {
				return nil
			}
			f, err := t.lookup(u, u, 0)
			if err != nil || f.masked {
				continue
			}
			for _, text := range f.install.alias {
				if name, err := expand(text, u); err == nil && name == string(alias) {
					return f
				}
			}
		}
	}
	return nil
}

// kindKnown reports whether a name ends as that of a unit does.
func (u unit) kindKnown() bool {
	at := strings.LastIndexByte(string(u), '.')
	return at > 0 && slices.Contains(unitTypes, string(u)[at:])
}

// what says what stands at a path, links not followed, and where a link leads.
func (t tree) what(path string) (kind fsys.Kind, target string, err error) {
	at, err := t.files.At(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fsys.Absent, "", nil
	}
	if err != nil {
		return fsys.Absent, "", fault.On(path, err)
	}
	defer at.Close()
	meta, err := at.Capture()
	return meta.Kind, meta.Target, err
}

// leads returns where a link in a directory leads.
func leads(dir, target string) string {
	if fsys.IsAbs(target) {
		return fsys.Clean(target)
	}
	return fsys.Join(dir, target)
}

// read reads [Install] of a unit's file, and of the files that go with it, or with the instance of it that was asked for.
func (t tree) read(f *found, asked unit) error {
	content, err := t.files.ReadFile(f.path, maxUnitFile)
	if err != nil {
		return fault.On(f.path, err)
	}
	f.masked = len(content) == 0 && fsys.Parent(f.path) != systemDir || f.masked
	f.parse(string(content))
	var dirs []string
	for _, of := range []unit{asked, asked.template()} { // what is of an instance goes before, wherever it lies
		for _, dir := range unitDirs {
			dirs = append(dirs, dir+"/"+string(of)+".d")
		}
	}
	for _, path := range dropIns(dirs, t.names) {
		if content, err := t.files.ReadFile(path, maxUnitFile); err == nil { // a link to nothing says nothing
			f.parse(string(content))
		}
	}
	return nil
}

// dropIns are the files in directories that go with a unit, in the order in which they are read: by name, and of one name that
// of the first directory alone.
func dropIns(dirs []string, names func(dir string) []string) (paths []string) {
	of := map[string]string{}
	for _, dir := range dirs {
		for _, name := range names(dir) {
			if of[name] == "" && strings.HasSuffix(name, ".conf") {
				of[name] = dir + "/" + name
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(of)) {
		paths = append(paths, of[name])
	}
	return paths
}

// maxNames bounds the names in a directory of units that are read.
const maxNames = 50_000

// names are what is in a directory, sorted; nothing where it cannot be read.
func (t tree) names(dir string) []string {
	at, err := t.files.Follow(dir)
	if err != nil {
		return nil
	}
	defer at.Close()
	open, err := at.OpenDir()
	if err != nil {
		return nil
	}
	defer open.Close()
	names, _ := open.Names(maxNames)
	slices.Sort(names)
	return names
}

// parse reads the section [Install] of a file of settings (systemd.syntax(7)). An empty value takes back those before it.
func (f *found) parse(content string) {
	section := ""
	var before strings.Builder // of a setting that goes on, also at the end of the file
	for line := range strings.Lines(strings.TrimPrefix(content, "\ufeff")) {
		goesOn := strings.HasSuffix(strings.TrimRight(line, "\r\n"), "\\")
		line = strings.TrimSpace(line)
		if line != "" && (line[0] == '#' || line[0] == ';') { // also between the lines of one setting
			continue
		}
		if goesOn {
			before.WriteString(strings.TrimSuffix(line, "\\") + " ")
			continue
		}
		before.WriteString(line)
		f.setting(&section, strings.TrimSpace(before.String()))
		before.Reset()
	}
	f.setting(&section, strings.TrimSpace(before.String()))
}

// setting reads a setting, or the head of a section, which is that of the settings after it.
func (f *found) setting(section *string, text string) {
	if strings.HasPrefix(text, "[") {
		*section = text
		return
	}
	if *section != "[Install]" || text == "" {
		return
	}
	key, value, _ := strings.Cut(text, "=")
	words := strings.Fields(value)
	for i, word := range words {
		if n := len(word); n > 1 && (word[0] == '"' || word[0] == '\'') && word[n-1] == word[0] {
			words[i] = word[1 : n-1]
		}
	}
	if strings.TrimSpace(key) == "DefaultInstance" {
		f.instance = strings.TrimSpace(value)
		return
	}
	list := map[string]*[]string{
		"WantedBy": &f.install.wantedBy, "RequiredBy": &f.install.requiredBy, "UpheldBy": &f.install.upheldBy,
		"Alias": &f.install.alias, "Also": &f.install.also,
	}[strings.TrimSpace(key)]
	switch {
	case list == nil:
	case len(words) == 0:
		*list = nil
	default:
		*list = append(*list, words...)
	}
}

// link is a link that enables a unit.
type link struct{ path, target string }

// links returns what enables a unit: its own links, and those of the units that Also names.
func (t tree) links(u unit) ([]link, error) {
	var list []link
	seen := map[unit]bool{}
	err := t.addLinks(u, seen, &list)
	if err == nil && len(list) == 0 {
		err = &fault.Error{
			Err:  fault.Refuse("it has no [Install] section that says by what it would be started"),
			Hint: "such a unit is started by others; service.start starts it now",
		}
	}
	return list, err
}

func (t tree) addLinks(u unit, seen map[unit]bool, list *[]link) error {
	if seen[u] {
		return nil
	}
	if seen[u] = true; len(seen) > maxAlso {
		return fault.Wrapf(fault.ErrTooLarge, "Also leads to more than %d units", maxAlso)
	}
	f, err := t.find(u)
	if err != nil {
		return err
	}
	if f.masked {
		return &fault.Error{Err: fault.Refuse("it is masked"), Hint: "service.unmask takes that back"}
	}
	named := len(f.install.wantedBy) + len(f.install.requiredBy) + len(f.install.upheldBy) + len(f.install.alias) + len(f.install.also)
	if len(*list)+named > maxLinks {
		return fault.Wrapf(fault.ErrTooLarge, "its [Install] leads to more than %d links", maxLinks)
	}
	name := f.name(u)
	if name.isTemplate() && f.install.enables() {
		return fault.Invalid("it is a template, which needs a name behind the @")
	}
	for _, by := range []struct {
		dir   string
		units []string
	}{{".wants/", f.install.wantedBy}, {".requires/", f.install.requiredBy}, {".upholds/", f.install.upheldBy}} {
		for _, text := range by.units {
			target, err := expand(text, name)
			if err != nil {
				return err
			}
			*list = append(*list, link{systemDir + "/" + target + by.dir + string(name), f.path})
		}
	}
	for _, text := range f.install.alias {
		alias, err := expand(text, name)
		if err != nil {
			return err
		}
		if unit(alias).kind() != name.kind() {
			return fault.Invalid("its alias %s is of another kind", alias)
		}
		_, instance, templated := name.split()
		if _, other, also := unit(alias).split(); also != templated || also && other != "" && other != instance {
			return fault.Invalid("%s can be no alias of %s", alias, name)
		}
		if alias != string(name) {
			*list = append(*list, link{systemDir + "/" + alias, f.path})
		}
	}
	for _, text := range f.install.also {
		also, err := expand(text, name)
		if err != nil {
			return err
		}
		if err := t.addLinks(unit(also), seen, list); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fault.On(also, err)
		}
	}
	return nil
}

// name is that under which a unit is enabled: what was asked for, but for an alias the unit's own, and for a template its
// default instance.
func (f *found) name(asked unit) unit {
	_, instance, templated := asked.split()
	switch {
	case !templated || !f.unit.isTemplate():
		return f.unit
	case instance == "" && f.instance != "":
		return f.unit.instance(f.instance)
	}
	return f.unit.instance(instance)
}

// expand puts the parts of a unit's name into the name of another one (systemd.unit(5), "Specifiers").
func expand(text string, u unit) (string, error) {
	prefix, instance, _ := u.split()
	last := prefix[strings.LastIndexByte(prefix, '-')+1:]
	var b strings.Builder
	for rest := text; rest != ""; {
		at := strings.IndexByte(rest, '%')
		if at < 0 || at+1 == len(rest) {
			b.WriteString(rest)
			break
		}
		b.WriteString(rest[:at])
		switch rest[at+1] {
		case 'n':
			b.WriteString(string(u))
		case 'N':
			b.WriteString(strings.TrimSuffix(string(u), u.kind()))
		case 'p':
			b.WriteString(prefix)
		case 'i':
			b.WriteString(instance)
		case 'j':
			b.WriteString(last)
		case '%':
			b.WriteByte('%')
		default:
			return "", fault.Unsupported("%%%c in %q of the section [Install] is not supported", rest[at+1], text)
		}
		rest = rest[at+2:]
	}
	other := unit(b.String())
	if !other.kindKnown() || !unitName().MatchString(strings.TrimSuffix(string(other), other.kind())) {
		return "", fault.Invalid("%.60q in the section [Install] is no name of a unit", text)
	}
	return b.String(), nil
}

// enabledBy returns the links in the administrator's directory by which a unit is enabled, of a template those of all its
// instances.
func (t tree) enabledBy(f *found, asked unit) (list []string) {
	name := f.name(asked)
	mine := func(base string) bool {
		return base == string(name) || asked.isTemplate() && unit(base).kindKnown() && unit(base).template() == f.unit
	}
	for _, entry := range t.names(systemDir) {
		path := systemDir + "/" + entry
		if isLinkDir(entry) {
			for _, name := range t.names(path) {
				if mine(name) {
					list = append(list, path+"/"+name)
				}
			}
			continue
		}
		kind, target, err := t.what(path)
		if err != nil || kind != fsys.Symlink || leads(systemDir, target) == nullDevice {
			continue
		}
		if base := fsys.Base(target); base == string(f.unit) && entry != string(f.unit) || entry == string(f.unit) && f.linked {
			list = append(list, path)
		}
	}
	return list
}

// isLinkDir reports whether a directory is one of links to units.
func isLinkDir(name string) bool {
	return strings.HasSuffix(name, ".wants") || strings.HasSuffix(name, ".requires") || strings.HasSuffix(name, ".upholds")
}

// state says how a unit is enabled, in the words of systemd (systemctl(1), "is-enabled").
func (t tree) state(u unit) (string, error) {
	f, err := t.find(u)
	switch {
	case err != nil:
		return "", err
	case f.masked:
		return maskedBy(fsys.Parent(f.path)), nil
	}
	by := slices.DeleteFunc(t.enabledBy(f, u), func(path string) bool { return path == systemDir+"/"+string(f.unit) })
	if len(by) > 0 {
		return f.word("enabled", f.linked), nil
	}
	return f.word("", f.linked), nil
}

// word is the state of a unit that is not masked. enabled says how links enable it, if they do; linked that its file stands
// elsewhere.
func (f *found) word(enabled string, linked bool) string {
	switch {
	case enabled != "":
		return enabled
	case linked:
		return "linked"
	case f.install.enables():
		return "disabled"
	case len(f.install.also) > 0:
		return "indirect"
	}
	return "static"
}
