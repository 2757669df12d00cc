package host

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const someFstab = "# static\n\nUUID=0a1b / ext4 errors=remount-ro 0 1\n/dev/vdb1\t/old\\040place\text4\tdefaults\t0 2\n" +
	"/swapfile none swap sw 0 0\n# end\nnone /tmp tmpfs nosuid"

func TestEditFstab(t *testing.T) {
	want := &fstabEntry{source: "LABEL=my disk", target: "/srv", fstype: "ext4", options: "defaults", pass: 2}
	added, was, err := editFstab([]byte(someFstab), "/srv", want, nil)
	if err != nil || was != nil || string(added) != someFstab+"\nLABEL=my\\040disk /srv ext4 defaults 0 2\n" {
		t.Errorf("%q %v %v", added, was, err)
	}
	for _, same := range []string{string(added), someFstab + "\nLABEL=my\\040disk\t\t/srv/  ext4\tdefaults 0\t2\n"} { // however it is written
		if got, was, err := editFstab([]byte(same), "/srv", want, nil); err != nil || string(got) != same || same == string(added) && *was != *want {
			t.Errorf("%q %v", got, err)
		}
	}
	other := &fstabEntry{source: "/dev/vdc", target: "/old place", fstype: "xfs", options: "noatime"}
	got, was, err := editFstab([]byte(someFstab), "/old place", other, nil)
	if err != nil || was.source != "/dev/vdb1" ||
		string(got) != strings.Replace(someFstab, "/dev/vdb1\t/old\\040place\text4\tdefaults\t0 2", "/dev/vdc /old\\040place xfs noatime 0 0", 1) {
		t.Errorf("%q %v %v", got, was, err)
	}
	if got, _, err := editFstab(added, "/srv", nil, nil); err != nil || string(got) != someFstab+"\n" {
		t.Errorf("%q %v", got, err)
	}
	if got, was, err := editFstab([]byte(someFstab), "/tmp", nil, nil); err != nil || was == nil || string(got) != strings.TrimSuffix(someFstab, "none /tmp tmpfs nosuid") {
		t.Errorf("%q %v", got, err)
	}
	if got, _, err := editFstab(nil, "/srv", want, nil); err != nil || string(got) != want.String()+"\n" {
		t.Errorf("%q %v", got, err)
	}
	for _, behind := range []string{"\n", " # of the data#1\n", "\t#x\r\n", "", " # no end"} {
		line := "a /srv ext4 comment=a#b 0 0" + behind
		if got, _, err := editFstab([]byte(line), "/srv", want, nil); err != nil || string(got) != want.String()+strings.TrimSuffix(behind, "\n")+"\n" {
			t.Errorf("%q: %q %v", line, got, err)
		}
	}
	if _, _, err := editFstab([]byte("a /x ext4\nb /x ext4\n"), "/x", want, nil); !errors.Is(err, fault.ErrRefused) || !strings.Contains(err.Error(), "lines 1 and 2") {
		t.Error(err)
	}
	for _, e := range []fstabEntry{
		{source: `//nas/a\b#c`, target: "/a\tb #\\", fstype: "cifs", options: "credentials=/etc/a b"}, {source: "#x", target: "/ü", fstype: "auto", options: "ro", dump: 1},
	} {
		if back, ok := parseEntry(e.String()); !ok || back != e {
			t.Errorf("%q is read as %+v", e.String(), back)
		}
	}
}

func TestEscapeLink(t *testing.T) {
	for tag, want := range map[string]string{"my disk": `my\x20disk`, "a/b": `a\x2fb`, "0A1b-C": "0A1b-C", "ü": "ü"} {
		if got := escapeLink(tag); got != want {
			t.Errorf("%q is %q", tag, got)
		}
	}
}

// Below another root fstab and the directory are all there is.
func TestMountBelowRoot(t *testing.T) {
	g := newTree(t)
	g.room.guest.Live = false
	fstab := filepath.Join(g.dir, "etc/fstab")
	if err := os.WriteFile(fstab, []byte(someFstab), 0o640); err != nil {
		t.Fatal(err)
	}
	do := func(name string, in *pb.MountArgs) (bool, error) {
		g.kept, g.changes = nil, nil
		row := map[bool]string{true: "host.mount", false: "host.unmount"}[name == "mount"]
		var out any
		var err error
		if row == "host.mount" {
			out, err = invokeAs(g.call, g.room, row, in)
		} else {
			out, err = invokeAs(g.call, g.room, row, &pb.UnmountArgs{Target: in.Target})
		}
		if err != nil {
			return false, err
		}
		return out.(*pb.Changed).Changed, nil
	}
	wish := &pb.MountArgs{Source: "UUID=77-88", Target: "/srv/data", Fstype: "xfs", Options: "nofail,nodev", Pass: 2}
	for _, want := range []bool{true, false} {
		changed, err := do("mount", wish)
		kept := []string(nil)
		if want {
			kept = []string{"/etc/fstab", "/srv", "/srv/data"}
		}
		if err != nil || changed != want || !slices.Equal(g.kept, kept) {
			t.Errorf("changed is %t, kept %q, %v", changed, g.kept, err)
		}
	}
	g.holds("etc/fstab", someFstab+"\nUUID=77-88 /srv/data xfs nofail,nodev 0 2\n")
	if info, err := os.Stat(fstab); err != nil || info.Mode().Perm() != 0o640 {
		t.Error(info, err)
	}
	if info, err := os.Stat(filepath.Join(g.dir, "srv/data")); err != nil || !info.IsDir() {
		t.Error(err)
	}
	for _, want := range []bool{true, false} {
		if changed, err := do("unmount", wish); err != nil || changed != want {
			t.Error(changed, err)
		}
	}
	g.holds("etc/fstab", someFstab+"\n")
}

// A line of fstab may name the directory by a link.
func TestFstabNamesALink(t *testing.T) {
	for _, line := range []string{"LABEL=data /data/sub ext4 defaults 0 2", "/dev/vdb /data/sub/ ext4 noatime 0 0"} {
		g := newTree(t)
		g.room.guest.Live = false
		err := errors.Join(os.MkdirAll(filepath.Join(g.dir, "srv/real"), 0o755), os.Symlink("/srv/real", filepath.Join(g.dir, "data")),
			os.WriteFile(filepath.Join(g.dir, "etc/fstab"), []byte(line+"\nserver:/x /data nfs defaults\n"), 0o644))
		if err != nil {
			t.Fatal(err)
		}
		mount := &pb.MountArgs{Source: "LABEL=data", Target: "/data/sub", Fstype: "ext4", Pass: 2}
		if _, err := invokeAs(g.call, g.room, "host.mount", mount); err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(line, "/dev") {
			line = "LABEL=data /srv/real/sub ext4 defaults 0 2"
		}
		g.holds("etc/fstab", line+"\nserver:/x /data nfs defaults\n")
		if _, err := invokeAs(g.call, g.room, "host.unmount", &pb.UnmountArgs{Target: "/srv/real/sub"}); err != nil {
			t.Fatal(err)
		}
		g.holds("etc/fstab", "server:/x /data nfs defaults\n")
	}
}

func TestSourcesWithSlashes(t *testing.T) {
	for _, in := range []*pb.MountArgs{{Source: "host/share", Fstype: "9p"}, {Source: "a/b", Fstype: "virtiofs"}, {Source: "LABEL=/boot", Fstype: "ext3"},
		{Source: "LABEL=data-1..2", Fstype: "ext4"}} {
		if _, err := newEntry(in, "/mnt"); err != nil {
			t.Error(in, err)
		}
	}
}

func TestMountRefuses(t *testing.T) {
	g := newTree(t)
	g.room.guest.Live = false
	g.room.guest.Protected = []string{"/var/lib/agent"}
	for _, dir := range []string{"var/lib/agent/x", "srv"} {
		if err := os.MkdirAll(filepath.Join(g.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(g.dir, "srv/file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	good := func() *pb.MountArgs { return &pb.MountArgs{Source: "/dev/vdb", Target: "/srv/data", Fstype: "ext4"} }
	for name, spoil := range map[string]func(in *pb.MountArgs){
		"no source":        func(in *pb.MountArgs) { in.Source = "" },
		"no type":          func(in *pb.MountArgs) { in.Fstype = "" },
		"no target":        func(in *pb.MountArgs) { in.Target = "" },
		"relative":         func(in *pb.MountArgs) { in.Target = "srv" },
		"root":             func(in *pb.MountArgs) { in.Target = "/" },
		"root by dots":     func(in *pb.MountArgs) { in.Target = "/srv/.." },
		"etc":              func(in *pb.MountArgs) { in.Target = "/etc" },
		"state":            func(in *pb.MountArgs) { in.Target = "/var/lib/agent" },
		"in the state":     func(in *pb.MountArgs) { in.Target = "/var/lib/agent/x" },
		"above the state":  func(in *pb.MountArgs) { in.Target = "/var" },
		"a file":           func(in *pb.MountArgs) { in.Target = "/srv/file" },
		"newline":          func(in *pb.MountArgs) { in.Source = "/dev/vdb\nx" },
		"NUL":              func(in *pb.MountArgs) { in.Options = "ro\x00" },
		"newline in place": func(in *pb.MountArgs) { in.Target = "/srv/a\nb" },
		"type with blank":  func(in *pb.MountArgs) { in.Fstype = "ext4 x" },
		"option as type":   func(in *pb.MountArgs) { in.Fstype = "-o" },
		"swap":             func(in *pb.MountArgs) { in.Fstype = "swap" },
		"empty tag":        func(in *pb.MountArgs) { in.Source = "UUID=" },
		"tag with path":    func(in *pb.MountArgs) { in.Source = "LABEL=../../etc" },
		"remount":          func(in *pb.MountArgs) { in.Options = "ro,remount" },
		"pass":             func(in *pb.MountArgs) { in.Pass = 10 },
		"relative bind":    func(in *pb.MountArgs) { in.Source, in.Fstype, in.Options = "etc", "", "bind" },
		"relative image":   func(in *pb.MountArgs) { in.Source, in.Options = "srv/a.img", "loop" },
		"relative layer":   func(in *pb.MountArgs) { in.Source, in.Fstype, in.Options = "x", "overlay", "lowerdir=/a:b" },
		"line as options":  func(in *pb.MountArgs) { in.Options = "noatime,logbufs=8 0 2" },
		"blank in options": func(in *pb.MountArgs) { in.Options = "defaults, noatime" },
		"no program":       func(in *pb.MountArgs) { in.Source, in.Fstype = "#x", "fuse" },
	} {
		t.Run(name, func(t *testing.T) {
			in := good()
			spoil(in)
			g.kept, g.changes = nil, nil
			if out, err := invokeAs(g.call, g.room, "host.mount", in); err == nil {
				t.Error("taken:", out)
			} else if name == "no target" && !strings.Contains(err.Error(), "target is not said") {
				t.Error(err)
			}
			if g.kept != nil || len(g.changes) > 0 {
				t.Error(g.kept, g.changes)
			}
		})
	}
	for _, target := range []string{"/", "/proc", "/var", "/etc", "srv", ""} {
		if out, err := invokeAs(&builtins.Call{}, g.room, "host.unmount", &pb.UnmountArgs{Target: target}); err == nil {
			t.Errorf("unmount %q: %v", target, out)
		}
	}
}

// What a mount reads, changes and runs by its options and its type is said to the rules.
func TestMountAccess(t *testing.T) {
	a := mountAccess(&pb.MountArgs{Source: "x", Target: "/mnt", Fstype: "overlay", Options: "ro,lowerdir=/root:/etc,upperdir=/up,workdir=/work"})
	for _, p := range []string{"/root", "/etc", "/up", "/work"} {
		if !slices.Contains(a.Reads, p) || !slices.Contains(a.Trees, p) {
			t.Error(p, a)
		}
	}
	if !slices.Contains(a.Writes, "/up") || !slices.Contains(a.Writes, "/work") || slices.Contains(a.Writes, "/root") {
		t.Error(a)
	}
	if a := mountAccess(&pb.MountArgs{}); slices.Contains(a.Writes, "") {
		t.Error("the empty path is among", a.Writes)
	}
	if a := mountAccess(&pb.MountArgs{Source: "//s/x", Target: "/mnt", Fstype: "cifs", Options: "credentials=/etc/secret"}); !slices.Contains(a.Reads, "/etc/secret") {
		t.Error(a)
	}
	for _, in := range []*pb.MountArgs{{Source: "x", Target: "/mnt", Fstype: "fuse.sh"}, {Source: "sh#x", Target: "/mnt", Fstype: "fuse"}} {
		if a := mountAccess(in); len(a.Commands) != 1 || a.Commands[0].Argv[0] != "sh" {
			t.Error(a)
		}
	}
}

// Blanks of other scripts are parts of a path.
func TestFstabWithOtherBlanks(t *testing.T) {
	e, err := newEntry(&pb.MountArgs{Source: "/dev/vdb", Fstype: "ext4"}, "/mnt/a\u00a0b")
	if err != nil {
		t.Fatal(err)
	}
	if back, ok := parseEntry(e.String()); !ok || back.target != e.target {
		t.Errorf("%+v became %+v", e, back)
	}
}
