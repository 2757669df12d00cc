package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/diff"
	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Where settings stand.
const (
	hostnameFile  = "/etc/hostname"
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
	hostName = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)
	zoneName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_+-]*(/[A-Za-z0-9][A-Za-z0-9_+-]*)*$`)
)

// files is the file system that a call acts on: the guest's, or what a dry run pretends it to be.
func (r *Room) files(call *builtins.Call) (*fsys.Root, error) {
	switch {
	case call.Plan != nil:
		return call.Plan.Files, nil
	case r.config.Files == nil:
		return nil, fault.Unsupported("settings are not supported here")
	}
	return r.config.Files, nil
}

// hostname tells the name of the guest, or sets it: for good in /etc/hostname, and in the running kernel.
func (r *Room) hostname(ctx context.Context, call *builtins.Call, in *pb.HostnameArgs) (*pb.LuaValue, error) {
	if in.New == "" {
		return text(r.hostnameIs(call)), nil
	}
	if len(in.New) > 64 || !hostName.MatchString(in.New) {
		return nil, fault.Invalid("%q is no host name: letters, digits, hyphens and dots, at most 64", in.New)
	}
	edits := []edit{{path: hostnameFile, content: in.New + "\n"}}
	if r.live {
		edits = append(edits, edit{path: liveHostname, content: in.New + "\n", inplace: true})
	}
	return r.set(ctx, call, "host.hostname", edits)
}

// hostnameIs sees what a dry run pretends as well.
func (r *Room) hostnameIs(call *builtins.Call) string {
	if call.Plan != nil {
		if content, err := call.Plan.Files.ReadFile(hostnameFile, maxSetting); err == nil && call.Plan.Changed {
			return strings.TrimSpace(string(content))
		}
	}
	return facts.Hostname(r.config.Root)
}

// timezone tells the time zone, or sets it. Programs that run keep theirs until they start again.
func (r *Room) timezone(ctx context.Context, call *builtins.Call, in *pb.TimezoneArgs) (*pb.LuaValue, error) {
	root, err := r.files(call)
	if err != nil {
		return nil, err
	}
	if in.New == "" {
		zone, err := timezoneIs(root)
		return text(zone), err
	}
	if !zoneName.MatchString(in.New) {
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
	edits := []edit{{path: timezoneLink, target: ".." + zones + "/" + in.New}}
	if _, err := root.ReadFile(timezoneFile, maxSetting); err == nil {
		edits = append(edits, edit{path: timezoneFile, content: in.New + "\n"})
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fault.On(timezoneFile, err)
	}
	return r.set(ctx, call, "host.timezone", edits)
}

// timezoneIs reads the link; without one it is UTC, as the C library has it.
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
	default:
		if content, err := root.ReadFile(timezoneFile, maxSetting); err == nil {
			return strings.TrimSpace(string(content)), nil
		}
	}
	return "", fault.On(timezoneLink, fault.Invalid("it does not lead to a zone below %s, so its name is not known", zones))
}

// sysctl tells a setting of the running kernel, or sets it. What the kernel makes of a value must be the value: else a
// second run would set it again.
func (r *Room) sysctl(ctx context.Context, call *builtins.Call, in *pb.SysctlArgs) (*pb.LuaValue, error) {
	if !r.live {
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
	if err != nil {
		return nil, fault.On(in.Name, err)
	}
	if in.Value == nil {
		return text(strings.ReplaceAll(strings.TrimSpace(string(have)), "\t", " ")), nil
	}
	if strings.ContainsAny(*in.Value, "\n\x00") {
		return nil, fault.On(in.Name, fault.Invalid("the value has more than one line"))
	}
	if sameWords(string(have), *in.Value) {
		return yes(false), nil
	}
	changed, err := r.set(ctx, call, "host.sysctl", []edit{{path: file, content: *in.Value + "\n", inplace: true}})
	if err != nil {
		return nil, err
	}
	if now, err := root.ReadFile(file, maxSetting); err != nil || !sameWords(string(now), *in.Value) {
		return nil, errors.Join(fault.On(in.Name, fault.Refuse("the kernel made %q of %q", strings.TrimSpace(string(now)), *in.Value)), err)
	}
	return changed, nil
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

// edit is what one path shall be: a link where target is said, else a file with a content.
type edit struct {
	path, content, target string
	inplace               bool // the file that is there is written, not replaced
}

// set makes all edits that are needed. All are kept before the first is made, so that a failure is taken back whole.
func (r *Room) set(ctx context.Context, call *builtins.Call, op string, edits []edit) (*pb.LuaValue, error) {
	root, err := r.files(call)
	if err != nil {
		return nil, err
	}
	var todo []*place
	defer func() {
		for _, p := range todo {
			_ = p.at.Close()
		}
	}()
	var paths []string
	for _, e := range edits {
		p, err := look(root, e)
		if err != nil {
			return nil, fault.On(e.path, err)
		}
		todo = append(todo, p)
		if !p.same {
			paths = append(paths, p.at.Path)
		}
	}
	if len(paths) == 0 {
		return yes(false), nil
	}
	if err := call.Before(ctx, paths...); err != nil {
		return nil, err
	}
	for _, p := range todo {
		if p.same {
			continue
		}
		if err := p.make(call.Tx == nil); err != nil {
			return nil, fault.On(p.path, err)
		}
		call.Report(p.change(call, op))
	}
	return yes(true), nil
}

// place is an edit and what is there.
type place struct {
	edit
	at   *fsys.At
	old  fsys.Meta
	have []byte
	same bool
}

func look(root *fsys.Root, e edit) (p *place, err error) {
	resolve := root.Follow
	if e.target != "" {
		resolve = root.At
	}
	at, err := resolve(e.path)
	if err != nil {
		return nil, err
	}
	p = &place{edit: e, at: at}
	if p.old, err = at.Capture(); err == nil && p.old.Kind == fsys.File && e.target == "" {
		p.have, err = at.ReadFile(maxSetting)
	}
	if err != nil {
		_ = at.Close()
		return nil, err
	}
	if e.target != "" {
		p.same = p.old.Kind == fsys.Symlink && path.Join("/etc", p.old.Target) == path.Join("/etc", e.target) ||
			p.old.Kind == fsys.Symlink && p.old.Target == path.Join("/etc", e.target)
	} else {
		p.same = p.old.Kind == fsys.File && sameWords(string(p.have), e.content)
	}
	return p, nil
}

func (p *place) make(syncDir bool) error {
	switch {
	case p.target != "":
		if err := p.at.Symlink(p.target); err != nil || !syncDir {
			return err
		}
		return p.at.SyncDir()
	case p.inplace:
		return p.rewrite()
	}
	staged, err := p.at.Stage()
	if err != nil {
		return err
	}
	if _, err := staged.File.WriteString(p.content); err != nil {
		return errors.Join(fault.Cause(err), staged.Discard())
	}
	return staged.Commit(fsys.Attr{}, syncDir)
}

// rewrite gives the kernel a value in one write, as it wants it.
func (p *place) rewrite() (err error) {
	file, err := p.at.OpenInPlace()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, fault.Cause(file.Close())) }()
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return fault.Cause(err)
	}
	if err := file.Truncate(0); err != nil { // of a setting, nothing; of the plan of a dry run, what it was
		return fault.Cause(err)
	}
	_, err = file.WriteString(p.content)
	return fault.Cause(err)
}

func (p *place) change(call *builtins.Call, op string) *pb.Change {
	c := &pb.Change{Op: op, Target: p.at.Path, Action: "modified", State: pb.ChangeState_CHANGE_STATE_APPLIED, Reversible: call.Tx != nil}
	if p.old.Kind == fsys.Absent {
		c.Action = "created"
	}
	if call.Plan != nil {
		c.State, c.Reversible = pb.ChangeState_CHANGE_STATE_WOULD, true
	}
	switch {
	case p.target != "":
		c.Diff = fmt.Sprintf("-> %s\n", p.target)
	case p.old.Kind == fsys.File && p.old.Mode&0o004 == 0:
		c.ContentHidden = true
	default:
		c.Diff, c.DiffTruncated = diff.Unified(c.Target, p.have, []byte(p.content))
	}
	return c
}

func text(s string) *pb.LuaValue {
	return &pb.LuaValue{Kind: &pb.LuaValue_String_{String_: []byte(s)}}
}

func yes(b bool) *pb.LuaValue { return &pb.LuaValue{Kind: &pb.LuaValue_Boolean{Boolean: b}} }
