package diskimage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Image is a disk image whose file systems are mounted.
type Image struct {
	options Options
	file    *os.File
	raw     *os.File // what loop devices are backed by
	export  *exported
	scratch bool // a tmpfs is at options.Dir, with the root and what a qcow2 image is shown as
	mounted []mounted
	used    map[int64]string // where volumes are mounted, in the image, by their first byte
	leftOut []string
}

type mounted struct {
	path, source string
	loop         *os.File // nil for an overlay
}

// Open mounts the root file system of an image, and below it what its fstab has of the same image. It is to be called in a
// namespace of OwnNamespace. The caller closes it; what fails is undone. Errors: ErrInUse and ErrDirty, and others.
func Open(ctx context.Context, path string, o Options) (i *Image, err error) {
	if err := isRegular(path); err != nil {
		return nil, err
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return nil, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, err
	}
	i = &Image{options: o, used: map[int64]string{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, i.Close())
			i = nil
		}
	}()
	mode := os.O_RDWR
	if o.ReadOnly {
		mode = os.O_RDONLY
	}
	if i.file, err = os.OpenFile(path, mode, 0); err != nil {
		return i, err
	}
	if err := i.lock(path); err != nil {
		return i, err
	}
	i.raw = i.file
	// A file system of this namespace: nothing of it stays when the process is killed.
	if err := unix.Mount("tmpfs", o.Dir, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID, "size=64k,mode=0700"); err != nil {
		return i, fmt.Errorf("mount a tmpfs at %s: %w", o.Dir, err)
	}
	i.scratch = true
	if err := os.Mkdir(i.Root(), 0o700); err != nil {
		return i, err
	}
	if qcow2(i.file) {
		if err := selfContained(i.file); err != nil {
			return i, err
		}
		if err := i.show(ctx, path, mode); err != nil {
			return i, err
		}
	} else if err := holdImage(i.file, o.ReadOnly); err != nil {
		return i, err
	}
	return i, i.mountAll()
}

// lock sees to it that nobody else works on the image.
func (i *Image) lock(path string) error {
	how := unix.LOCK_EX
	if i.options.ReadOnly {
		how = unix.LOCK_SH
	}
	if err := unix.Flock(int(i.file.Fd()), how|unix.LOCK_NB); err != nil {
		return fmt.Errorf("%s: %w: another apply works on it", path, ErrInUse)
	}
	// The loop device of a run that was killed goes by itself, a moment after it.
	loop := loopOf(path)
	for deadline := time.Now().Add(5 * time.Second); loop != "" && time.Now().Before(deadline); loop = loopOf(path) {
		time.Sleep(10 * time.Millisecond)
	}
	if loop != "" {
		return fmt.Errorf("%s: %w: it is attached as %s", path, ErrInUse, loop)
	}
	return lockImage(i.file, i.options.ReadOnly)
}

// show shows a qcow2 image as a raw file.
func (i *Image) show(ctx context.Context, path string, mode int) (err error) {
	raw := filepath.Join(i.options.Dir, "disk")
	if err := os.WriteFile(raw, nil, 0o600); err != nil {
		return err
	}
	if i.export, err = export(ctx, path, raw, i.options.ReadOnly); err != nil {
		return err
	}
	i.raw, err = os.OpenFile(raw, mode, 0)
	return err
}

// mountAll mounts the root and what its fstab has.
func (i *Image) mountAll() error {
	size, err := i.raw.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	all, err := volumes(i.raw, size)
	if err != nil {
		return fmt.Errorf("%s: %w", i.file.Name(), err)
	}
	root, err := i.findRoot(all)
	if err != nil {
		return fmt.Errorf("%s: %w", i.file.Name(), err)
	}
	if i.options.Writing != nil && !i.options.ReadOnly {
		if err := i.options.Writing(); err != nil {
			return err
		}
	}
	if err := i.use(root, i.Root(), "/"); err != nil {
		return err
	}
	text, err := i.read("etc/fstab")
	if err != nil {
		return err
	}
	rootLine, lines := parseFstab(text)
	if o := rootLine.subvolume(); o != "" {
		return fmt.Errorf("%s: the fstab has %s at /: %s, and subvolumes are not supported", i.file.Name(), rootLine.source, o)
	}
	for _, line := range lines {
		if err := i.mountLine(all, disksOf(rootLine), line); err != nil {
			return fmt.Errorf("%s: the fstab has %s at %s: %w", i.file.Name(), line.source, line.target, err)
		}
	}
	return nil
}

// findRoot returns the volume with the root file system: the one that has an os-release.
func (i *Image) findRoot(all []volume) (root volume, err error) {
	var found, others []string
	for _, v := range all {
		switch {
		case v.foreign != "":
			others = append(others, fmt.Sprintf("%v is %s", v, v.unsupported()))
			continue
		case v.kind == "" || v.kind == "vfat":
			continue
		case v.dirty != "" && !i.options.Recover:
			return v, i.unclean(v)
		}
		if err := i.mount(v, i.Root(), !i.options.Recover || i.options.ReadOnly); err != nil {
			return v, err
		}
		is := false
		for _, name := range []string{"usr/lib/os-release", "etc/os-release"} {
			text, err := i.read(name)
			is = is || err == nil && strings.Contains(text, "ID=")
		}
		if err := i.unmount(); err != nil {
			return v, err
		}
		if is {
			found, root = append(found, v.String()), v
		}
	}
	switch {
	case len(found) == 1:
		return root, nil
	case len(found) > 1:
		return root, fmt.Errorf("%s have an os-release each; mount the one that is meant, and give --root",
			strings.Join(found, " and "))
	}
	return root, errors.New(strings.Join(append([]string{"no file system has an os-release"}, others...), "; "))
}

func (i *Image) unclean(v volume) error {
	return fmt.Errorf("%v: %w: %s; start the guest and shut it down, or check the file system", v, ErrDirty, v.dirty)
}

// mountLine mounts what a line of the fstab has, where it is of the disk that has one of the names.
func (i *Image) mountLine(all []volume, disks []string, line mountLine) error {
	n := slices.IndexFunc(all, func(v volume) bool { return v.is(line.source, disks) })
	disk, _, named := device(line.source)
	switch {
	case n < 0 && (line.has("nofail") || named && !slices.Contains(disks, disk)):
		i.leftOut = append(i.leftOut, line.source+" at "+line.target)
		return nil
	case n < 0:
		return errors.New("which the image does not have")
	case line.subvolume() != "":
		return fmt.Errorf("%s, and subvolumes are not supported", line.subvolume())
	case all[n].foreign != "":
		return errors.New("which is " + all[n].unsupported())
	case all[n].dirty != "" && !i.options.Recover:
		return i.unclean(all[n])
	}
	top, err := unix.Open(i.Root(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(top)
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT}
	target, err := unix.Openat2(top, strings.TrimPrefix(line.target, "/"), &how)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	below, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", top))
	if err != nil {
		return err
	}
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", target))
	if err != nil {
		return err
	}
	if path != filepath.Join(below, line.target) {
		return fmt.Errorf("which leads through a link to %s", filepath.Join("/", strings.TrimPrefix(path, below)))
	}
	return i.use(all[n], path, line.target)
}

// maxSmall is how long a file of the image may be that is read here, in bytes.
const maxSmall = 1 << 20

// read reads a small regular file of the tree; one that is not there is empty. Who wrote the image may have made anything of
// it.
func (i *Image) read(name string) (string, error) {
	root, err := os.OpenRoot(i.Root())
	if err != nil {
		return "", err
	}
	defer root.Close()
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	} else if err != nil {
		return "", err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", errors.Join(fmt.Errorf("/%s of the image is no regular file", name), err)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxSmall+1))
	if err == nil && len(text) > maxSmall {
		err = fmt.Errorf("/%s of the image has more than %d bytes", name, maxSmall)
	}
	return string(text), err
}

// use mounts a volume at path for programs, which is target in the image, once. Where the image is only read, the volume has a
// writable layer above it that is thrown away: a dry run that finds a read-only file system reports that instead of what it
// was asked for.
func (i *Image) use(v volume, path, target string) error {
	if at, mounted := i.used[v.start]; mounted {
		return fmt.Errorf("%v is mounted already, at %s", v, at)
	}
	i.used[v.start] = target
	if !i.options.ReadOnly {
		return i.mount(v, path, false)
	}
	var dirs [3]string
	for n, name := range []string{"lower", "upper", "work"} {
		dirs[n] = filepath.Join(i.options.Dir, name+itoa(len(i.used)))
		if err := os.Mkdir(dirs[n], 0o755); err != nil {
			return err
		}
	}
	if err := i.mount(v, dirs[0], true); err != nil {
		return err
	}
	// The options of overlayfs are short names here: a path of the caller may have a comma or a colon.
	layers := fmt.Sprintf("lowerdir=lower%d,upperdir=upper%[1]d,workdir=work%[1]d", len(i.used))
	if err := inDirectory(i.options.Dir, func() error {
		return unix.Mount("overlay", path, "overlay", mountFlags, layers)
	}); err != nil {
		if errors.Is(err, unix.ENODEV) {
			err = errors.New("this kernel has no overlay: load its module")
		}
		return fmt.Errorf("lay a writable layer over %v of %s: %w", v, i.file.Name(), err)
	}
	i.mounted = append(i.mounted, mounted{path, v.String(), nil})
	return nil
}

// mountFlags are those of all file systems of an image: a device in one is a device of this machine.
const mountFlags = unix.MS_NOATIME | unix.MS_NODEV | unix.MS_NOSUID

// mount mounts a volume at path through a loop device of its own, which is detached when it is unmounted.
func (i *Image) mount(v volume, path string, readOnly bool) error {
	loop, err := attach(i.raw, v.span, readOnly)
	if err != nil {
		return fmt.Errorf("attach %v of %s: %w", v, i.file.Name(), err)
	}
	flags, data := uintptr(mountFlags), ""
	if readOnly {
		flags |= unix.MS_RDONLY
		switch v.kind { // not even its journal is written
		case "ext4":
			data = "noload"
		case "xfs":
			data = "norecovery,nouuid"
		}
	} else if v.kind == "xfs" {
		data = "nouuid" // the host may have another copy of the image mounted
	}
	if err := unix.Mount(loop.Name(), path, v.kind, flags, data); err != nil {
		if errors.Is(err, unix.ENODEV) {
			err = fmt.Errorf("this kernel has no %s: load its module", v.kind)
		}
		return errors.Join(fmt.Errorf("mount %v of %s: %w", v, i.file.Name(), err), detach(loop))
	}
	i.mounted = append(i.mounted, mounted{path, v.String(), loop})
	return nil
}

// inDirectory calls f while dir is the working directory of the calling thread alone.
func inDirectory(dir string, f func() error) error {
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Chdir(dir)
		}
		if err == nil {
			err = f()
		}
		failed <- err
	}()
	return <-failed
}

// attach makes a loop device for a span of a file.
func attach(f *os.File, s span, readOnly bool) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	config := unix.LoopConfig{Fd: uint32(f.Fd()), Info: unix.LoopInfo64{
		Offset: uint64(s.start), Sizelimit: uint64(s.len), Flags: unix.LO_FLAGS_AUTOCLEAR,
	}}
	mode := os.O_RDWR
	if readOnly {
		config.Info.Flags |= unix.LO_FLAGS_READ_ONLY
		mode = os.O_RDONLY
	}
	for range 64 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), mode, 0)
		if err != nil {
			return nil, err
		}
		if err = unix.IoctlLoopConfigure(int(loop.Fd()), &config); err == nil {
			return loop, nil
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) { // another program may have been first
			return nil, err
		}
	}
	return nil, errors.New("other programs take every loop device")
}

// detach frees a loop device.
func detach(loop *os.File) error {
	err := unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_CLR_FD, 0)
	if errors.Is(err, unix.ENXIO) {
		err = nil
	}
	return errors.Join(err, loop.Close())
}

// Root returns the directory of the root file system.
func (i *Image) Root() string { return filepath.Join(i.options.Dir, "root") }

// Mounts returns the directories at which the file systems are mounted, the root first.
func (i *Image) Mounts() (list []string) {
	for _, m := range i.mounted {
		list = append(list, m.path)
	}
	return list
}

// LeftOut returns the lines of the fstab that are not mounted since the image does not have what they name: those of other
// disks, and those that may be missing.
func (i *Image) LeftOut() []string { return i.leftOut }

// unmount unmounts what was mounted last. A process that still has a file open there is waited for, some seconds.
func (i *Image) unmount() error {
	m := i.mounted[len(i.mounted)-1]
	i.mounted = i.mounted[:len(i.mounted)-1]
	var err error
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if err = unix.Unmount(m.path, 0); !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		err = fmt.Errorf("unmount %s of %s: %w", m.source, i.file.Name(), err)
	}
	if m.loop == nil {
		return err
	}
	return errors.Join(err, detach(m.loop))
}

// Close unmounts everything, and has the image on disk. An error of it says that the image may lack something.
func (i *Image) Close() (err error) {
	for len(i.mounted) > 0 {
		err = errors.Join(err, i.unmount())
	}
	if i.raw != nil && !i.options.ReadOnly {
		err = errors.Join(err, i.raw.Sync())
	}
	if i.raw != nil && i.raw != i.file {
		err = errors.Join(err, i.raw.Close())
	}
	if i.export != nil {
		err = errors.Join(err, i.export.close())
	}
	if i.scratch {
		err = errors.Join(err, unix.Unmount(i.options.Dir, unix.MNT_DETACH))
	}
	if i.file != nil {
		err = errors.Join(err, i.file.Close())
	}

	return err
}
