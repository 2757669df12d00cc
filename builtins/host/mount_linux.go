package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/edit"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	wiretext "github.com/quantix-kvm/guest-agent/wire/text"
)

const (
	mountTimeout = 90 * time.Second // of mount(8): a server may be slow
	busyWait     = 2 * time.Second  // for whoever still uses a file system, such as a command that was just ended
	busyEvery    = 50 * time.Millisecond
	autofs       = "autofs" // what systemd mounts where something is mounted at the first use
)

// mount has fstab say what is wanted and mounts it, if it is not mounted yet. The last step is undone first: unmount, and remove
// the directories; restore fstab; have systemd read that. So what was changed on the new file system later is restored before it
// is unmounted, and not in the directory below.
func (r *Room) mount(ctx context.Context, call *builtins.Call, in *pb.MountArgs) (*pb.Changed, error) {
	if _, err := r.files(call); err != nil {
		return nil, err
	}
	c, err := r.edit.Begin(call, "host.mount", in.Target, edit.How{Follow: true, Parents: true})
	if err != nil {
		return nil, fault.On(in.Target, err)
	}
	defer c.Close()
	entry, err := newEntry(in, c.Path)
	if err == nil {
		err = r.mayMount(c)
	}
	if err != nil {
		return nil, fault.On(in.Target, err)
	}
	have, err := r.mountedAt(entry.target)
	if err == nil && have != nil {
		err = r.isMounted(ctx, entry, have)
	}
	if err != nil {
		return nil, fault.On(c.Path, err)
	}
	changed, err := r.putFstab(ctx, call, "host.mount", c.Path, entry.target, &entry)
	if err != nil {
		return nil, err
	}
	switch {
	case have != nil: // as it shall be
	case r.guest.Live:
		changed = true
		err = r.mountNow(ctx, c, entry)
	case c.Absent():
		changed = true
		err = makeTarget(ctx, c, true)
	}
	if err != nil {
		return nil, fault.On(c.Path, err)
	}
	return &pb.Changed{Changed: changed}, nil
}

// mayMount refuses targets at which something would be hidden that must not be.
func (r *Room) mayMount(c *edit.Change) error {
	switch {
	case fsys.IsRoot(c.Path) || fsys.Within(fstabFile, c.Path):
		return fault.Refuse("nothing is mounted over the configuration of the system")
	case !c.Absent() && c.Old.Kind != fsys.Directory:
		return fault.Cause(syscall.ENOTDIR)
	}
	return r.guest.Guard(c.Path, true)
}

// makeTarget makes the directory that something is mounted on, and those above. kept: the transaction keeps what was there;
// else an inverse knows.
func makeTarget(ctx context.Context, c *edit.Change, kept bool) error {
	prepare := c.MakeParents
	if kept {
		prepare = func() error { return c.Prepare(ctx) }
	}
	if err := prepare(); err != nil {
		return err
	}
	if err := c.At.Mkdir(fsys.Attr{}); err != nil {
		return err
	}
	c.Report("created", nil)
	return nil
}

// mountNow mounts what fstab says. The directory, if it is missing, is not kept by the transaction but removed by the inverse:
// what is at its path is another one as long as something is mounted there.
func (r *Room) mountNow(ctx context.Context, c *edit.Change, entry fstabEntry) error {
	told := &pb.Change{Op: "host.mount", Target: c.Path, Action: "mounted"}
	if dry := c.Call.DryRun; dry != nil {
		if c.Absent() {
			if err := makeTarget(ctx, c, true); err != nil {
				return err
			}
		}
		return dry.End(c.Call, told) // what is on it nobody knows
	}
	undo := &pb.MountUndo{Action: pb.MountUndo_ACTION_UNMOUNT, Target: c.Path}
	if c.Absent() {
		missing, err := c.Root.Missing(c.Path)
		if err != nil {
			return err
		}
		undo.Made = append(missing, c.Path)
		above, err := c.Root.At(undo.Made[0])
		if err != nil {
			return err
		}
		meta, err := above.StatDir()
		if err = errors.Join(err, above.Close()); err != nil {
			return err
		}
		undo.ParentMtimeSec, undo.ParentMtimeNsec = meta.Mtime.Sec, meta.Mtime.Nsec
	}
	if err := r.announce(ctx, c.Call, undo); err != nil {
		return err
	}
	if c.Absent() {
		if err := makeTarget(ctx, c, false); err != nil {
			return err
		}
	}
	// What the transaction changed in the directory is hidden from the syncs of its commit.
	if err := r.guest.Files.SyncAll(); err != nil {
		return err
	}
	ran := r.runMount(ctx, entry.fstype, entry.target)
	have, err := r.mountedAt(entry.target)
	switch {
	case err != nil:
		return err
	case ran != nil && (have == nil || r.isMounted(ctx, entry, have) != nil): // else systemd was quicker
		return ran
	case have == nil:
		return fault.Wrapf(fault.ErrInternal, "mount says that it is mounted, and it is not")
	}
	if err := sameFlags(entry, have); err != nil {
		return err
	}
	c.Call.ReportApplied(told)
	return nil
}

// announce tells the transaction what will take back the next step.
func (r *Room) announce(ctx context.Context, call *builtins.Call, undo *pb.MountUndo) error {
	if call.Tx == nil {
		return nil
	}
	return call.Tx.Undo(ctx, mountUndo, undo)
}

// putFstab has fstab hold an entry for a target, or none, and systemd read it. target is as fstab has it, path as messages do.
func (r *Room) putFstab(
	ctx context.Context, call *builtins.Call, op, path, target string, want *fstabEntry,
) (changed bool, err error) {
	old, err := r.guest.Of(call).ReadFile(fstabFile, maxSetting)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fault.On(fstabFile, err)
	}
	content, _, err := editFstab(old, target, want)
	if err != nil {
		return false, fault.On(fstabFile, err)
	}
	if bytes.Equal(content, old) {
		return false, nil
	}
	reload := r.guest.Live && call.DryRun == nil && systemdRuns()
	if reload {
		// Undone last, when fstab is as it was.
		if err := r.announce(ctx, call, &pb.MountUndo{Action: pb.MountUndo_ACTION_RELOAD, Target: path}); err != nil {
			return false, err
		}
	}
	changed, err = r.edit.Put(ctx, call, edit.File{
		Op: op, Path: fstabFile, Follow: true,
		Edit: func(_ context.Context, old []byte) ([]byte, error) {
			content, _, err := editFstab(old, target, want)
			return content, err
		},
	})
	if err != nil || !reload {
		return changed, err
	}
	// Else systemd goes by the old entry, and may unmount what is mounted by the new one.
	return changed, r.systemctl(ctx, "daemon-reload")
}

func systemdRuns() bool {
	_, err := os.Stat("/run/systemd/system") // sd_booted(3)
	return err == nil
}

// unmount takes a target out of fstab and unmounts what is there.
func (r *Room) unmount(ctx context.Context, call *builtins.Call, in *pb.UnmountArgs) (*pb.Changed, error) {
	root, err := r.files(call)
	if err != nil {
		return nil, err
	}
	path, err := root.Resolve(in.Target, true)
	if errors.Is(err, fs.ErrNotExist) && fsys.IsAbs(in.Target) {
		path, err = fsys.Clean(in.Target), nil // fstab may name it all the same
	}
	target := wiretext.UnescapePath(path)
	if err == nil {
		err = r.mayUnmount(path)
	}
	var have *mountLine
	if err == nil {
		have, err = r.mountedAt(target)
	}
	if err != nil {
		return nil, fault.On(in.Target, err)
	}
	if have != nil && have.layers > 1 { // a rollback could bring back only what is on top
		return nil, fault.On(in.Target, fault.Refuse("%d file systems are mounted there, one above the other", have.layers))
	}
	told := &pb.Change{Op: "host.unmount", Target: path, Action: "unmounted"}
	lost := false
	if have != nil && call.DryRun == nil && call.Tx != nil {
		if lost, err = r.announceUnmount(ctx, call, path, have, told); err != nil {
			return nil, fault.On(path, err)
		}
	}
	changed, err := r.putFstab(ctx, call, "host.unmount", path, target, nil)
	if err != nil || have == nil {
		return &pb.Changed{Changed: changed}, err
	}
	if call.DryRun != nil {
		return nil, call.DryRun.End(call, told) // what is below it nobody knows
	}
	if err := r.detach(ctx, target); err != nil {
		return nil, fault.On(path, err)
	}
	call.ReportApplied(told)
	if lost {
		told.Reversible = false
	}
	return &pb.Changed{Changed: true}, nil
}

// mayUnmount refuses what the system and the agent rest on.
func (r *Room) mayUnmount(path string) error {
	kernels := []string{"/proc", "/sys", "/dev", "/run", "/sys/fs/cgroup"}
	if fsys.IsRoot(path) || fsys.Within(fstabFile, path) || slices.Contains(kernels, path) {
		return fault.Refuse("the system rests on it")
	}
	return r.guest.Guard(path, true)
}

// announceUnmount tells the transaction how what is mounted is mounted again, or that it cannot be: lost.
func (r *Room) announceUnmount(
	ctx context.Context, call *builtins.Call, path string, have *mountLine, told *pb.Change,
) (lost bool, err error) {
	old, err := r.guest.Of(call).ReadFile(fstabFile, maxSetting)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	_, was, err := editFstab(old, wiretext.UnescapePath(path), nil)
	if err != nil {
		return false, fault.On(fstabFile, err)
	}
	undo := &pb.MountUndo{Action: pb.MountUndo_ACTION_MOUNT, Target: path, Fstype: have.kind}
	switch {
	case have.kind == "tmpfs" || have.kind == "ramfs", was == nil && have.dir != "/":
		// Its content ends, or it is a bind mount of an unknown place.
		return true, call.Tx.Irreversible(ctx, told)
	case was == nil || r.isMounted(ctx, *was, have) != nil: // fstab says something else
		undo.Source, undo.Options = have.source, strings.Join(have.all(), ",")
		if file := backingFile(have.source); file != "" { // the device may end with the mount
			undo.Source, undo.Options = file, undo.Options+",loop"
		}
	}
	return false, r.announce(ctx, call, undo)
}

// undoMount is the inverse of both.
func (r *Room) undoMount(ctx context.Context, call *builtins.Call, in *pb.MountUndo) (*pb.Changed, error) {
	if !r.guest.Live {
		return &pb.Changed{}, nil
	}
	target := wiretext.UnescapePath(in.Target)
	var err error
	switch in.Action {
	case pb.MountUndo_ACTION_RELOAD:
		if systemdRuns() {
			err = r.systemctl(ctx, "daemon-reload")
		}
	case pb.MountUndo_ACTION_UNMOUNT:
		if err = r.detach(ctx, target); err == nil {
			err = r.removeMade(in)
		}
	case pb.MountUndo_ACTION_MOUNT:
		err = r.attachAgain(ctx, in, target)
	default:
		err = fault.Unsupported("undoing %s", in.Action)
	}
	if err != nil {
		return nil, fault.On(in.Target, err)
	}
	return &pb.Changed{Changed: true}, nil
}

// detach unmounts all that is mounted at a target, never lazily: who still uses it would go on to change it.
func (r *Room) detach(ctx context.Context, target string) error {
	for deadline := time.Now().Add(busyWait); ; {
		have, err := r.mountedAt(target)
		if err != nil || have == nil {
			return err
		}
		switch err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW); {
		case err == nil:
		case !errors.Is(err, unix.EBUSY):
			return err
		case time.Now().After(deadline):
			return fault.Wrapf(fault.ErrBusy, "%s is in use there, and stays mounted", wiretext.EscapePath(have.source))
		default:
			select {
			case <-time.After(busyEvery):
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
}

// removeMade removes the directories that host.mount made, as far as they are there.
func (r *Room) removeMade(in *pb.MountUndo) error {
	for i, dir := range slices.Backward(in.Made) {
		at, err := r.guest.Files.Exact(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		err = at.Remove()
		gone := errors.Is(err, fs.ErrNotExist)
		if err == nil && i == 0 {
			err = restoreTime(r.guest.Files, fsys.Parent(dir), fsys.Time{Sec: in.ParentMtimeSec, Nsec: in.ParentMtimeNsec})
		}
		if err = errors.Join(err, at.Close()); err != nil && !gone {
			return err
		}
	}
	return nil
}

// restoreTime gives a directory its former time of change.
func restoreTime(root *fsys.Root, dir string, was fsys.Time) error {
	at, err := root.Exact(dir)
	if err != nil {
		return err
	}
	defer at.Close()
	meta, err := at.Capture()
	if err != nil || meta.Mtime == was {
		return err
	}
	meta.Mtime = was
	return at.Apply(meta)
}

// attachAgain mounts what host.unmount unmounted, unless something is mounted there.
func (r *Room) attachAgain(ctx context.Context, in *pb.MountUndo, target string) error {
	have, err := r.mountedAt(target)
	if err != nil || have != nil {
		return err
	}
	args := []string{target}
	if in.Source != "" {
		args = []string{"-t", in.Fstype, "-o", in.Options, in.Source, target}
	}
	if err := r.runMount(ctx, in.Fstype, args...); err != nil {
		return err
	}
	if have, err = r.mountedAt(target); err == nil && have == nil {
		err = fault.Wrapf(fault.ErrInternal, "mount says that it is mounted, and it is not")
	}
	return err
}

// runMount runs mount(8), which finds disks by their tags and knows the helpers of file systems.
func (r *Room) runMount(ctx context.Context, fstype string, args ...string) error {
	argv := append([]string{"mount"}, args...)
	result, err := r.guest.Run(ctx, guest.Command{Line: strings.Join(argv, " "), Irreversible: true}, proc.Spec{
		Argv: argv, Timeout: mountTimeout, Tied: !hasDaemon(fstype),
	})
	if err != nil {
		return err
	}
	return result.Err()
}

// hasDaemon says whether a process serves a file system of a type, which must outlive the call.
func hasDaemon(fstype string) bool {
	helpers := []string{"sshfs", "ntfs-3g", "glusterfs", "davfs", "s3fs", "rclone"}
	return strings.HasPrefix(fstype, "fuse") || slices.Contains(helpers, fstype)
}

// mountLine is a line of mountinfo, see proc_pid_mountinfo(5).
type mountLine struct {
	number                   uint64
	dir, point, kind, source string
	options, super           []string
	layers                   int // how many file systems are mounted at the point, one above the other; set by mountedAt
}

// all are its options, each once: what is of the mount goes before what is of the file system.
func (m *mountLine) all() []string {
	list := slices.Clone(m.options)
	for _, option := range m.super {
		if option != "rw" && option != "seclabel" && !slices.Contains(list, option) {
			list = append(list, option)
		}
	}
	if slices.Contains(list, "ro") {
		list = slices.DeleteFunc(list, func(option string) bool { return option == "rw" })
	}
	return list
}

// readOnly says whether nothing can be written by it.
func (m *mountLine) readOnly() bool {
	return slices.Contains(m.options, "ro") || slices.Contains(m.super, "ro")
}

// mountedAt returns what is mounted at a target of the running machine; nil: nothing, or what waits to be mounted at its first
// use. Below another root nothing is.
func (r *Room) mountedAt(target string) (*mountLine, error) {
	if !r.guest.Live {
		return nil, nil
	}
	var x unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, target, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_MNT_ID, &x)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, os.NewSyscallError("statx", err)
	}
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var top *mountLine
	layers := 0
	for line := range strings.Lines(string(data)) {
		m, ok := parseMountLine(line)
		if !ok || m.point != target || m.kind == autofs {
			continue
		}
		layers++
		if m.number == x.Mnt_id {
			top = m
		}
	}
	if top != nil {
		top.layers = layers
	}
	return top, nil
}

func parseMountLine(line string) (*mountLine, bool) {
	first, second, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
	fields, more := strings.FieldsFunc(first, isBlank), strings.Split(second, " ")
	if !ok || len(fields) < 6 || len(more) < 3 {
		return nil, false
	}
	number, err := strconv.ParseUint(fields[0], 10, 64)
	return &mountLine{
		number: number, dir: fsys.UnescapeMount(fields[3]), point: fsys.UnescapeMount(fields[4]),
		options: strings.Split(fields[5], ","),
		kind:    more[0], source: fsys.UnescapeMount(more[1]), super: strings.Split(fsys.UnescapeMount(more[2]), ","),
	}, err == nil
}

// isMounted returns why what is mounted is not what an entry says; nil: it is.
func (r *Room) isMounted(ctx context.Context, entry fstabEntry, have *mountLine) error {
	same, err := r.sameSource(ctx, entry, have)
	if err != nil {
		return err
	}
	if !same || !sameType(entry, have) {
		return fault.Refuse("%s (%s) is mounted there", wiretext.EscapePath(have.source), have.kind)
	}
	return sameFlags(entry, have)
}

func sameType(entry fstabEntry, have *mountLine) bool {
	return entry.fstype == "auto" || isBind(entry.options) || entry.fstype == have.kind ||
		entry.fstype == "nfs" && have.kind == "nfs4" || hasDaemon(entry.fstype) && strings.HasPrefix(have.kind, "fuse")
}

// sameSource says whether what is mounted is of the source that an entry names.
func (r *Room) sameSource(ctx context.Context, entry fstabEntry, have *mountLine) (bool, error) {
	if isBind(entry.options) {
		source, err := os.Stat(entry.source)
		if err != nil {
			return false, nil
		}
		target, err := os.Stat(entry.target)
		return err == nil && os.SameFile(source, target), nil
	}
	if entry.source == have.source || strings.TrimSuffix(entry.source, "/") == have.source {
		return true, nil
	}
	if file := backingFile(have.source); file != "" {
		want, err := os.Stat(entry.source)
		is, also := os.Stat(file)
		if err == nil && also == nil && os.SameFile(want, is) {
			return true, nil
		}
	}
	device := entry.source
	if name, value, tagged := strings.Cut(device, "="); tagged && tags[name] != "" {
		device = filepath.Join(tags[name], escapeLink(value))
		if _, err := os.Stat(device); err != nil { // without udev
			result, err := r.guest.Run(ctx, guest.Command{Line: "findfs", Readonly: true},
				proc.Spec{Argv: []string{"findfs", entry.source}, Tied: true})
			if err != nil || result.Err() != nil {
				return false, nil // there is no such disk, or nobody knows
			}
			device = strings.TrimSpace(string(result.Stdout))
		}
	}
	return sameDisk(device, have.source), nil
}

// escapeLink is how udev writes a tag as the name of a link: all but letters, digits and some signs as \xNN.
func escapeLink(tag string) string {
	var b strings.Builder
	for i := range len(tag) {
		switch c := tag[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c >= 0x80, strings.IndexByte("#+-.:=@_", c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, `\x%02x`, c)
		}
	}
	return b.String()
}

// backingFile returns the file that a loop device is made of; empty: it is none.
func backingFile(device string) string {
	if !strings.HasPrefix(device, "/dev/loop") {
		return ""
	}
	text, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "loop/backing_file"))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(text), "\n")
}

func sameDisk(a, b string) bool {
	var one, other unix.Stat_t
	return unix.Stat(a, &one) == nil && unix.Stat(b, &other) == nil && one.Mode&unix.S_IFMT == unix.S_IFBLK &&
		other.Mode&unix.S_IFMT == unix.S_IFBLK && one.Rdev == other.Rdev
}

// sameFlags returns what of the options that protect is not as an entry says: mount(8) mounts a disk that cannot be written
// read-only, and succeeds.
func sameFlags(entry fstabEntry, have *mountLine) error {
	readOnly := false
	for option := range strings.SplitSeq(entry.options, ",") {
		switch option {
		case "ro":
			readOnly = true
		case "rw", "defaults":
			readOnly = false
		case "nosuid", "nodev", "noexec":
			if !slices.Contains(have.options, option) {
				return fault.Refuse("it is mounted without %s", option)
			}
		}
	}
	switch never := []string{"squashfs", "erofs", "iso9660", "udf", "cramfs"}; {
	case readOnly && !have.readOnly():
		return fault.Refuse("it is mounted so that it can be written")
	case !readOnly && have.readOnly() && !slices.Contains(never, have.kind):
		return fault.Refuse("it is mounted read-only")
	}
	return nil
}
