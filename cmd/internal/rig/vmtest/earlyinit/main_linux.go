// Command earlyinit is the whole initramfs of the test guest: it loads the modules that the disk needs, mounts the disk,
// lays the rig's programs beside it in memory, and becomes the guest's own init.
//
//	kernel ─► /init (this) ─► modules ─► mount /dev/vda ─► /run/vmtest, units ─► exec /sbin/init
//
// Everything of the rig lives in tmpfs under /run, so the disk is plain Debian, a new probe needs no new disk, and the
// probe is there again after every reboot of the guest.
//
// Not here: anything that runs after init has started.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	newRoot  = "/newroot"
	disk     = "/dev/vda"
	diskWait = 20 * time.Second // generous: an emulated machine on a loaded host needs tens of milliseconds
)

func main() {
	err := boot()
	fmt.Fprintln(os.Stderr, "earlyinit:", err)
	// Leaving would panic the kernel, and the host would wait for a guest that does not come. Without power QEMU ends.
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Fprintln(os.Stderr, "earlyinit: power off:", err)
	}
}

// boot returns only when something went wrong.
func boot() error {
	if err := mount("devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=755"); err != nil {
		return err
	}
	if err := loadModules("/modules"); err != nil {
		return err
	}
	if err := await(disk); err != nil {
		return err
	}
	if err := mount(disk, newRoot, "ext4", 0, ""); err != nil {
		return err
	}
	if err := layRig(); err != nil {
		return err
	}
	return becomeInit()
}

func mount(source, target, fstype string, flags uintptr, data string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return fmt.Errorf("mount %s %s: %w", source, target, err)
	}
	return nil
}

// loadModules loads dir's files in the order of their names, which the image builder chose by their dependencies.
func loadModules(dir string) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range files {
		f, err := os.Open(filepath.Join(dir, entry.Name()))
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load module %s: %w", entry.Name(), err)
		}
	}
	return nil
}

func await(path string) error {
	deadline := time.Now().Add(diskWait)
	for {
		_, err := os.Stat(path)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("no disk after %v: %w", diskWait, err)
		}
		time.Sleep(time.Millisecond)
	}
}

// layRig mounts /run as an initramfs of a distribution would, and puts the programs of /rig and the units of /units in it.
func layRig() error {
	run := newRoot + "/run"
	if err := mount("tmpfs", run, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755"); err != nil {
		return err
	}
	// Its own mount, because /run is not for programs.
	if err := mount("vmtest", run+"/vmtest", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return err
	}
	if err := copyAll("/rig", run+"/vmtest", 0o755); err != nil {
		return err
	}
	units := run + "/systemd/system"
	wants := units + "/sysinit.target.wants"
	if err := os.MkdirAll(wants, 0o755); err != nil {
		return err
	}
	if err := copyAll("/units", units, 0o644); err != nil {
		return err
	}
	entries, err := os.ReadDir("/units")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Symlink("../"+e.Name(), filepath.Join(wants, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func copyAll(from, to string, mode os.FileMode) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := copyFile(filepath.Join(from, e.Name()), filepath.Join(to, e.Name()), mode); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(from, to string, mode os.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// becomeInit makes the disk the root and executes its init in place of this program.
func becomeInit() error {
	if err := unix.Mount("/dev", newRoot+"/dev", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move /dev: %w", err)
	}
	// The initramfs keeps its memory for as long as its files exist.
	for _, dir := range []string{"/modules", "/rig", "/units", "/init"} {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	if err := unix.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	return fmt.Errorf("exec /sbin/init: %w", unix.Exec("/sbin/init", []string{"/sbin/init"}, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}))
}
