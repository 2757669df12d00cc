package file_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/file"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// inherit sets a default ACL like setfacl -d: owner, user 65534, group, mask and others. Where that cannot be the test is
// skipped.
func (g *guest) inherit(dir string, owner, user, group, mask, other uint16) {
	g.t.Helper()
	acl := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range [][3]uint16{{0x01, owner}, {0x02, user, 65534}, {0x04, group}, {0x10, mask}, {0x20, other}} {
		acl = binary.LittleEndian.AppendUint16(acl, e[0])
		acl = binary.LittleEndian.AppendUint16(acl, e[1])
		id := uint32(0xffffffff)
		if e[2] != 0 {
			id = uint32(e[2])
		}
		acl = binary.LittleEndian.AppendUint32(acl, id)
	}
	if err := unix.Setxattr(g.dir+dir, "system.posix_acl_default", acl, 0); err != nil {
		g.t.Skip("needs a file system with ACLs: ", err)
	}
}

// attributes are the mode, the group and the ACL of an object.
func (g *guest) attributes(path string) string {
	g.t.Helper()
	var st unix.Stat_t
	must(g.t, unix.Stat(g.dir+path, &st))
	acl := make([]byte, 1024)
	n, _ := unix.Getxattr(g.dir+path, "system.posix_acl_access", acl)
	return fmt.Sprintf("%04o group %d acl %x", st.Mode&0o7777, st.Gid, acl[:max(n, 0)])
}

// A new file or directory for which no mode is said is as open(2) and mkdir(2) make it: it inherits the group, setgid and the
// default ACL of its directory.
func TestNewObjectsInherit(t *testing.T) {
	needRoot(t, "it makes directories of another group")
	g := newGuest(t, file.Config{})
	for name, acl := range map[string][]uint16{
		"plain": nil, "wide": {7, 6, 5, 7, 4}, "closed": {7, 5, 0, 7, 0}, "narrow mask": {6, 7, 7, 1, 7},
	} {
		dir := "/" + strings.ReplaceAll(name, " ", "-")
		must(t, os.Mkdir(g.dir+dir, 0o755))
		must(t, os.Chown(g.dir+dir, 0, 1234))
		must(t, os.Chmod(g.dir+dir, 0o775|os.ModeSetgid))
		if acl != nil {
			g.inherit(dir, acl[0], acl[1], acl[2], acl[3], acl[4])
		}
		old := unix.Umask(0o022)
		must(t, os.WriteFile(g.dir+dir+"/touched", nil, 0o666))
		must(t, os.Mkdir(g.dir+dir+"/made", 0o777))
		must(t, os.Mkdir(g.dir+dir+"/made/below", 0o777))
		must(t, os.WriteFile(g.dir+dir+"/made/below/f", nil, 0o666))
		unix.Umask(old)
		want := map[string]string{}
		for _, of := range []string{"/touched", "/made", "/made/below", "/made/below/f"} {
			want[of] = g.attributes(dir + of)
		}
		for _, pretend := range []bool{true, false} {
			var end func()
			if pretend {
				end = g.pretending()
			}
			g.changed("file.write", &pb.WriteFileArgs{Path: dir + "/written", Content: []byte("x")})
			g.changed("file.append", &pb.WriteFileArgs{Path: dir + "/appended", Content: []byte("x")})
			g.changed("file.template", &pb.TemplateArgs{Path: dir + "/template", Text: "x"})
			g.changed("file.mkdir", &pb.MkdirArgs{Path: dir + "/dir"})
			g.changed("file.mkdir", &pb.MkdirArgs{Path: dir + "/parents/below", Parents: true})
			g.changed("file.write", &pb.WriteFileArgs{Path: dir + "/parents/below/f", Content: []byte("x")})
			for path, as := range map[string]string{
				"/written": "/touched", "/appended": "/touched", "/template": "/touched", "/dir": "/made", "/parents": "/made",
				"/parents/below": "/made/below", "/parents/below/f": "/made/below/f",
			} {
				if pretend {
					info, err := run[*pb.FileInfo](g, "file.stat", &pb.PathArgs{Path: dir + path})
					if err != nil || !strings.HasPrefix(want[as], info.Mode+" ") {
						t.Errorf("%s%s would be %v, %v, want %s", dir, path, info, err, want[as])
					}
				} else if got := g.attributes(dir + path); got != want[as] {
					t.Errorf("%s%s has %s, want %s", dir, path, got, want[as])
				}
			}
			if pretend {
				end()
			}
		}
	}
	// A mode that is said is the mode, and a copy is not open to more users than the ACL allows.
	g.changed("file.write", &pb.WriteFileArgs{Path: "/closed/mode", Content: []byte("x"), Mode: "0644"})
	g.changed("file.mkdir", &pb.MkdirArgs{Path: "/plain/mode", Mode: "0755"})
	g.changed("file.copy", &pb.FromToArgs{From: "/plain/touched", To: "/closed/copied"})
	for path, want := range map[string]string{"/closed/mode": "0644 ", "/plain/mode": "0755 ", "/closed/copied": "0640 "} {
		if got := g.attributes(path); !strings.HasPrefix(got, want) {
			t.Errorf("%s has %s, want %s", path, got, want)
		}
	}
}

// What is moved keeps its own attributes.
func TestMovedObjectsKeepTheirs(t *testing.T) {
	needRoot(t, "it makes a directory of another group")
	g := newGuest(t, file.Config{})
	must(t, os.Mkdir(g.dir+"/d", 0o755))
	must(t, os.Chown(g.dir+"/d", 0, 1234))
	must(t, os.Chmod(g.dir+"/d", 0o2775|os.ModeSetgid))
	g.inherit("/d", 7, 7, 7, 7, 0)
	g.write("/f", "x")
	want := g.attributes("/f")
	g.changed("file.move", &pb.FromToArgs{From: "/f", To: "/d/f"})
	if got := g.attributes("/d/f"); got != want {
		t.Errorf("it has %s, want %s", got, want)
	}
}
