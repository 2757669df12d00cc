//go:build vm

package vmtest_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest"
	"github.com/quantix-kvm/guest-agent/wire/client"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// plugIn gives a running machine a disk that is a raw image of the host. The guest sees it as /dev/disk/by-id/virtio-NAME, and
// QEMU's monitor knows it by the name.
func plugIn(t *testing.T, vm *vmtest.VM, name, image string, readOnly bool) string {
	t.Helper()
	ctx := limited(t, time.Minute)
	node := map[string]any{
		"driver": "raw", "node-name": name, "read-only": readOnly, "file": map[string]any{"driver": "file", "filename": image},
	}
	err := vm.QMP(ctx, "blockdev-add", node, nil)
	if err == nil {
		err = vm.QMP(ctx, "device_add", map[string]any{
			"driver": "virtio-blk-pci", "id": "disk-" + name, "drive": name, "serial": name,
		}, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	device := "/dev/disk/by-id/virtio-" + name
	eventually(t, vm, "the disk is there", "test -b "+device)
	return device
}

// imageOf makes a raw image of a size in MiB with a file system; false: the host has no program for that.
func imageOf(t *testing.T, kind string, size int64, options ...string) (string, bool) {
	t.Helper()
	program, err := exec.LookPath("mkfs." + kind)
	if err != nil {
		t.Logf("without %s: %v", kind, err)
		return "", false
	}
	image := filepath.Join(t.TempDir(), kind+".raw")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, size<<20)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(program, append(options, image)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return image, true
}

// hungFUSE is a program of the guest that mounts a file system in user space and answers none of its requests.
const hungFUSE = `import ctypes, os, time
libc = ctypes.CDLL(None, use_errno=True)
fd = os.open("/dev/fuse", os.O_RDWR)
options = b"fd=%d,rootmode=40000,user_id=0,group_id=0" % fd
if libc.mount(b"hung", b"/srv/hung", b"fuse.sshfs", 0, options) != 0:
    raise OSError(ctypes.get_errno(), "mount")
time.sleep(100000)
`

// Every kind of disk is frozen, or told by its type and why, and thawed: what device mapper makes of a loop device, btrfs with
// a subvolume that is mounted by itself, a mount point with a space, a bind mount, vfat, and a file system in user space that
// hangs. Then the guest is frozen again and again under load, QUANTIX_ROUNDS times.
func TestQuiesceKindsOfDisks(t *testing.T) {
	vm := machine(t, vmtest.Options{})
	startAgent(t, vm)
	frozen, named := []string{"/", "/srv/dm", "/srv/outer"}, []string{"/srv/hung"}
	vm.Must(t, `mkdir -p /srv/outer /srv/dm /srv/hung /srv/bind && modprobe -a fuse loop dm_mod
		truncate -s 48M /var/tmp/outer && mkfs.ext4 -q /var/tmp/outer && mount -o loop /var/tmp/outer /srv/outer &&
		truncate -s 16M /srv/outer/inner && loop=$(losetup -f --show /srv/outer/inner) &&
		dmsetup create volume --table "0 32768 linear $loop 0" && mkfs.ext4 -q /dev/mapper/volume &&
		mount /dev/mapper/volume /srv/dm && mount --bind /etc /srv/bind && mount -o remount,bind,ro /srv/bind`)
	for _, disk := range []struct {
		kind, point string
		size        int64
		options     []string
		cannot      bool
	}{
		{"xfs", "/srv/with space", 320, []string{"-q"}, false}, {"btrfs", "/srv/btrfs", 128, []string{"-q"}, false},
		{"ext2", "/srv/ext2", 16, []string{"-q"}, false}, {"f2fs", "/srv/f2fs", 64, []string{"-q"}, false},
		{"vfat", "/srv/vfat", 16, nil, true},
	} {
		image, made := imageOf(t, disk.kind, disk.size, disk.options...)
		if !made || vm.Must(t, "modprobe "+disk.kind+" 2>/dev/null && echo there || true") == "" {
			t.Logf("not tried: %s", disk.kind)
			continue
		}
		device := plugIn(t, vm, disk.kind, image, false)
		vm.Must(t, fmt.Sprintf("mkdir -p '%s' && mount -t %s %s '%s'", disk.point, disk.kind, device, disk.point))
		if disk.cannot {
			named = append(named, disk.point)
		} else {
			frozen = append(frozen, disk.point)
		}
	}
	if slices.Contains(frozen, "/srv/btrfs") { // the ioctl BTRFS_IOC_SUBVOL_CREATE, for want of the program
		vm.Must(t, `python3 -c 'import fcntl, os
fcntl.ioctl(os.open("/srv/btrfs", os.O_RDONLY), 0x5000940e, bytearray(8) + b"sub".ljust(4088, b"\0"), True)' &&
			mkdir /srv/btrfs-subvolume && mount -o subvol=sub /dev/disk/by-id/virtio-btrfs /srv/btrfs-subvolume`)
	}
	vm.Must(t, fmt.Sprintf("python3 -c '%s' </dev/null >/dev/null 2>&1 &", hungFUSE))
	eventually(t, vm, "it is mounted", "grep -q /srv/hung /proc/mounts")
	c := dial(t, vm, vmtest.AgentPort, client.Options{})
	reply := freezeGuest(t, c, &pb.QuiesceFilesystemsRequest{})
	var isFrozen, isNamed []string
	for _, f := range reply.Frozen {
		t.Logf("%s %s: frozen %v %s, also at %q", f.Filesystem, f.MountPoint, f.Frozen, f.Error, f.OtherMountPoints)
		switch {
		case f.Frozen:
			isFrozen = append(isFrozen, f.MountPoint)
		case strings.Contains(f.Error, f.Filesystem+" cannot be frozen"):
			isNamed = append(isNamed, f.MountPoint)
		}
		others := map[string][]string{"/": {"/srv/bind"}, "/srv/btrfs": {"/srv/btrfs-subvolume"}}
		if want := others[f.MountPoint]; !slices.Equal(f.OtherMountPoints, want) {
			t.Errorf("%s is also at %q, want %q", f.MountPoint, f.OtherMountPoints, want)
		}
	}
	dm, outer := slices.Index(isFrozen, "/srv/dm"), slices.Index(isFrozen, "/srv/outer")
	if dm > outer || outer > slices.Index(isFrozen, "/") {
		t.Errorf("frozen in the order %q", isFrozen)
	}
	for _, list := range []*[]string{&frozen, &named, &isFrozen, &isNamed} {
		slices.Sort(*list)
	}
	if !slices.Equal(isFrozen, frozen) || !slices.Equal(isNamed, named) {
		t.Errorf("frozen %q, want %q; named %q, want %q", isFrozen, frozen, isNamed, named)
	}
	wrote := func(point string) string {
		return "/run/wrote" + strings.NewReplacer("/", "_", " ", "_").Replace(point)
	}
	for _, point := range frozen {
		vm.Must(t, fmt.Sprintf("(touch '%s/written' && touch %s) </dev/null >/dev/null 2>&1 &", point, wrote(point)))
	}
	vm.Must(t, "sleep 1")
	for _, point := range frozen {
		vm.Must(t, "test ! -e "+wrote(point))
	}
	thawed := thawGuest(t, c, reply.QuiesceToken)
	slices.Sort(thawed.ThawedMountPoints)
	if !slices.Equal(thawed.ThawedMountPoints, frozen) {
		t.Errorf("thawed %q, want %q", thawed.ThawedMountPoints, frozen)
	}
	for _, point := range frozen {
		eventually(t, vm, point+" is written to", "test -e "+wrote(point))
	}
	manyTimes(t, vm, c, frozen, numberFrom(t, "QUANTIX_ROUNDS", 5))
}

// manyTimes freezes and thaws under load: each fifth time the guest, and else two disks of which one lies on the other. A
// freeze that takes longer than the agent lets it, as on a host that is busy, is given up, and all is to be written to after
// it.
func manyTimes(t *testing.T, vm *vmtest.VM, c *client.Client, points []string, rounds int) {
	t.Helper()
	for _, point := range points {
		if point == "/" {
			point = "/root"
		}
		vm.Must(t, fmt.Sprintf(`cd '%s'; (n=0; while :; do
			n=$((n+1)); echo $n >load$((n %% 20)); [ $((n %% 50)) = 0 ] && sync load0
		done) </dev/null >/dev/null 2>&1 &`, point))
	}
	var freezes, thaws []time.Duration
	writable := func() {
		t.Helper()
		for _, point := range points {
			eventually(t, vm, point+" is written to", fmt.Sprintf("touch '%s/written'", point))
		}
	}
	for round := range rounds {
		in, want := &pb.QuiesceFilesystemsRequest{MountPoints: []string{"/srv/outer", "/srv/dm"}}, 2
		if round%5 == 0 {
			in, want = &pb.QuiesceFilesystemsRequest{}, len(points)
		}
		begun := time.Now()
		reply, err := client.Call[*pb.QuiesceFilesystemsResponse](limited(t, time.Minute), c, in)
		if fault.Code(err) == "timeout" {
			t.Logf("round %d is given up: %v", round, err)
			writable()
			continue
		}
		if err != nil || !reply.Success {
			t.Fatal(reply, err)
		}
		frozen := time.Now()
		if thawed := thawGuest(t, c, reply.QuiesceToken).ThawedMountPoints; len(thawed) != want {
			t.Fatalf("thawed %q, not %d", thawed, want)
		}
		freezes, thaws = append(freezes, frozen.Sub(begun)), append(thaws, time.Since(frozen))
	}
	writable()
	vm.Must(t, "systemctl is-active quantix-kvm-agent; test ! -e /run/quantix-kvm/frozen")
	if len(freezes) < (rounds+1)/2 {
		t.Fatalf("%d of %d rounds were frozen", len(freezes), rounds)
	}
	slices.Sort(freezes)
	slices.Sort(thaws)
	t.Logf("%d rounds of 2 file systems, each fifth of %d, under load: a freeze takes %v, at most %v; a thaw %v, at most %v",
		len(freezes), len(points), freezes[len(freezes)/2], slices.Max(freezes), thaws[len(thaws)/2], slices.Max(thaws))
}
