package host

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
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

// mount has fstab say what is wanted and mounts it, if it is not mounted yet. The last step is undone first: unmount, and
// remove the directories; restore fstab; have systemd read that. So what was changed on the new file system later is restored
// before it is unmounted, and not in the directory below.
func (r *Room) mount(ctx context.Context, call *builtins.Call, in *pb.MountArgs) (*pb.Changed, error) {
	if _, err := r.files(call); err != nil {
		return nil, err
	}
	if in.Target == "" {
		return nil, fault.Invalid("target is not said")
	}
	c, err := r.edit.Begin(call, "host.mount", in.Target, edit.Options{Follow: true, Parents: true})
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
	case have != nil && changed:
		call.Warn(c.Path + " stays mounted as it is: options that fstab has now count when it is mounted the next time")
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
	var err error
	if undo.Exchangeable, err = c.Root.Exchangeable(c.Path); err == nil && undo.Exchangeable {
		undo.Fstype = entry.kind()
		err = noteMounts(undo)
	}
	if err != nil {
		return err
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
	source, err := r.boundSource(c.Root, entry)
	if err != nil {
		return err
	}
	var ran error
	if undo.Exchangeable || source.Ino != 0 {
		var checked fsys.Meta
		if checked, err = c.At.Stat(); err != nil {
			return err
		}
		ran = r.mountExactly(ctx, entry, checked, source)
	} else {
		ran = r.runMount(ctx, entry.fstype, entry.target)
	}
	have, err := r.mountedAt(entry.target)
	switch {
	case err != nil:
		return err
	case ran != nil && (have == nil || r.isMounted(ctx, entry, have) != nil): // else systemd was quicker
		return ran
	case have == nil && slices.Contains(strings.Split(entry.options, ","), "nofail"):
		return fault.Wrapf(fs.ErrNotExist, "there is no %s: because of nofail mount(8) does not say so", wiretext.EscapePath(entry.source))
	case have == nil:
		return fault.Wrapf(fault.ErrInternal, "mount says that it is mounted, and it is not")
	}
	if err := sameFlags(entry, have); err != nil {
		return err
	}
	c.Call.ReportApplied(told)
	return nil
}

// announce records in the transaction what will undo the next step.
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
	leads := r.leadsTo(call, target)
	content, _, err := editFstab(old, target, want, leads)
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
			content, _, err := editFstab(old, target, want, leads)
			return content, err
		},
	})
	if err != nil || !reload {
		return changed, err
	}
	// Else systemd goes by the old entry, and may unmount what is mounted by the new one.
	return changed, r.systemctl(ctx, "daemon-reload")
}

// leadsTo says of an entry of fstab whether its target leads to another one by a link. What is mounted of the network is not
// looked at: a server that does not answer would hold up the call.
func (r *Room) leadsTo(call *builtins.Call, target string) func(fstabEntry) bool {
	root := r.guest.Files
	if call != nil {
		root = r.guest.Of(call)
	}
	return func(e fstabEntry) bool {
		name, _, _ := strings.Cut(e.source, "=")
		if tags[name] == "" && !strings.HasPrefix(e.source, "/dev/") && !isBind(e.options) {
			return false
		}
		at, err := root.Resolve(wiretext.EscapePath(e.target), true)
		return err == nil && at == wiretext.EscapePath(target)
	}
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
	if _, err := r.detach(ctx, target); err != nil {
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

// announceUnmount records in the transaction how what is mounted is mounted again, or that it cannot be: lost.
func (r *Room) announceUnmount(
	ctx context.Context, call *builtins.Call, path string, have *mountLine, told *pb.Change,
) (lost bool, err error) {
	old, err := r.guest.Of(call).ReadFile(fstabFile, maxSetting)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	_, was, err := editFstab(old, wiretext.UnescapePath(path), nil, r.leadsTo(call, wiretext.UnescapePath(path)))
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
		found, detachErr := r.detach(ctx, target)
		if err = detachErr; err == nil && !found && in.Exchangeable {
			removeStages()
			err = moved(in)
		}
		if err == nil {
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

// detach unmounts all that is mounted at a target, and reports whether anything was. It does so never lazily: who still uses it
// would go on to change it.
func (r *Room) detach(ctx context.Context, target string) (found bool, err error) {
	for deadline := time.Now().Add(busyWait); ; {
		have, err := r.mountedAt(target)
		if err != nil || have == nil {
			return found, err
		}
		switch err := unmountAt(target, have.number); {
		case err == nil:
			found = true
		case !errors.Is(err, unix.EBUSY):
			return found, err
		case time.Now().After(deadline):
			return found, fault.Wrapf(fault.ErrBusy, "%s is in use there, and stays mounted", wiretext.EscapePath(have.source))
		default:
			select {
			case <-time.After(busyEvery):
			case <-ctx.Done():
				return found, context.Cause(ctx)
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
	source, fstype, options := in.Source, in.Fstype, in.Options
	exchangeable, err := r.guest.Files.Exchangeable(in.Target)
	if err == nil && exchangeable && source == "" {
		var said *fstabEntry
		if said, err = r.fstabEntry(target); err == nil {
			source, fstype, options = said.source, said.fstype, said.options
		}
	}
	switch {
	case err != nil:
	case exchangeable:
		err = r.mountExactly(ctx, fstabEntry{source: source, target: target, fstype: fstype, options: options}, fsys.Meta{}, fsys.Meta{})
	case source == "":
		err = r.runMount(ctx, fstype, target)
	default:
		err = r.runMount(ctx, fstype, "-t", fstype, "-o", options, source, target)
	}
	if err != nil {
		return err
	}
	if have, err = r.mountedAt(target); err == nil && have == nil {
		err = fault.Wrapf(fault.ErrInternal, "mount says that it is mounted, and it is not")
	}
	return err
}

// fstabEntry is what fstab says of a target.
func (r *Room) fstabEntry(target string) (*fstabEntry, error) {
	content, err := r.guest.Files.ReadFile(fstabFile, maxSetting)
	if err != nil {
		return nil, fault.On(fstabFile, err)
	}
	_, said, err := editFstab(content, target, nil, r.leadsTo(nil, target))
	if err == nil && said == nil {
		err = fault.Wrapf(fs.ErrNotExist, "nothing is said of %s", wiretext.EscapePath(target))
	}
	return said, err
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

// hasDaemon reports whether a process serves a file system of a type, which must outlive the call.
func hasDaemon(fstype string) bool {
	helpers := []string{"sshfs", "ntfs-3g", "glusterfs", "davfs", "s3fs", "rclone"}
	return strings.HasPrefix(fstype, "fuse") || slices.Contains(helpers, fstype)
}
