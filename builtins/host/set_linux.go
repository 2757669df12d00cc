package host

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/edit"
	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text/lazyregexp"
)

// Where settings stand.
const (
	hostnameFile  = "/etc/hostname"
	hostsFile     = "/etc/hosts"
	timezoneLink  = "/etc/localtime"
	timezoneFile  = "/etc/timezone" // of Debian and what comes from it
	zones         = "/usr/share/zoneinfo"
	settings      = "/proc/sys"
	liveHostname  = settings + "/kernel/hostname"
	maxSetting    = 64 << 10 // bytes of a file that is read here; the kernel's own bound for most settings is 4 KiB
	maxZone       = 1 << 20
	zoneBeginning = "TZif" // RFC 9636
)

var (
	// hostName is a name of RFC 1123; the kernel takes 64 bytes.
	hostName = lazyregexp.New(`^([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)
	cDigits  = lazyregexp.New(`^-?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)$`)
	zoneName = lazyregexp.New(`^[A-Za-z0-9][A-Za-z0-9_+-]*(/[A-Za-z0-9][A-Za-z0-9_+-]*)*$`)
)

// systemName is the name of the system; the product is for systems that have several.
func systemName(release facts.Release) (system, product string) { return release.Name, "" }

// settingUndo is no operation here: all settings stand in files.
const settingUndo = ""

// platformRows are those of this system alone: none.
func (r *Room) platformRows() []builtins.Op { return nil }

// files is the file system that a call acts on.
func (r *Room) files(call *builtins.Call) (*fsys.Root, error) {
	if root := r.guest.Of(call); root != nil {
		return root, nil
	}
	return nil, fault.Unsupported("settings are not supported here")
}

func (r *Room) hostnameAccess(in *pb.HostnameArgs) builtins.Access {
	if r.guest.Live && in.New != "" {
		return rewrites(true, hostnameFile, liveHostname)
	}
	return rewrites(in.New != "", hostnameFile)
}

// rewrites is the access of a row that shows what is in files, or changes it and shows what was there.
func rewrites(change bool, files ...string) builtins.Access {
	if !change {
		return builtins.Access{Reads: files}
	}
	return builtins.Access{Reads: files, Writes: files}
}

func timezoneAccess(in *pb.TimezoneArgs) builtins.Access {
	return rewrites(in.New != "", timezoneLink, timezoneFile)
}

// sysctlAccess is that of the file of a setting; a name that is none is refused by the operation.
func sysctlAccess(in *pb.SysctlArgs) builtins.Access {
	file, err := settingFile(in.Name)
	if err != nil {
		return builtins.Access{}
	}
	return rewrites(in.Value != nil, file)
}

// hostname returns the name of the guest, or sets it: for good in /etc/hostname, and in the running kernel.
func (r *Room) hostname(ctx context.Context, call *builtins.Call, in *pb.HostnameArgs) (*pb.LuaValue, error) {
	if in.New == "" {
		return text(r.hostnameIs(call)), nil
	}
	if len(in.New) > 64 || !hostName().MatchString(in.New) {
		return nil, fault.Invalid("%q is no host name: letters, digits, hyphens and dots, at most 64", in.New)
	}
	if _, err := r.files(call); err != nil {
		return nil, err
	}
	old := r.hostnameIs(call)
	changed, err := r.edit.Put(ctx, call, edit.File{
		Op: "host.hostname", Path: hostnameFile, Content: []byte(in.New + "\n"), Follow: true,
		Same: func(have []byte) bool { return facts.HostnameIn(have) == in.New },
	})
	if err == nil && r.guest.Live {
		var also bool
		also, err = r.write(ctx, call, "host.hostname", liveHostname, in.New, true)
		changed = changed || also
	}
	if err == nil && changed {
		r.warnOfHosts(call, old, in.New)
	}
	return yes(changed), err
}

// warnOfHosts says that /etc/hosts has an address for the old name of the guest, and none for the new one: programs such as
// sudo look their own name up.
func (r *Room) warnOfHosts(call *builtins.Call, old, now string) {
	content, err := r.guest.Of(call).ReadFile(hostsFile, maxSetting)
	if err != nil || old == "" {
		return
	}
	has := func(name string) bool {
		for line := range strings.Lines(string(content)) {
			line, _, _ = strings.Cut(line, "#")
			if words := strings.Fields(line); len(words) > 1 && slices.ContainsFunc(words[1:], func(w string) bool { return strings.EqualFold(w, name) }) {
				return true
			}
		}
		return false
	}
	if has(old) && !has(now) {
		call.Warn(hostsFile + " has an address for " + old + " still, and none for " + now + "; the script hosts-entry gives it one")
	}
}

// hostnameIs sees what a dry run pretends as well.
func (r *Room) hostnameIs(call *builtins.Call) string {
	if dry := call.DryRun; dry != nil && dry.Changed {
		if content, err := dry.Files.ReadFile(hostnameFile, maxSetting); err == nil {
			return facts.HostnameIn(content)
		}
	}
	return facts.Hostname(r.guest.Dir)
}

// timezone returns the time zone, or sets it. Programs that run keep theirs until they start again.
func (r *Room) timezone(ctx context.Context, call *builtins.Call, in *pb.TimezoneArgs) (*pb.LuaValue, error) {
	root, err := r.files(call)
	if err != nil {
		return nil, err
	}
	if in.New == "" {
		zone, err := timezoneIs(root)
		return text(zone), err
	}
	if !zoneName().MatchString(in.New) || in.New == "localtime" || in.New == "posixrules" { // which lead back to the setting
		return nil, fault.Invalid("%q is no name of a time zone, such as Europe/Vienna", in.New)
	}
	data, err := root.ReadFile(zones+"/"+in.New, maxZone)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &fault.Error{Object: in.New, Err: fault.Wrapf(fs.ErrNotExist, "no such time zone"), Hint: "zones are the files below " + zones + ", of the package tzdata"}
	}
	if err == nil && !bytes.HasPrefix(data, []byte(zoneBeginning)) {
		err = fault.Invalid("the file is no time zone")
	}
	if err != nil {
		return nil, fault.On(zones+"/"+in.New, err)
	}
	_, err = root.ReadFile(timezoneFile, maxSetting)
	named := !errors.Is(err, fs.ErrNotExist) // only some distributions have it
	if named && err != nil {
		return nil, fault.On(timezoneFile, err)
	}
	changed, err := r.edit.Symlink(ctx, call, edit.Link{
		Op: "host.timezone", Path: timezoneLink, Target: ".." + zones + "/" + in.New, Replace: true,
		Same: func(target string) bool {
			return fsys.Join("/etc", target) == fsys.Join(zones, in.New) || target == fsys.Join(zones, in.New)
		},
	})
	if err != nil || !named {
		return yes(changed), err
	}
	also, err := r.write(ctx, call, "host.timezone", timezoneFile, in.New, false)
	return yes(changed || also), err
}

// timezoneIs reads the link; without one it is UTC, as the C library has it. Of a copy of a zone it finds the name.
func timezoneIs(root *fsys.Root) (string, error) {
	at, err := root.At(timezoneLink)
	if err != nil {
		return "", fault.On(timezoneLink, err)
	}
	defer at.Close()
	meta, err := at.Capture()
	switch {
	case err != nil:
		return "", fault.On(timezoneLink, err)
	case meta.Kind == fsys.Absent:
		return "UTC", nil
	case meta.Kind == fsys.Symlink:
		if _, zone, ok := strings.Cut(meta.Target, "/zoneinfo/"); ok {
			return zone, nil
		}
	case meta.Kind == fsys.File:
		if zone, err := copiedZone(root); zone != "" || err != nil {
			return zone, fault.On(timezoneLink, err)
		}
	}
	return "", fault.On(timezoneLink, fault.Invalid("it does not lead to a zone below %s, so its name is not known", zones))
}

// copiedZone returns the zone that a copy in place of the link is of: that which the other file names, or the first in the
// list of zones that is the same. Empty: there is none.
func copiedZone(root *fsys.Root) (string, error) {
	have, err := root.ReadFile(timezoneLink, maxZone)
	if err != nil {
		return "", err
	}
	names := []string{"Etc/UTC"}
	if named, err := root.ReadFile(timezoneFile, maxSetting); err == nil {
		names = append([]string{strings.TrimSpace(string(named))}, names...)
	}
	table, _ := root.ReadFile(zones+"/zone1970.tab", maxZone) // without one there are the names above
	for line := range strings.Lines(string(table)) {
		if columns := strings.Split(strings.TrimSpace(line), "\t"); len(columns) > 2 && line[0] != '#' {
			names = append(names, columns[2])
		}
	}
	for _, name := range names {
		if !zoneName().MatchString(name) {
			continue
		}
		if zone, err := root.ReadFile(zones+"/"+name, maxZone); err == nil && bytes.Equal(zone, have) {
			return name, nil
		}
	}
	return "", nil
}

// sysctl returns a setting of the running kernel, or sets it. What the kernel makes of a value must be the value: else a
// second run would set it again.
func (r *Room) sysctl(ctx context.Context, call *builtins.Call, in *pb.SysctlArgs) (*pb.LuaValue, error) {
	if !r.guest.Live {
		return nil, fault.Unsupported("settings of the kernel are those of the running machine, not of a tree")
	}
	root, err := r.files(call)
	if err != nil {
		return nil, err
	}
	file, err := settingFile(in.Name)
	if err != nil {
		return nil, err
	}
	have, err := root.ReadFile(file, maxSetting)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.On(in.Name, fault.Wrapf(fs.ErrNotExist, "this kernel has no such setting"))
	}
	if errors.Is(err, fs.ErrPermission) && isWriteOnly(root, file) {
		return nil, &fault.Error{
			Object: in.Name, Err: fault.Refuse("it can only be written, so nothing would take that back"),
			Hint: "the script sysctl-profile writes it, as does exec.run with irreversible = true",
		}
	}
	if err != nil {
		return nil, fault.On(in.Name, err)
	}
	if in.Value == nil {
		return text(strings.ReplaceAll(strings.TrimSpace(string(have)), "\t", " ")), nil
	}
	if strings.ContainsAny(*in.Value, "\n\x00") {
		return nil, fault.On(in.Name, fault.Invalid("the value has more than one line"))
	}
	if sameSetting(string(have), *in.Value) {
		return yes(false), nil
	}
	changed, err := r.write(ctx, call, "host.sysctl", file, *in.Value, true)
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, fs.ErrNotExist) {
		refused := &fault.Error{Object: in.Name, Err: fault.Invalid("the kernel does not take %q", *in.Value)}
		if errors.Is(err, fs.ErrNotExist) { // of the value: the file was read
			refused.Hint = "the kernel has nothing of this name; a module may have to be loaded first"
		}
		return nil, refused
	}
	if err != nil {
		return nil, err
	}
	if now, err := root.ReadFile(file, maxSetting); err != nil || !sameSetting(string(now), *in.Value) {
		return nil, errors.Join(fault.On(in.Name, fault.Refuse("the kernel made %q of %q", strings.TrimSpace(string(now)), *in.Value)), err)
	}
	return yes(changed), nil
}

// settingFile is where a setting stands. Its name has dots where the path has slashes and the other way round, or, if the
// slash comes first, is the path, as with sysctl(8).
func settingFile(name string) (string, error) {
	relative := name
	if first := strings.IndexAny(name, "./"); first >= 0 && name[first] == '.' {
		relative = strings.NewReplacer(".", "/", "/", ".").Replace(name)
	}
	if relative == "" || path.Clean("/"+relative) != "/"+relative || strings.ContainsAny(relative, "\x00\n") {
		return "", fault.Invalid("%q is no name of a setting, such as net.ipv4.ip_forward", name)
	}
	return settings + "/" + relative, nil
}

// sameWords compares values as the kernel prints and takes them.
func sameWords(a, b string) bool {
	return strings.Join(strings.Fields(a), " ") == strings.Join(strings.Fields(b), " ")
}

// isWriteOnly reports whether a file is one that nobody may read, also not root.
func isWriteOnly(root *fsys.Root, file string) bool {
	meta, err := root.Stat(file)
	return err == nil && meta.Mode&0o444 == 0
}

// sameSetting compares values of a setting, of which the kernel prints numbers in decimal, and lists of numbers as ranges.
func sameSetting(a, b string) bool {
	return slices.EqualFunc(strings.Fields(a), strings.Fields(b), func(x, y string) bool {
		m, ok := cNumber(x)
		n, also := cNumber(y)
		if ok && also {
			return m == n
		}
		return x == y || ranges(x) == ranges(y)
	})
}

// cNumber reads a number as C writes it, which is how the kernel takes one: decimal, octal behind a 0, hexadecimal behind 0x.
func cNumber(text string) (int64, bool) {
	if !cDigits().MatchString(text) {
		return 0, false
	}
	n, err := strconv.ParseInt(text, 0, 64)
	return n, err == nil
}

// ranges returns a list of numbers and ranges of them in order, with neighbours as one; of what is none, the word itself.
func ranges(word string) string {
	var list [][2]uint64
	for item := range strings.SplitSeq(word, ",") {
		first, last, is := strings.Cut(item, "-")
		if !is {
			last = first
		}
		m, err := strconv.ParseUint(first, 10, 32)
		n, also := strconv.ParseUint(last, 10, 32)
		if err != nil || also != nil {
			return word
		}
		list = append(list, [2]uint64{m, n})
	}
	slices.SortFunc(list, func(a, b [2]uint64) int { return cmp.Compare(a[0], b[0]) })
	joined := list[:1]
	for _, r := range list[1:] {
		if before := &joined[len(joined)-1]; r[0] <= before[1]+1 {
			before[1] = max(before[1], r[1])
		} else {
			joined = append(joined, r)
		}
	}
	return fmt.Sprint(joined)
}

// write makes a file hold one line, and returns whether that changed anything. What it holds already is compared as the kernel
// compares a setting.
func (r *Room) write(ctx context.Context, call *builtins.Call, op, file, line string, inPlace bool) (bool, error) {
	return r.edit.Put(ctx, call, edit.File{
		Op: op, Path: file, Content: []byte(line + "\n"), Follow: true, InPlace: inPlace,
		Same: func(have []byte) bool { return sameWords(string(have), line) },
	})
}
