package diskimage

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const mib = 1 << 20

// lvmDisk returns a disk of 65 MiB whose head lvm 2.03.16 wrote: the group my-vg with the volumes root (32 MiB), the-boot
// (16), data (4, and 1 after the next one) and other (4).
func lvmDisk(t testing.TB) []byte {
	t.Helper()
	f, err := os.Open("testdata/lvm.head.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	disk := make([]byte, 65*mib)
	if _, err := io.ReadFull(r, disk[:20<<10]); err != nil {
		t.Fatal(err)
	}
	return disk
}

// seen says what is found on a disk, a line for each volume.
func seen(t testing.TB, disk []byte) string {
	t.Helper()
	list, err := volumes(bytes.NewReader(disk), int64(len(disk)))
	if err != nil {
		t.Error(err)
	}
	var b strings.Builder
	for _, v := range list {
		fmt.Fprintf(&b, "%v %d+%d %s\n", v, v.start/mib, v.len/mib, v.foreign)
	}
	return b.String()
}

const lvmSeen = `volume my-vg/data 0+0 a volume of LVM (in several pieces: make it one by pvmove, or activate it by lvm, mount it and give --root)
volume my-vg/other 53+4 
volume my-vg/root 1+32 
volume my-vg/the-boot 33+16 
`

// The volumes of LVM are found where its tools made them, whatever is damaged is told, and no panic comes of it.
func TestLogicalVolumes(t *testing.T) {
	disk := lvmDisk(t)
	if got := seen(t, disk); got != lvmSeen {
		t.Errorf("%s\nwant\n%s", got, lvmSeen)
	}
	const luks, raid = 33 * mib, 53*mib + 4096
	copy(disk[luks:], "LUKS\xba\xbe")
	le.PutUint32(disk[raid:], raidMagic)
	if got := seen(t, disk); !strings.Contains(got, "the-boot 33+16 encrypted by LUKS") || !strings.Contains(got, "other 53+4 a part of a RAID") {
		t.Error(got)
	}
	for at, want := range map[int]string{512 + 30: "its label", 4096 + 41: "metadata area is damaged", 4096 + 10752 + 100: "metadata area is damaged"} {
		disk := lvmDisk(t)
		disk[at] ^= 0x11
		if got := seen(t, disk); !strings.HasPrefix(got, "the disk 0+65 a physical volume of LVM, and "+want) && !strings.Contains(got, want) {
			t.Errorf("with byte %d changed: %s", at, got)
		}
	}
	twice := append(lvmDisk(t), lvmDisk(t)...)
	list := logicalVolumes(bytes.NewReader(twice), []volume{
		{span: span{1, 0, 65 * mib, ""}, foreign: foreignLVM}, {span: span{2, 65 * mib, 65 * mib, ""}, foreign: foreignLVM},
	})
	for _, v := range list {
		if v.foreign == "" {
			t.Errorf("of two copies one is used: %+v", v)
		}
	}
	names := volume{logical: "my-vg/the-boot", uuid: "1"}
	for source, want := range map[string]bool{
		"/dev/mapper/my--vg-the--boot": true, "/dev/my-vg/the-boot": true, "UUID=1": true, "/dev/mapper/my-vg-the-boot": false, "/dev/vda": false,
	} {
		if names.is(source, firstDisks) != want {
			t.Errorf("%s: %v", source, !want)
		}
	}
}

// What is not in one piece of this disk, or would not be as it was for another volume, is told.
func TestVolumesThatAreNotUsed(t *testing.T) {
	disk := lvmDisk(t)
	p, err := readPhysical(bytes.NewReader(disk), volume{span: span{len: int64(len(disk))}})
	if err != nil {
		t.Fatal(err)
	}
	root := p.text[strings.Index(p.text, "\nroot {"):]
	for name, c := range map[string]struct{ from, to, want string }{
		"thin":         {`type = "striped"`, `type = "thin"`, `of the type "thin"`},
		"striped":      {"stripe_count = 1", "stripe_count = 2", "in stripes"},
		"beyond":       {"extent_count = 32", "extent_count = 65", "damaged"},
		"far beyond":   {"extent_count = 32", "extent_count = 9000000000000000000", "damaged"},
		"before":       {`"pv0", 0`, `"pv0", -1`, "damaged"},
		"another disk": {`"pv0", 0`, `"pv1", 0`, "not the image"},
		"read-only":    {`"READ", "WRITE", "VISIBLE"`, `"READ", "VISIBLE"`, "only be read"},
		"no segment":   {"segment_count = 1", "segment_count = 2", `of the type ""`},
		"an origin":    {`type = "striped"`, `origin = "root" type = "striped"`, "snapshot"},
	} {
		text := strings.Replace(p.text, root, strings.Replace(root, c.from, c.to, 1), 1)
		name2, group1, err := parseGroup(text)
		if err != nil || text == p.text {
			t.Fatal(name, err)
		}
		list := group{section: group1, name: name2, all: []physical{p}}.volumes()
		if len(list) != 4 || list[2].logical != "my-vg/root" || !strings.Contains(list[2].foreign, c.want) {
			t.Errorf("%s: %+v", name, list)
		}
	}
	for _, text := range []string{"", "a {", "a }", "a = ", `a = "b`, "a { id = 1 }", "a = [1 2]", "a = 1 a = 2", strings.Repeat("a {", 99), `a { id = "1" } b { id = "2" }`} {
		if _, _, err := parseGroup(text); err == nil {
			t.Errorf("%q is read", text)
		}
	}
	text := "# c\na { # d\n id = \"q\\\"\" n = -7 f = 1.5 l = [] m = [ \"x\", 2 ] }"
	if _, s, err := parseGroup(text); err != nil || s.text("id") != `q"` || s.number("n") != -7 || len(s.list("m")) != 2 {
		t.Errorf("%v %v", s, err)
	}
}

// A mirror of md whose superblock is at its end looks like a file system, and is none to be written.
func TestRAIDAtTheEnd(t *testing.T) {
	for name, c := range map[string]struct {
		at   int
		head []uint32
		is   bool
	}{
		"0.90":    {16*mib - 64<<10, []uint32{raidMagic, 0, 90}, true},
		"1.0":     {16*mib - 8<<10, []uint32{raidMagic, 1, 0}, true},
		"nothing": {16*mib - 8<<10, []uint32{raidMagic, 7, 0}, false},
	} {
		disk := make([]byte, 16*mib)
		for n, word := range c.head {
			le.PutUint32(disk[c.at+4*n:], word)
		}
		if got := seen(t, disk); strings.Contains(got, foreignRAID) != c.is {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// What the tools of today write is read as well.
func TestLogicalVolumesOfTheTools(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a loop device")
	}
	for _, tool := range []string{"lvm", "losetup"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 65*mib); err != nil {
		t.Fatal(err)
	}
	// The tools make volumes without a device mapper, as many as the text has room for and more: it goes round.
	out, err := exec.Command("sh", "-ec", `
		loop=$(losetup -f --show "$1")
		trap 'losetup -d $loop' EXIT
		exec 3>&- 2>&1
		o="--driverloaded n --devices $loop"
		lvm pvcreate $o --metadatasize 32k $loop
		lvm vgcreate $o -s 1M my-vg $loop
		lvm lvcreate $o -an -Zn -Wn -L 32M -n root my-vg
		lvm lvcreate $o -an -Zn -Wn -L 16M -n the-boot my-vg
		lvm lvcreate $o -an -Zn -Wn -L 4M -n data my-vg
		lvm lvcreate $o -an -Zn -Wn -L 4M -n other my-vg
		lvm lvextend $o -L +1M my-vg/data
		for n in 1 2 3 4 5 6 7 8 9 10 11 12; do lvm vgchange $o --addtag t$n my-vg; done`, "sh", path).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	disk, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := seen(t, disk); got != lvmSeen {
		t.Errorf("%s\n%s", got, out)
	}
}
