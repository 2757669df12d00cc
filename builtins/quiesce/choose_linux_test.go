package quiesce

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/builtins/internal/freeze"
)

const mountinfo = `21 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro,discard
22 21 0:5 / /proc rw,nosuid shared:2 - proc proc rw
23 21 254:1 /srv /mnt/bind ro,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro,discard
24 21 254:2 / /mnt/with\040space rw shared:3 - xfs /dev/vda2 rw,attr2
25 21 254:3 / /mnt/readonly ro shared:4 - ext4 /dev/vda3 ro
26 21 254:4 / /boot/efi rw shared:5 - vfat /dev/vda4 rw,fmask=0022
27 21 0:44 / /mnt/nfs rw shared:6 - nfs4 server:/export rw,vers=4.2
28 21 0:45 / /run rw shared:7 - tmpfs tmpfs rw
29 21 0:46 /a /mnt/sub rw shared:8 - btrfs /dev/vdb rw,subvolid=256,subvol=/a
30 21 0:46 /b /mnt/sub/other rw shared:8 - btrfs /dev/vdb rw,subvolid=257,subvol=/b
31 21 254:5 / /mnt/hidden rw shared:9 - ext4 /dev/vda5 rw
32 31 0:47 / /mnt/hidden rw shared:10 - tmpfs none rw
33 21 0:48 / /home/u/disk rw - fuse.sshfs host:/ rw,user_id=1000
nonsense
`

var types = map[string]bool{"ext4": true, "xfs": true, "vfat": true, "btrfs": true}

func TestParseMounts(t *testing.T) {
	mounts := freeze.ParseMounts(mountinfo)
	if len(mounts) != 13 {
		t.Fatalf("%d mounts", len(mounts))
	}
	for i, want := range map[int]freeze.Mount{
		0: {ID: 21, Device: "254:1", Point: "/", Type: "ext4", Source: "/dev/vda1"},
		2: {ID: 23, Device: "254:1", Point: "/mnt/bind", Type: "ext4", Source: "/dev/vda1"}, // the mount is read-only, the file system is not
		3: {ID: 24, Device: "254:2", Point: "/mnt/with space", Type: "xfs", Source: "/dev/vda2"},
		4: {ID: 25, Device: "254:3", Point: "/mnt/readonly", Type: "ext4", Source: "/dev/vda3", ReadOnly: true},
	} {
		if mounts[i] != want {
			t.Errorf("%v, want %v", mounts[i], want)
		}
	}
}

// Of the blanks that Unicode has the kernel escapes only two: the others are parts of the name of a mount point.
func TestParseMountWithBlanks(t *testing.T) {
	for _, name := range []string{"a\u3000b", "a\u00a0b", "a\u0085b", "a\u2003", "a\rb", "a\fb"} {
		mounts := freeze.ParseMounts("24 21 254:2 / /mnt/" + name + " rw shared:3 - xfs /dev/vda2 rw\n")
		if len(mounts) != 1 || mounts[0].Point != "/mnt/"+name {
			t.Errorf("%q: %v", name, mounts)
		}
	}
}

// All that can be written to and is on a disk is chosen, each once; what holds data and cannot be frozen is told, with its
// type.
func TestChooseAll(t *testing.T) {
	systems, others := choose(freeze.ParseMounts(mountinfo), types, nil)
	var points, told []string
	for _, s := range systems {
		points = append(points, s.Point)
	}
	for _, l := range others {
		told = append(told, l.mount.Point+": "+l.why.Error())
	}
	if want := []string{"/", "/mnt/with space", "/boot/efi", "/mnt/sub"}; !slices.Equal(points, want) {
		t.Errorf("%q, want %q", points, want)
	}
	if len(told) != 2 || !strings.Contains(told[0], "/mnt/nfs: nfs4 cannot") || !strings.Contains(told[1], "/home/u/disk: fuse.sshfs cannot") {
		t.Errorf("%q", told)
	}
	if want := []string{"/mnt/bind"}; !slices.Equal(systems[0].Others, want) {
		t.Errorf("%q", systems[0].Others)
	}
}

func TestChooseNamed(t *testing.T) {
	systems, others := choose(freeze.ParseMounts(mountinfo), types, []string{"/mnt/bind/", "/mnt/with space", "/", "/mnt/hidden", "/mnt/readonly", "/mnt/nowhere"})
	if len(systems) != 2 || systems[0].Point != "/" && systems[0].Point != "/mnt/bind" || systems[1].Point != "/mnt/with space" {
		t.Error(systems)
	}
	if len(others) != 3 || !errors.Is(others[0].why, errors.ErrUnsupported) {
		t.Error(others)
	}
}
