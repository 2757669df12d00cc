package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
)

// imageScript changes the root file system and /boot.
const imageScript = `return script {
  name = "image", version = "1", needs = {"file"}, params = {how = {type = "string", default = ""}},
  run = function(p)
    file.write("/etc/site.conf", "port 80\n")
    file.write("/boot/site.conf", "quiet\n")
    file.remove("/etc/old.conf")
    if p.how == "fail" then error("it fails") end
    while p.how == "hang" do end
  end,
}`

// diskWithSystem makes an image with a root file system and one for /boot, named by its fstab: as raw, as qcow2, or as raw with
// both in volumes of LVM, which are at the same places as the partitions.
func diskWithSystem(t *testing.T, dir, format string) (image string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting an image needs root")
	}
	for _, tool := range []string{"sfdisk", "mkfs.ext4", "debugfs", "e2fsck", "qemu-img", "qemu-storage-daemon"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	tree := filepath.Join(dir, "tree")
	const boot = "11111111-2222-3333-4444-555555555555"
	root := "/dev/vda1"
	if format == "lvm" {
		root = "/dev/mapper/my--vg-root"
	}
	for path, text := range map[string]string{
		"root/etc/os-release": "ID=test\n", "root/etc/old.conf": "old\n",
		"root/etc/fstab":    root + " / ext4\nUUID=" + boot + " /boot ext4 defaults 0 2\n",
		"root/boot/.hidden": "", "boot/grub.cfg": "timeout 5\n",
	} {
		path = filepath.Join(tree, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	image = filepath.Join(dir, "disk.raw")
	must(t, "sh", "-ec", `
		truncate -s 65M "$1/disk.raw"
		if [ "$2" = lvm ]; then
			gzip -dc ../internal/diskimage/testdata/lvm.head.gz | dd of="$1/disk.raw" conv=notrunc status=none
		else
			printf 'label: gpt\nstart=2048, size=65536\nsize=32768\n' | sfdisk -q "$1/disk.raw"
		fi
		mkfs.ext4 -q -F -E offset=1048576 -d "$1/tree/root" "$1/disk.raw" 32M
		mkfs.ext4 -q -F -U `+boot+` -E offset=34603008 -d "$1/tree/boot" "$1/disk.raw" 16M`, "sh", dir, format)
	if format == "qcow2" {
		must(t, "qemu-img", "convert", "-O", "qcow2", image, filepath.Join(dir, "disk.qcow2"))
		image = filepath.Join(dir, "disk.qcow2")
	}
	return image
}

func must(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}

// imageFiles returns the files of an image, read without mounting it, and has its file systems checked.
func imageFiles(t *testing.T, image string) string {
	t.Helper()
	raw := filepath.Join(t.TempDir(), "raw")
	must(t, "qemu-img", "convert", "-O", "raw", image, raw)
	var all strings.Builder
	for _, at := range []string{"1048576", "34603008"} {
		must(t, "e2fsck", "-fn", raw+"?offset="+at)
		dir := t.TempDir()
		must(t, "debugfs", "-R", "rdump / "+dir, raw+"?offset="+at)
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			text, err := os.ReadFile(path)
			info, _ := d.Info()
			fmt.Fprintf(&all, "%s %v %v %q\n", strings.TrimPrefix(path, dir), info.Mode(), info.ModTime().Unix(), text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all.String()
}

func sum(t *testing.T, path string) string {
	t.Helper()
	return fmt.Sprintf("%x", sha256.Sum256([]byte(read(t, path))))
}

// leftNothing fails where something of an apply on an image is still there.
func leftNothing(t *testing.T, dir string) {
	t.Helper()
	for _, name := range []string{"state", "state.mount"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", name, err)
		}
	}
	if mounts := read(t, "/proc/self/mounts"); strings.Contains(mounts, dir) {
		t.Errorf("mounts are left: %s", mounts)
	}
	eventuallyGone(t, dir)
}

// eventuallyGone waits until neither a loop device nor a storage daemon has the image: the kernel frees them after a kill.
func eventuallyGone(t *testing.T, dir string) {
	t.Helper()
	left := ""
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		left = ""
		loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
		for _, name := range loops {
			if text, err := os.ReadFile(name); err == nil && strings.HasPrefix(string(text), dir) {
				left += name + " "
			}
		}
		lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, name := range lines {
			text, err := os.ReadFile(name)
			if err == nil && strings.HasPrefix(string(text), "/usr/bin/qemu-storage-daemon") && strings.Contains(string(text), dir) {
				left += name + " "
			}
		}
		if left == "" {
			return
		}
	}
	t.Errorf("left: %s", left)
}

// Scripts act on an image as on a tree, whatever its format. One that fails or is interrupted or killed leaves the files of the
// image as they were, and nothing on this machine; a dry run changes no byte.
func TestApplyImage(t *testing.T) {
	for _, format := range []string{"raw", "qcow2", "lvm"} {
		t.Run(format, func(t *testing.T) {
			dir := t.TempDir()
			image, script := diskWithSystem(t, dir, format), filepath.Join(dir, "image.lua")
			if err := os.WriteFile(script, []byte(imageScript), 0o600); err != nil {
				t.Fatal(err)
			}
			command := func(args ...string) *exec.Cmd {
				binary, err := agenttest.Binary()
				if err != nil {
					t.Fatal(err)
				}
				all := append([]string{"apply", "--image", image, "--state", filepath.Join(dir, "state"), script}, args...)
				return exec.Command(binary, all...)
			}
			run := func(args ...string) (string, int) {
				t.Helper()
				cmd := command(args...)
				out, err := cmd.CombinedOutput()
				if cmd.ProcessState == nil {
					t.Fatal(err)
				}
				return string(out), cmd.ProcessState.ExitCode()
			}
			before, bytes := imageFiles(t, image), sum(t, image)

			if out, code := run("--drift", "--json", "-q"); code != 7 || !strings.Contains(out, `"drift":true`) || sum(t, image) != bytes {
				t.Errorf("drift: %d %s", code, out)
			}
			leftNothing(t, dir)
			if out, code := run("-n"); code != 0 || sum(t, image) != bytes {
				t.Errorf("dry run: %d %s", code, out)
			}
			if out, code := run("-p", "how=fail"); code != 5 || !strings.Contains(out, "everything is as it was") {
				t.Errorf("%d %s", code, out)
			}
			leftNothing(t, dir)
			if after := imageFiles(t, image); after != before {
				t.Errorf("after a failure\n%s\nbut before\n%s", after, before)
			}

			// Hanging, it is the only one; then it is interrupted, and then killed.
			for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
				hanging := command("-p", "how=hang")
				if err := hanging.Start(); err != nil {
					t.Fatal(err)
				}
				inside := fmt.Sprintf("/proc/%d/root%s/state.mount/root/boot/site.conf", hanging.Process.Pid, dir)
				for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
					if _, err := os.Stat(inside); err == nil {
						break
					}
					if time.Now().After(deadline) {
						_ = hanging.Process.Kill()
						t.Fatal("it does nothing")
					}
				}
				if out, code := run(); code != 1 || !strings.Contains(out, "in use") {
					t.Errorf("a second one: %d %s", code, out)
				}
				if err := hanging.Process.Signal(signal); err != nil {
					t.Fatal(err)
				}
				_ = hanging.Wait()
				if signal == syscall.SIGINT {
					leftNothing(t, dir)
					if after := imageFiles(t, image); after != before {
						t.Errorf("after an interrupt\n%s\nbut before\n%s", after, before)
					}
				}
				eventuallyGone(t, dir)
			}
			if out, code := run("-p", "how=fail"); code != 5 {
				t.Errorf("after a kill: %d %s", code, out)
			}
			leftNothing(t, dir)
			if after := imageFiles(t, image); after != before {
				t.Errorf("after a kill\n%s\nbut before\n%s", after, before)
			}

			if out, code := run(); code != 0 {
				t.Errorf("%d %s", code, out)
			}
			leftNothing(t, dir)
			after := imageFiles(t, image)
			if !strings.Contains(after, "port 80") || !strings.Contains(after, "quiet") || strings.Contains(after, "old.conf") {
				t.Error(after)
			}
			bytes = sum(t, image)
			if out, code := run("--drift"); code != 0 || sum(t, image) != bytes {
				t.Errorf("no drift: %d %s", code, out)
			}
		})
	}
}

// An image that QEMU has open for writing is refused, and so is one without a system.
func TestApplyRefusesImages(t *testing.T) {
	dir := t.TempDir()
	image, script := diskWithSystem(t, dir, "raw"), filepath.Join(dir, "image.lua")
	if err := os.WriteFile(script, []byte(imageScript), 0o600); err != nil {
		t.Fatal(err)
	}
	refused := func(image, why string) {
		t.Helper()
		bytes := sum(t, image)
		out, err := tool(t, "apply", "--image", image, "--state", filepath.Join(dir, "state"), script)
		if err == nil || !strings.Contains(out, why) || sum(t, image) != bytes {
			t.Errorf("%v %s", err, out)
		}
		eventuallyGone(t, dir)
	}
	socket := filepath.Join(dir, "socket")
	daemon := exec.Command("qemu-storage-daemon", "--blockdev", "driver=file,node-name=disk,filename="+image,
		"--nbd-server", "addr.type=unix,addr.path="+socket, "--export", "type=nbd,id=disk,node-name=disk,writable=on")
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = daemon.Process.Kill() }) // it has ended, unless the test failed
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		// The export is made after the socket: it has the permission to write once it can be asked.
		if exec.Command("qemu-img", "info", "nbd+unix:///disk?socket="+socket).Run() == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the storage daemon does nothing")
		}
	}
	refused(image, "in use")
	_ = daemon.Process.Signal(syscall.SIGTERM)
	_ = daemon.Wait()

	must(t, "debugfs", "-w", "-R", "set_super_value state 0", image+"?offset=34603008") // as of a guest that was killed
	refused(image, "not unmounted")

	empty := filepath.Join(dir, "empty.raw")
	if err := os.WriteFile(empty, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	refused(empty, "no file system has an os-release")
	lvm := make([]byte, 1<<20)
	copy(lvm[512:], "LABELONE")
	if err := os.WriteFile(empty, lvm, 0o600); err != nil {
		t.Fatal(err)
	}
	refused(empty, "LVM, and its label is of another kind")
	for words, how := range map[string]string{
		"encrypted by LUKS": "printf 'LUKS\\xba\\xbe' | dd of=\"$1\" conv=notrunc status=none",
		// A mirror whose superblock is at its end has a whole file system before it.
		"a part of a RAID": `mkfs.ext4 -q "$1" && printf '\xfc\x4e\x2b\xa9\x01\0\0\0' | dd of="$1" bs=1 seek=$((1048576 - 8192)) conv=notrunc status=none`,
	} {
		if err := os.WriteFile(empty, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		must(t, "bash", "-ec", how, "bash", empty)
		refused(empty, "the disk is "+words+", which is not supported: ")
	}
}
