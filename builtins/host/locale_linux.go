package host

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"
	"syscall"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/edit"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text/lazyregexp"
)

// Where locale and keyboard stand: a file of each pair is systemd's, the other one Debian's.
const (
	localeConf     = "/etc/locale.conf"      // locale.conf(5)
	debianLocale   = "/etc/default/locale"   // pam_env reads it
	environment    = "/etc/environment"      // pam_env reads it, too
	consoleConf    = "/etc/vconsole.conf"    // vconsole.conf(5)
	debianKeyboard = "/etc/default/keyboard" // keyboard(5)
	debianVersion  = "/etc/debian_version"   // decides which of them a guest without either takes
	localeDir      = "/usr/lib/locale"       // a directory for each locale, and the archive
	localeArchive  = localeDir + "/locale-archive"
	xkbRules       = "/usr/share/X11/xkb/rules/base.lst"
	maxNames       = 4 << 20 // bytes of the names of an archive, and of the rules
	maxKeymapDepth = 6       // of directories with keymaps
)

var (
	localeName = lazyregexp.New(`^[A-Za-z][A-Za-z0-9_.@-]{0,63}$`)
	keymapName = lazyregexp.New(`^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$`)
	keymapDirs = []string{"/usr/share/kbd/keymaps", "/usr/share/keymaps", "/usr/lib/kbd/keymaps"}
)

func localeAccess(in *pb.LocaleArgs) builtins.Access {
	return rewrites(in.New != "", localeConf, debianLocale)
}

func keymapAccess(in *pb.KeymapArgs) builtins.Access {
	return rewrites(in.New != "", consoleConf, debianKeyboard)
}

// locale returns the locale of programs that say nothing else, or sets it. Programs that run, and who is logged in, keep
// theirs.
func (r *Room) locale(ctx context.Context, call *builtins.Call, in *pb.LocaleArgs) (*pb.LuaValue, error) {
	root, err := r.files(call)
	if err != nil {
		return nil, err
	}
	if in.New == "" {
		name, err := variable(root, "LANG", localeConf, debianLocale)
		if name == "" {
			name = "C" // as the C library has it
		}
		return text(name), err
	}
	if !localeName().MatchString(in.New) {
		return nil, fault.Invalid("%q is no name of a locale, such as de_AT.UTF-8", in.New)
	}
	if there, err := hasLocale(root, in.New); err != nil || !there {
		return nil, missing(in.New, "locale", "the guest has those that locale -a lists", err)
	}
	if err := checkOverrides(root, in.New); err != nil {
		return nil, err
	}
	files, err := settingFiles(root, localeConf, debianLocale)
	if err != nil {
		return nil, err
	}
	changed := false
	for _, file := range files {
		also, err := r.assign(ctx, call, "host.locale", file, []assignment{{"LANG", in.New}})
		if err != nil {
			return nil, err
		}
		changed = changed || also
	}
	return yes(changed), nil
}

// checkOverrides refuses a locale that would be without effect: LC_ALL goes before LANG. systemd does not read it, and pam_env
// does.
func checkOverrides(root *fsys.Root, locale string) error {
	for _, file := range []string{debianLocale, environment} {
		all, err := variable(root, "LC_ALL", file)
		if err == nil && all != "" && normalLocale(all) != normalLocale(locale) {
			err = fault.Refuse("LC_ALL is %s there, which goes before LANG", all)
		}
		if err != nil {
			return fault.On(file, err)
		}
	}
	return nil
}

// keymap returns the layout of the console's keyboard, or sets it: from the next boot on.
func (r *Room) keymap(ctx context.Context, call *builtins.Call, in *pb.KeymapArgs) (*pb.LuaValue, error) {
	root, err := r.files(call)
	if err != nil {
		return nil, err
	}
	if in.New == "" {
		name, err := variable(root, "KEYMAP", consoleConf)
		if name == "" && err == nil {
			name, err = variable(root, "XKBLAYOUT", debianKeyboard)
		}
		if name == "" {
			name = "us" // as the kernel has it
		}
		return text(name), err
	}
	if !keymapName().MatchString(in.New) {
		return nil, fault.Invalid("%q is no name of a keyboard layout, such as de", in.New)
	}
	files, err := settingFiles(root, consoleConf, debianKeyboard)
	if err != nil {
		return nil, err
	}
	for _, file := range files { // all of them first: one alone is not begun
		has := hasKeymap
		if file == debianKeyboard {
			has = hasLayout
		}
		if there, err := has(root, in.New); err != nil || !there {
			return nil, missing(in.New, "keyboard layout", "layouts come with the packages kbd, console-data and xkb-data", err)
		}
	}
	changed := false
	for _, file := range files {
		want := []assignment{{"KEYMAP", in.New}}
		if file == debianKeyboard {
			want = []assignment{{"XKBLAYOUT", in.New}}
			if old, err := variable(root, "XKBLAYOUT", file); err == nil && old != in.New {
				want = append(want, assignment{"XKBVARIANT", ""}) // that of the former layout
			}
		}
		also, err := r.assign(ctx, call, "host.keymap", file, want)
		if err != nil {
			return nil, err
		}
		changed = changed || also
	}
	return yes(changed), nil
}

// missing is the error about what the guest does not have; err is why that is not known.
func missing(name, what, hint string, err error) error {
	if err != nil {
		return err
	}
	return &fault.Error{Object: name, Err: fault.Wrapf(fs.ErrNotExist, "this guest has no such %s", what), Hint: hint}
}

// settingFiles returns those of two files that are there; where none is, the one that the guest's kind takes. A link to the
// other one is the same file.
func settingFiles(root *fsys.Root, common, debian string) (files []string, err error) {
	seen := map[string]bool{}
	for _, file := range []string{common, debian} {
		resolved, err := root.Resolve(file, true)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fault.On(file, err)
		}
		if !seen[resolved] {
			seen[resolved] = true
			if exists(root, file) {
				files = append(files, file)
			}
		}
	}
	switch {
	case len(files) > 0:
		return files, nil
	case exists(root, debianVersion):
		return []string{debian}, nil
	}
	return []string{common}, nil
}

func exists(root *fsys.Root, path string) bool {
	meta, err := root.Stat(path)
	return err == nil && meta.Kind != fsys.Absent
}

// assignment is a variable of a file of the shell's.
type assignment struct{ name, value string }

// variable returns what the first of some files that has a variable says; empty: none has.
func variable(root *fsys.Root, name string, files ...string) (string, error) {
	for _, file := range files {
		content, err := root.ReadFile(file, maxSetting)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", fault.On(file, err)
		}
		value := ""
		for line := range strings.Lines(string(content)) {
			if text, ok := assigned(line, name); ok {
				value = text
			}
		}
		if value != "" {
			return value, nil
		}
	}
	return "", nil
}

// assigned returns what a line gives a variable.
func assigned(line, name string) (value string, ok bool) {
	value, ok = strings.CutPrefix(strings.TrimPrefix(strings.TrimSpace(line), "export "), name+"=")
	if !ok {
		return "", false
	}
	if quote := value[:min(1, len(value))]; quote == `"` || quote == "'" {
		if inner, _, closed := strings.Cut(value[1:], quote); closed {
			return inner, true
		}
	}
	value, _, _ = strings.Cut(value, "#") // as pam_env has it; names of locales and layouts have none
	return strings.TrimSpace(value), true
}

// assign makes a file give variables these values, and keeps all else that it says.
func (r *Room) assign(ctx context.Context, call *builtins.Call, op, file string, want []assignment) (bool, error) {
	return r.edit.Put(ctx, call, edit.File{
		Op: op, Path: file, Follow: true, Parents: true,
		Edit: func(_ context.Context, old []byte) ([]byte, error) { return []byte(assignAll(string(old), want)), nil },
	})
}

// assignAll changes the lines of variables that have another value, and adds those that are not there. An empty value is not
// added.
func assignAll(old string, want []assignment) string {
	lines := strings.SplitAfter(old, "\n")
	if last := len(lines) - 1; lines[last] == "" {
		lines = lines[:last]
	}
	for _, w := range want {
		found := false
		for i, line := range lines {
			have, ok := assigned(line, w.name)
			if !ok {
				continue
			}
			if found = true; have != w.value {
				lines[i] = w.name + "=" + quoted(w.value) + "\n"
			}
		}
		if !found && w.value != "" {
			if last := len(lines) - 1; last >= 0 && !strings.HasSuffix(lines[last], "\n") {
				lines[last] += "\n"
			}
			lines = append(lines, w.name+"="+quoted(w.value)+"\n")
		}
	}
	return strings.Join(lines, "")
}

// quoted is a value as the shell, pam_env and systemd read it alike.
func quoted(value string) string {
	if value == "" {
		return `""`
	}
	return value
}

// hasLocale reports whether the C library finds a locale: it brings C and POSIX itself, and compares the character sets of
// names without case and signs.
func hasLocale(root *fsys.Root, name string) (bool, error) {
	want := normalLocale(name)
	if slices.Contains([]string{"C", "POSIX", "C.utf8"}, want) {
		return true, nil
	}
	names, err := names(root, localeDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fault.On(localeDir, err)
	}
	archived, err := archiveNames(root)
	if err != nil {
		return false, fault.On(localeArchive, err)
	}
	return slices.ContainsFunc(append(names, archived...), func(have string) bool { return normalLocale(have) == want }), nil
}

// normalLocale returns de_AT.utf8@euro for de_AT.UTF-8@euro.
func normalLocale(name string) string {
	language, modifier, modified := strings.Cut(name, "@")
	language, charset, has := strings.Cut(language, ".")
	if has {
		language += "." + strings.Map(func(r rune) rune {
			if r == '-' || r == '_' || r == '.' {
				return -1
			}
			return r
		}, strings.ToLower(charset))
	}
	if modified {
		language += "@" + modifier
	}
	return language
}

// maxEntries bounds the names in a directory that are read.
const maxEntries = 10_000

// names lists a directory.
func names(root *fsys.Root, path string) ([]string, error) {
	at, err := root.Follow(path)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	dir, err := at.OpenDir()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return dir.Names(maxEntries)
}

// The head of glibc's archive of locales (its locale/locarchive.h): numbers of 32 bits in the order of the machine that made
// it.
const (
	archiveMagic  = 0xde020109
	archiveHead   = 8 * 4
	stringsOffset = 5 * 4
	stringsUsed   = 6 * 4
)

// archiveNames returns the names of the locales in the archive, and no others; without an archive there are none.
func archiveNames(root *fsys.Root) ([]string, error) {
	at, err := root.Follow(localeArchive)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer at.Close()
	file, err := at.Open()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	head := make([]byte, archiveHead)
	if _, err := io.ReadFull(file, head); err != nil || binary.LittleEndian.Uint32(head) != archiveMagic {
		return nil, nil // of another machine, or none
	}
	from, size := binary.LittleEndian.Uint32(head[stringsOffset:]), binary.LittleEndian.Uint32(head[stringsUsed:])
	if size > maxNames {
		return nil, fault.Invalid("the archive has %d bytes of names", size)
	}
	all := make([]byte, size)
	if _, err := file.ReadAt(all, int64(from)); err != nil {
		return nil, err
	}
	return strings.FieldsFunc(string(all), func(r rune) bool { return r == 0 }), nil
}

// hasKeymap reports whether the console has a keymap.
func hasKeymap(root *fsys.Root, name string) (bool, error) {
	for _, dir := range keymapDirs {
		found, err := findKeymap(root, dir, name, maxKeymapDepth)
		if found || err != nil {
			return found, err
		}
	}
	return false, nil
}

func findKeymap(root *fsys.Root, dir, name string, depth int) (bool, error) {
	list, err := names(root, dir)
	if errors.Is(err, fs.ErrNotExist) || depth == 0 {
		return false, nil
	}
	if err != nil {
		return false, fault.On(dir, err)
	}
	for _, entry := range list {
		if base, _, ok := strings.Cut(entry, ".map"); ok && base == name || strings.HasPrefix(entry, name+".kmap") {
			return true, nil
		}
		if strings.Contains(entry, ".") {
			continue // a file
		}
		found, err := findKeymap(root, fsys.Join(dir, entry), name, depth-1)
		if found || err != nil && !errors.Is(err, syscall.ENOTDIR) {
			return found, err
		}
	}
	return false, nil
}

// hasLayout reports whether X's rules, which Debian's console is set up by, know a layout.
func hasLayout(root *fsys.Root, name string) (bool, error) {
	content, err := root.ReadFile(xkbRules, maxNames)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fault.On(xkbRules, err)
	}
	layouts := false
	for line := range strings.Lines(string(content)) {
		if section, ok := strings.CutPrefix(line, "!"); ok {
			layouts = strings.TrimSpace(section) == "layout"
			continue
		}
		if fields := strings.Fields(line); layouts && len(fields) > 0 && fields[0] == name {
			return true, nil
		}
	}
	return false, nil
}
