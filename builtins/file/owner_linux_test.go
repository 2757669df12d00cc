package file_test

import (
	"fmt"
	"os"
	"syscall"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins/file"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const somebody = 12345

// theirs puts a file of another user's into a directory.
func (g *guest) theirs(path string, content string) {
	g.t.Helper()
	g.write(path, content)
	must(g.t, os.Chown(g.dir+path, somebody, somebody))
	must(g.t, os.Chmod(g.dir+path, 0o777))
}

// owner returns whose a file is, and its mode.
func (g *guest) owner(path string) string {
	g.t.Helper()
	info, err := os.Lstat(g.dir + path)
	must(g.t, err)
	return fmt.Sprintf("%d %o", info.Sys().(*syscall.Stat_t).Uid, info.Mode().Perm())
}

// Who makes a file first where others can make files must not own what the agent writes there, be it the same content.
func TestAFileThatAnotherUserMadeFirstIsNotWrittenAsHis(t *testing.T) {
	needRoot(t, "it makes files of another user's")
	whole := []byte("#!/bin/sh\n")
	writes := map[string]proto.Message{
		"":              &pb.FileWriteRequest{Path: "/d/f", Data: whole, Eof: true},
		"file.write":    &pb.WriteFileArgs{Path: "/d/f", Content: whole},
		"file.template": &pb.TemplateArgs{Path: "/d/f", Text: string(whole)},
		"file.copy":     &pb.FromToArgs{From: "/from", To: "/d/f"},
		"file.move":     &pb.FromToArgs{From: "/from", To: "/d/f"},
	}
	for name, in := range writes {
		for _, before := range []string{"x", string(whole)} {
			g := newGuest(t, file.Config{})
			g.mkdir("/d")
			must(t, os.Chmod(g.dir+"/d", 0o777|os.ModeSticky))
			g.write("/from", string(whole))
			g.theirs("/d/f", before)
			open, err := os.OpenFile(g.dir+"/d/f", os.O_RDWR, 0)
			must(t, err)
			defer open.Close()
			if _, err := run[proto.Message](g, name, in); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if got := g.owner("/d/f"); got != "0 644" {
				t.Errorf("%s over %q: owner and mode %s", name, before, got)
			}
			_, _ = open.WriteAt([]byte("evil"), 0)
			g.has("/d/f", string(whole))
		}
	}
	g := newGuest(t, file.Config{})
	g.mkdir("/d")
	must(t, os.Chmod(g.dir+"/d", 0o775))
	g.theirs("/d/f", "old\n")
	g.theirs("/d/f.bak", "x")
	for name, in := range map[string]proto.Message{
		"file.append":  &pb.WriteFileArgs{Path: "/d/f", Content: whole},
		"file.line":    &pb.LineArgs{Path: "/d/f", Line: "new"},
		"file.replace": &pb.ReplaceArgs{Path: "/d/f", Pattern: "old", Replacement: "new"},
		"file.write":   &pb.WriteFileArgs{Path: "/d/f", Content: whole, Inplace: true},
		"":             &pb.FileWriteRequest{Path: "/d/f", Data: whole, Eof: true, Append: true},
	} {
		g.refused("refused", name, in)
	}
	g.has("/d/f", "old\n")
	g.changed("file.write", &pb.WriteFileArgs{Path: "/d/f", Content: whole, Mode: "0600", Backup: true})
	if got := g.owner("/d/f") + ", " + g.owner("/d/f.bak"); got != "0 600, 0 600" {
		t.Errorf("with a backup: %s", got)
	}
}

// In a directory of his own only the caller knows whose a file shall be.
func TestAFileInAUsersOwnDirectoryNeedsAnOwner(t *testing.T) {
	needRoot(t, "it makes files of another user's")
	g := newGuest(t, file.Config{})
	g.mkdir("/home")
	must(t, os.Chown(g.dir+"/home", somebody, somebody))
	g.theirs("/home/f", "old\n")
	for name, in := range map[string]proto.Message{
		"":           &pb.FileWriteRequest{Path: "/home/f", Data: []byte("x"), Eof: true},
		"file.write": &pb.WriteFileArgs{Path: "/home/f", Content: []byte("x")},
		"file.line":  &pb.LineArgs{Path: "/home/f", Line: "new"},
	} {
		if _, err := run[proto.Message](g, name, in); fault.Code(err) != "refused" {
			t.Errorf("%s: %v", name, err)
		}
	}
	g.changed("file.line", &pb.LineArgs{Path: "/home/f", Line: "new", Owner: fmt.Sprint(somebody)})
	g.has("/home/f", "old\nnew\n")
	g.changed("file.write", &pb.WriteFileArgs{Path: "/home/f", Content: []byte("secret"), Mode: "0600", Owner: "0"})
	if got := g.owner("/home/f"); got != "0 600" {
		t.Errorf("asked to be root's: %s", got)
	}
}

// What another user put somewhere is neither the directory nor the link that a script wants.
func TestADirectoryOrLinkThatAnotherUserMadeFirst(t *testing.T) {
	needRoot(t, "it makes files of another user's")
	g := newGuest(t, file.Config{})
	g.mkdir("/d/dir")
	must(t, os.Chmod(g.dir+"/d", 0o777|os.ModeSticky))
	must(t, os.Symlink("/target", g.dir+"/d/link"))
	must(t, os.Lchown(g.dir+"/d/link", somebody, somebody))
	must(t, os.Chown(g.dir+"/d/dir", somebody, somebody))
	g.refused("refused", "file.mkdir", &pb.MkdirArgs{Path: "/d/dir"})
	g.refused("refused", "", &pb.CreateDirectoryRequest{Path: "/d/dir"})
	if !g.changed("file.symlink", &pb.SymlinkArgs{Target: "/target", Path: "/d/link"}) || g.owner("/d/link")[0] != '0' {
		t.Errorf("the link is %s", g.owner("/d/link"))
	}
	if g.changed("file.mkdir", &pb.MkdirArgs{Path: "/d/dir", Owner: fmt.Sprint(somebody)}) {
		t.Error("the directory is his who was asked for")
	}
}
