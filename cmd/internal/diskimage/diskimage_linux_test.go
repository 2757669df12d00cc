package diskimage

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// disk makes a disk of 64 MiB with the partitions that sfdisk is told.
func disk(t *testing.T, table string) *os.File {
	t.Helper()
	if _, err := exec.LookPath("sfdisk"); err != nil {
		t.Skip("no sfdisk: install fdisk")
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(64 << 20); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sfdisk", "-q", f.Name())
	cmd.Stdin = strings.NewReader(table)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	return f
}

// Partitions are found where sfdisk made them, with its numbers and identifiers.
func TestPartitions(t *testing.T) {
	const id = "0fc63daf-8483-4772-8e79-3d69d8477de4"
	for name, c := range map[string]struct {
		table string
		want  []span
	}{
		"gpt": {"label: gpt\nstart=2048, size=8192, uuid=" + id + "\nsize=4096, uuid=11111111-2222-3333-4444-555555555555\n", []span{
			{1, 1 << 20, 4 << 20, id}, {2, 5 << 20, 2 << 20, "11111111-2222-3333-4444-555555555555"},
		}},
		"mbr": {"label: dos\nlabel-id: 0x0badcafe\nstart=2048, size=8192\nstart=20480, type=5\n" +
			"start=22528, size=4096\nstart=40960, size=8192\n",
			[]span{{1, 1 << 20, 4 << 20, "0badcafe-01"}, {5, 11 << 20, 2 << 20, "0badcafe-05"}, {6, 20 << 20, 4 << 20, "0badcafe-06"}}},
	} {
		f := disk(t, c.table)
		got, err := partitions(f, 64<<20)
		if err != nil || len(got) != len(c.want) {
			t.Errorf("%s: %v %v", name, got, err)
			continue
		}
		for i := range got {
			if got[i] != c.want[i] {
				t.Errorf("%s: %+v, want %+v", name, got[i], c.want[i])
			}
		}
	}
}

// A damaged table gives an error, and neither a panic nor a span outside of the disk.
func FuzzPartitions(f *testing.F) {
	head := make([]byte, 8<<10)
	copy(head[512:], "EFI PART")
	head[512+72], head[512+80], head[512+84] = 2, 4, 128
	head[1024], head[1024+32], head[1024+40] = 1, 1, 200
	f.Add(head)
	boot := make([]byte, 8<<10)
	boot[510], boot[511], boot[450], boot[454], boot[458] = 0x55, 0xaa, 5, 1, 1
	f.Add(boot)
	f.Add(lvmDisk(f)[:20<<10])
	f.Fuzz(func(t *testing.T, data []byte) {
		size := int64(len(data))
		list, _ := volumes(strings.NewReader(string(data)), size)
		for _, v := range list {
			if v.start < 0 || v.len < 0 || v.start+v.len > size {
				t.Errorf("%+v of %d bytes", v, size)
			}
		}
	})
}

// What mkfs made is known by its type, identifier and label, and by whether it was unmounted.
func TestIdentify(t *testing.T) {
	const id = "11111111-2222-3333-4444-555555555555"
	for kind, command := range map[string][]string{
		"ext4":  {"mkfs.ext4", "-q", "-F", "-U", id, "-L", "some name"},
		"xfs":   {"mkfs.xfs", "-q", "-m", "uuid=" + id, "-L", "some_name"},
		"btrfs": {"mkfs.btrfs", "-q", "-U", id, "-L", "some name"},
		"vfat":  {"mkfs.vfat", "-F", "32", "-i", "1234abcd", "-n", "SOME NAME"},
	} {
		t.Run(kind, func(t *testing.T) {
			if _, err := exec.LookPath(command[0]); err != nil {
				t.Skip(err)
			}
			f, err := os.Create(filepath.Join(t.TempDir(), "volume"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := f.Truncate(512 << 20); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(command[0], append(command[1:], f.Name())...).CombinedOutput(); err != nil {
				t.Fatalf("%v %s", err, out)
			}
			want := id
			if kind == "vfat" {
				want = "1234-ABCD"
			}
			all, err := volumes(f, 512<<20)
			if err != nil || len(all) != 1 || all[0].kind != kind || all[0].uuid != want || all[0].dirty != "" {
				t.Errorf("%+v %v", all, err)
			} else if label := strings.ToLower(strings.ReplaceAll(all[0].label, "_", " ")); label != "some name" {
				t.Errorf("the label is %q", all[0].label)
			}
		})
	}
}

// Of an fstab that is mounted which is a disk's and wanted at boot, outer directories first.
func TestFstab(t *testing.T) {
	root, list := parseFstab(`# comment
UUID=AA-BB /boot/efi vfat umask=0077 0 1
/dev/vda1 / ext4 defaults 0 1
PARTUUID=0badcafe-02	/boot  ext4
/dev/vda5 none swap sw
tmpfs /tmp tmpfs defaults
LABEL=my\040data /srv/a\040b xfs nofail,x-systemd.device-timeout=1
/dev/vdb1 /backup ext4 noauto
host:/x /net nfs _netdev
`)
	var got []string
	for _, m := range list {
		got = append(got, m.source+" "+m.target)
	}
	if want := "PARTUUID=0badcafe-02 /boot|UUID=AA-BB /boot/efi|LABEL=my data /srv/a b"; strings.Join(got, "|") != want {
		t.Errorf("%q", got)
	}
	if root.source != "/dev/vda1" {
		t.Errorf("the root is %+v", root)
	}
	v := volume{span: span{number: 2, uuid: "0badcafe-02"}, uuid: "AA-bb", label: "my data"}
	for source, want := range map[string]bool{
		"UUID=aa-BB": true, "UUID=": false, "LABEL=my data": true, `UUID="AA-BB"`: true, "PARTUUID=0BADCAFE-02": true,
		"/dev/vda2": true, "/dev/nvme0n1p2": true, "/dev/vda12": false, "/dev/vdb2": false, "/dev/nvme1n1p2": false, "/dev/vda": false, "/dev/mapper/2": false, "/dev/disk/by-uuid/AA-BB": true,
	} {
		if v.is(source, disksOf(mountLine{source: "UUID=x"})) != want {
			t.Errorf("%s: %v", source, !want)
		}
	}
	disks := disksOf(mountLine{source: "/dev/sdb1"})
	if !v.is("/dev/sdb2", disks) || v.is("/dev/sda2", disks) || v.is("/dev/vda2", disks) {
		t.Errorf("of %q", disks)
	}
}
