package file_test

import (
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/builtins/file"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// tree makes entries, of which those whose results have an error are named by their paths.
func (g *guest) tree(entries ...*pb.TreeEntry) (failed map[string]string) {
	g.t.Helper()
	out, err := run[*pb.WriteFilesResponse](g, "", &pb.WriteFilesRequest{Entries: entries})
	must(g.t, err)
	failed = map[string]string{}
	for i, r := range out.Results {
		if r.Error != nil {
			failed[entries[i].Path] = r.Error.Code
		}
	}
	return failed
}

// A tree in one request: every kind of entry, with what a copy keeps, and each failure by itself.
func TestATreeInOneRequest(t *testing.T) {
	g := newGuest(t, file.Config{})
	when := time.Date(2020, 2, 2, 2, 2, 2, 123456789, time.UTC)
	data := []byte("content")
	entries := []*pb.TreeEntry{{Path: "/d", Kind: "directory", Mode: new(uint32(0o750))}}
	for _, name := range []string{"/d/a", "/d/b", "/none/c"} {
		entries = append(entries, &pb.TreeEntry{
			Path: name, Kind: "file", Data: data, Crc32C: new(crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli))),
			Mode: new(uint32(0o640)), ModifiedAt: timestamppb.New(when),
		})
	}
	failed := g.tree(append(entries,
		&pb.TreeEntry{Path: "/d/damaged", Kind: "file", Data: data, Crc32C: new(uint32(1))},
		&pb.TreeEntry{Path: "/d/hard", Kind: "link", Target: "/d/a"},
		&pb.TreeEntry{Path: "/d/soft", Kind: "symlink", Target: "nowhere", ModifiedAt: timestamppb.New(when)},
		&pb.TreeEntry{Path: "/d/odd", Kind: "socket"},
		&pb.TreeEntry{Path: "/d/missing", Kind: "attributes"},
		&pb.TreeEntry{Path: "/d", Kind: "attributes", ModifiedAt: timestamppb.New(when)},
	)...)
	want := map[string]string{"/none/c": "not_found", "/d/damaged": "corrupt", "/d/odd": "invalid", "/d/missing": "not_found"}
	if len(failed) != len(want) {
		t.Error(failed)
	}
	for path, code := range want {
		if failed[path] != code {
			t.Errorf("%s: %q, want %q", path, failed[path], code)
		}
	}
	g.names("/d", "a", "b", "hard", "soft")
	g.has("/d/b", "content")
	for _, name := range []string{"a", "soft", ""} {
		info, err := os.Lstat(filepath.Join(g.dir, "d", name))
		must(t, err)
		if !info.ModTime().Equal(when) {
			t.Errorf("%s is of %v", name, info.ModTime())
		}
		if name == "a" && (info.Mode() != 0o640 || info.Sys().(*syscall.Stat_t).Nlink != 2) {
			t.Errorf("%v, %d names", info.Mode(), info.Sys().(*syscall.Stat_t).Nlink)
		}
	}

	// What is written to one name apart leaves the other; else both have it.
	if failed := g.tree(&pb.TreeEntry{Path: "/d/hard", Kind: "file", Data: []byte("both")}); len(failed) > 0 {
		t.Fatal(failed)
	}
	g.has("/d/a", "both")
	if failed := g.tree(&pb.TreeEntry{Path: "/d/hard", Kind: "file", Data: []byte("one"), Separate: true}); len(failed) > 0 {
		t.Fatal(failed)
	}
	g.has("/d/a", "both")
	g.has("/d/hard", "one")

	// A further name takes the place of a file.
	if failed := g.tree(&pb.TreeEntry{Path: "/d/b", Kind: "link", Target: "/d/a"}); len(failed) > 0 {
		t.Fatal(failed)
	}
	out, err := run[*pb.StatFilesResponse](g, "", &pb.StatFilesRequest{Paths: []string{"/d/a", "/d/b", "/d/hard", "/no", "/d/soft", "rel"}, Sha256: true})
	must(t, err)
	f := out.Files
	if f[0].Object == "" || f[0].Object != f[1].Object || f[2].Object != "" || len(f[0].Sha256) != 32 || f[3].Kind != "absent" ||
		f[4].Kind != "symlink" || f[4].SymlinkTarget != "nowhere" || f[5].Error.GetCode() != "invalid" {
		t.Error(out)
	}
	g.refused("too_large", "", &pb.StatFilesRequest{Paths: make([]string, 1001)})
}

// Attributes that a copy keeps replace those that are there, and no others.
func TestATreeKeepsAttributes(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.write("/f", "x")
	err := errors.Join(unix.Setxattr(g.dir+"/f", "user.old", []byte("1"), 0), unix.Setxattr(g.dir+"/f", "trusted.kept", []byte("2"), 0))
	if err != nil {
		t.Skip("needs root and a file system with extended attributes: ", err)
	}
	entry := &pb.TreeEntry{
		Path: "/f", Kind: "attributes", Owner: "nobody-here", Uid: new(uint32(12)), Gid: new(uint32(34)), Mode: new(uint32(0o4755)),
		SetXattrs: true, Xattrs: []*pb.CopiedAttribute{{Name: "user.new", Value: []byte("3")}},
	}
	if failed := g.tree(entry); len(failed) > 0 {
		t.Fatal(failed)
	}
	out, err := run[*pb.StatFilesResponse](g, "", &pb.StatFilesRequest{Paths: []string{"/f"}, Xattrs: true})
	must(t, err)
	s := out.Files[0]
	if s.Mode != 0o4755 || s.Uid != 12 || s.Gid != 34 || len(s.Xattrs) != 1 || s.Xattrs[0].Name != "user.new" || string(s.Xattrs[0].Value) != "3" {
		t.Error(s)
	}
	if n, err := unix.Getxattr(g.dir+"/f", "trusted.kept", make([]byte, 8)); n != 1 || err != nil {
		t.Error(n, err)
	}
	entry.Xattrs[0].Name = "trusted.kept"
	if failed := g.tree(entry); failed["/f"] != "invalid" {
		t.Error(failed)
	}
}

// Many files come in order, with no temporary name left, more than are staged at a time.
func TestManySmallFiles(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.mkdir("/d")
	var entries []*pb.TreeEntry
	for i := range 150 {
		entries = append(entries, &pb.TreeEntry{Path: "/d/" + strings.Repeat("n", i+1), Kind: "file", Data: []byte{byte(i)}})
	}
	entries = append(entries, &pb.TreeEntry{Path: "/d/n", Kind: "file", Data: []byte("again")})
	if failed := g.tree(entries...); len(failed) > 0 {
		t.Fatal(failed)
	}
	list, err := os.ReadDir(g.dir + "/d")
	must(t, err)
	if len(list) != 150 {
		t.Errorf("%d names", len(list))
	}
	g.has("/d/n", "again")
}

// The agent's own files are no more written by many than by one.
func TestATreeLeavesTheAgentsOwnFilesAlone(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.of.Protected = []string{"/own"}
	g.mkdir("/own")
	g.write("/own/f", "x")
	failed := g.tree(
		&pb.TreeEntry{Path: "/own/f", Kind: "file", Data: []byte("y")}, &pb.TreeEntry{Path: "/own/d", Kind: "directory"},
		&pb.TreeEntry{Path: "/own/l", Kind: "symlink", Target: "x"}, &pb.TreeEntry{Path: "/other", Kind: "link", Target: "/own/f"},
		&pb.TreeEntry{Path: "/own", Kind: "attributes", Mode: new(uint32(0o777))},
	)
	if len(failed) != 5 || failed["/own/f"] != fault.Code(fault.ErrRefused) {
		t.Error(failed)
	}
	g.names("/own", "f")
}

// What a transaction has changed since the request began is left to it, and the rest is made.
func TestATreeLeavesWhatATransactionHasChanged(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.mkdir("/d")
	g.call.Kept = func(path string) error {
		if path == "/d/kept" || fsys.Within(path, "/d/keptdir") {
			return fault.ErrBusy
		}
		return nil
	}
	for name, target := range map[string]string{"link": "kept", "dirlink": "keptdir"} {
		if err := os.Symlink(target, g.dir+"/d/"+name); err != nil {
			t.Fatal(err)
		}
	}
	g.mkdir("/d/keptdir")
	if err := os.WriteFile(g.dir+"/d/other", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	var entries []*pb.TreeEntry
	for _, name := range []string{"before", "kept", "after"} {
		entries = append(entries, &pb.TreeEntry{Path: "/d/" + name, Kind: "file", Data: []byte(name)})
	}
	mode := uint32(0o700)
	busy := []*pb.TreeEntry{
		{Path: "/d/link", Kind: "file", Data: []byte("x")}, {Path: "/d/dirlink", Kind: "directory", Mode: &mode},
		{Path: "/d/dirlink/x", Kind: "file"}, {Path: "/d/keptdir", Kind: "attributes", Mode: &mode},
		{Path: "/d/hard", Kind: "link", Target: "/d/dirlink/y"}, {Path: "/d/keptdir/z", Kind: "link", Target: "/d/other"},
	}
	failed := g.tree(append(entries, busy...)...)
	if failed["/d/kept"] != "busy" || len(failed) != 1+len(busy) {
		t.Error(failed)
	}
	for _, e := range busy {
		if failed[e.Path] != "busy" {
			t.Errorf("%s %s: %q", e.Kind, e.Path, failed[e.Path])
		}
	}
	for name, want := range map[string]bool{"before": true, "kept": false, "after": true} {
		if _, err := os.Lstat(g.dir + "/d/" + name); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}
