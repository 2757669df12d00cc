package file_test

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/file"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func text(path, content string) *pb.WriteFileArgs {
	return &pb.WriteFileArgs{Path: path, Content: []byte(content)}
}

func TestASecondRunChangesNothing(t *testing.T) {
	g := newGuest(t, file.Config{})
	x := g.inTx()
	g.mkdir("/etc")
	g.write("/etc/passwd", "app:x:"+uid()+":0::/:\n")
	g.write("/etc/group", "app:x:"+gid()+":\n")
	g.write("/source", "copied")
	g.write("/from", "moved")
	g.write("/gone", "")
	for _, c := range []struct {
		name string
		in   proto.Message
	}{
		{"file.write", &pb.WriteFileArgs{Path: "/f", Content: []byte("x"), Mode: "0640", Owner: "app", Group: "app"}},
		{"file.mkdir", &pb.MkdirArgs{Path: "/a/b", Parents: true, Mode: "0750", Owner: "app"}},
		{"file.copy", &pb.FromToArgs{From: "/source", To: "/copy"}},
		{"file.move", &pb.FromToArgs{From: "/from", To: "/to"}},
		{"file.symlink", &pb.SymlinkArgs{Target: "source", Path: "/link"}},
		{"file.chmod", &pb.ChmodArgs{Path: "/source", Mode: "600"}},
		{"file.remove", &pb.RemoveArgs{Path: "/gone"}},
		{"file.template", &pb.TemplateArgs{Path: "/t", Text: "{{x}}", Vars: map[string]string{"x": "1"}}},
	} {
		if !g.changed(c.name, c.in) || len(g.changes) == 0 {
			t.Errorf("%s did not change anything", c.name)
		}
		g.changes, x.log = nil, nil
		inode := tree(t, g.dir)
		if g.changed(c.name, c.in) || len(g.changes) > 0 || len(x.log) > 0 {
			t.Errorf("%s changed something again: %v %v", c.name, g.changes, x.log)
		}
		if again := tree(t, g.dir); !reflect.DeepEqual(inode, again) {
			t.Errorf("%s wrote again: %v, %v", c.name, inode, again)
		}
	}
	if g.changed("file.chown", &pb.ChownArgs{Path: "/f", Owner: "app", Group: gid()}) {
		t.Error("file.chown changed what was so already")
	}
	if g.changed("file.append", &pb.WriteFileArgs{Path: "/f"}) {
		t.Error("file.append of nothing changed something")
	}
}

// tree is the names and times below a directory.
func tree(t *testing.T, dir string) map[string]time.Time {
	t.Helper()
	all := map[string]time.Time{}
	must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil {
			info, e := d.Info()
			must(t, e)
			all[path] = info.ModTime()
		}
		return err
	}))
	return all
}

func TestTheTransactionHearsBeforeAnythingChanges(t *testing.T) {
	g := newGuest(t, file.Config{})
	x := g.inTx()
	g.mkdir("/real")
	must(t, os.Symlink("real", g.dir+"/link"))
	g.write("/real/f", "old")
	g.write("/real/g", "other")
	g.changed("file.write", text("/link/f", "new"))
	x.logged("before /real/f old")
	g.changed("file.write", &pb.WriteFileArgs{Path: "/link/a/b/f", Parents: true, Content: []byte("x")})
	x.logged("before /real/a absent", "before /real/a/b absent", "before /real/a/b/f absent")
	g.told("modified /real/f", "created /real/a", "created /real/a/b", "created /real/a/b/f")
	g.changed("file.write", &pb.WriteFileArgs{Path: "/real/f", Backup: true, Content: []byte("newer")})
	x.logged("before /real/f new", "before /real/f.bak absent")
	g.told("created /real/f.bak", "modified /real/f")
	g.has("/real/f.bak", "new")
	g.changed("file.append", text("/real/f", "!"))
	x.logged("before /real/f newer")
	g.changed("file.mkdir", &pb.MkdirArgs{Path: "/real/d"})
	x.logged("before /real/d absent")
	g.changed("file.chmod", &pb.ChmodArgs{Path: "/link", Mode: "0711"})
	x.logged("before /real d---------")
	g.changed("file.copy", &pb.FromToArgs{From: "/real/f", To: "/real/g"})
	x.logged("before /real/g other")
	g.changed("file.move", &pb.FromToArgs{From: "/real/g", To: "/real/h"})
	x.logged("before /real d---------", "before /real d---------", "undo file.move_back")
	if back := x.undo[0].(*pb.JournalObject); back.MovedTo != "/real/h" || back.Path != "/real/g" || back.State.GetIno() == 0 {
		t.Errorf("the way back is %v", back)
	}
	g.changed("file.move", &pb.FromToArgs{From: "/real/h", To: "/real/f"})
	x.logged("before /real/f newer!", "before /real/h newer!")
	g.changed("file.symlink", &pb.SymlinkArgs{Target: "x", Path: "/link"})
	x.logged("before /link L---------")
	g.changed("file.remove", &pb.RemoveArgs{Path: "/real", Recursive: true})
	x.logged("take /real")
	for _, c := range g.changes {
		if !c.Reversible || c.State != pb.ChangeState_CHANGE_STATE_APPLIED {
			t.Errorf("%v", c)
		}
	}
}

// scriptChanges are one change of each kind, for a guest made by filled.
func scriptChanges() map[string]proto.Message {
	return map[string]proto.Message{
		"file.write":    &pb.WriteFileArgs{Path: "/new/deep/f", Content: []byte("x"), Parents: true},
		"file.append":   &pb.WriteFileArgs{Path: "/f", Content: []byte("x"), Backup: true},
		"file.mkdir":    &pb.MkdirArgs{Path: "/new/d", Parents: true},
		"file.remove":   &pb.RemoveArgs{Path: "/dir", Recursive: true},
		"file.copy":     &pb.FromToArgs{From: "/f", To: "/dir/g"},
		"file.move":     &pb.FromToArgs{From: "/dir", To: "/moved"},
		"file.symlink":  &pb.SymlinkArgs{Target: "f", Path: "/l"},
		"file.chmod":    &pb.ChmodArgs{Path: "/f", Mode: "0600"},
		"file.template": &pb.TemplateArgs{Path: "/dir/g", Text: "t"},
	}
}

func filled(t *testing.T) *guest {
	g := newGuest(t, file.Config{})
	g.mkdir("/dir/sub")
	g.write("/dir/g", "g")
	g.write("/f", "f")
	return g
}

func TestWhereTheJournalFailsNothingChanges(t *testing.T) {
	for name, in := range scriptChanges() {
		g := filled(t)
		g.inTx().fail = errJournal
		before := tree(t, g.dir)
		if text := g.refused("internal", name, in); !strings.HasSuffix(text, errJournal.Error()) {
			t.Errorf("%s: %s", name, text)
		}
		if after := tree(t, g.dir); !reflect.DeepEqual(before, after) || len(g.changes) > 0 {
			t.Errorf("%s: before %v\nafter %v\ntold %v", name, before, after, g.changes)
		}
	}
}

func TestAChangeShowsADiffOfWhatAllMayRead(t *testing.T) {
	g := newGuest(t, file.Config{})
	last := func() *pb.Change { return g.changes[len(g.changes)-1] }
	g.changed("file.write", text("/f", "one\n"))
	if last().Diff != "--- /dev/null\n+++ b/f\n@@ -0,0 +1,1 @@\n+one\n" {
		t.Errorf("created: %q", last().Diff)
	}
	g.changed("file.append", text("/f", "two\n"))
	if !strings.HasSuffix(last().Diff, " one\n+two\n") {
		t.Errorf("appended: %q", last().Diff)
	}
	g.changed("file.write", &pb.WriteFileArgs{Path: "/f", Content: []byte("secret"), Mode: "0600"})
	if last().Diff != "" || !last().ContentHidden {
		t.Errorf("became private: %v", last())
	}
	g.changed("file.write", &pb.WriteFileArgs{Path: "/f", Content: []byte("open\n"), Mode: "0644"})
	if last().Diff != "" || !last().ContentHidden {
		t.Errorf("was private: %v", last())
	}
	g.changed("file.write", text("/f", "\xff\x00"))
	if last().Diff != "" || !last().ContentHidden {
		t.Errorf("binary: %v", last())
	}
	g.changed("file.mkdir", &pb.MkdirArgs{Path: "/closed", Mode: "0700"})
	g.changed("file.write", &pb.WriteFileArgs{Path: "/closed/new/f", Content: []byte("secret"), Parents: true})
	g.changed("file.write", text("/closed/new/f", "secret 2"))
	for _, c := range g.changes[len(g.changes)-2:] {
		if c.Diff != "" || !c.ContentHidden {
			t.Errorf("below a closed directory: %v", c)
		}
	}
	g.changed("file.write", text("/long", strings.Repeat("a line\n", 20000)))
	if !last().DiffTruncated || len(last().Diff) > 64<<10 || len(last().Diff) == 0 {
		t.Errorf("long: %d bytes, truncated %v", len(last().Diff), last().DiffTruncated)
	}
	g.changed("file.write", text("/long", strings.Repeat("a line\n", 400000)))
	if !last().DiffTruncated || last().ContentHidden || last().Diff != "" {
		t.Errorf("too long: %d bytes, %v", len(last().Diff), last().DiffTruncated)
	}
	g.changed("file.write", text("/t", "bye\n"))
	g.changed("file.remove", &pb.RemoveArgs{Path: "/t"})
	if last().Action != "deleted" || last().Diff != "--- a/t\n+++ /dev/null\n@@ -1,1 +0,0 @@\n-bye\n" {
		t.Errorf("removed: %v", last())
	}
	if last().Reversible {
		t.Error("without a transaction nothing is reversible")
	}
}

func TestModesAreReadAsPeopleWriteThem(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.write("/f", "")
	for mode, want := range map[string]string{"0644": "0644", "600": "0600", "0o640": "0640", "4755": "4755", "01777": "1777", "000": "0000"} {
		g.changed("file.chmod", &pb.ChmodArgs{Path: "/f", Mode: mode})
		if out, err := run[*pb.FileInfo](g, "file.stat", &pb.PathArgs{Path: "/f"}); err != nil || out.Mode != want {
			t.Errorf("%s became %v, %v", mode, out, err)
		}
	}
	for _, mode := range []string{"", "9", "64", "u+x", "0x1ff", "77777", "017777", "-644", "0644 "} {
		g.refused("invalid", "file.chmod", &pb.ChmodArgs{Path: "/f", Mode: mode})
	}
}

func TestOwnersAreThoseOfTheGuest(t *testing.T) {
	needRoot(t, "owners have to be changed")
	g := newGuest(t, file.Config{})
	g.mkdir("/etc")
	g.write("/etc/passwd", "root:x:0:0::/:\napp:x:4711:4712::/:\n")
	g.write("/etc/group", "root:x:0:\nstaff:x:4712:\n")
	g.changed("file.write", &pb.WriteFileArgs{Path: "/f", Content: []byte("x"), Owner: "app", Group: "staff", Mode: "0600"})
	out, err := run[*pb.FileInfo](g, "file.stat", &pb.PathArgs{Path: "/f"})
	must(t, err)
	if out.Owner != "app" || out.Group != "staff" || out.Mode != "0600" {
		t.Errorf("%v", out)
	}
	g.changed("file.write", text("/f", "y"))
	if out, _ := run[*pb.FileInfo](g, "file.stat", &pb.PathArgs{Path: "/f"}); out.Owner != "app" || out.Mode != "0600" {
		t.Errorf("a new content changed more: %v", out)
	}
	g.changed("file.chown", &pb.ChownArgs{Path: "/f", Group: "99"})
	if out, _ := run[*pb.FileInfo](g, "file.stat", &pb.PathArgs{Path: "/f"}); out.Owner != "app" || out.Group != "99" {
		t.Errorf("%v", out)
	}
	g.refused("invalid", "file.chown", &pb.ChownArgs{Path: "/f", Owner: "nobody-here"})
	g.refused("invalid", "file.write", &pb.WriteFileArgs{Path: "/f", Owner: "nobody-here"})
}

func TestAFileWithSeveralNamesIsWrittenInPlaceOnly(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.write("/one", "a long old content")
	must(t, os.Link(g.dir+"/one", g.dir+"/two"))
	if text := g.refused("refused", "file.write", text("/one", "new")); !strings.Contains(text, "in place") {
		t.Error(text)
	}
	g.refused("refused", "file.append", text("/one", "new"))
	g.changed("file.write", &pb.WriteFileArgs{Path: "/one", Content: []byte("new"), Inplace: true, Mode: "0600", Backup: true})
	g.has("/two", "new")
	g.has("/one.bak", "a long old content")
	g.changed("file.append", &pb.WriteFileArgs{Path: "/two", Content: []byte("+"), Inplace: true})
	g.has("/one", "new+")
	g.changed("file.write", &pb.WriteFileArgs{Path: "/fresh", Content: []byte("x"), Inplace: true})
	g.has("/fresh", "x")
	g.names("/", "fresh", "one", "one.bak", "two")
}

func TestAFileOfProcIsWrittenInPlace(t *testing.T) {
	g := guestAt(t, "/", file.Config{})
	old, err := os.ReadFile("/proc/self/comm")
	must(t, err)
	defer func() { must(t, os.WriteFile("/proc/self/comm", bytes.TrimSpace(old), 0)) }()
	g.changed("file.write", &pb.WriteFileArgs{Path: "/proc/self/comm", Content: []byte("renamed"), Inplace: true})
	if got, err := os.ReadFile("/proc/self/comm"); string(got) != "renamed\n" {
		t.Errorf("%q, %v", got, err)
	}
	if g.changed("file.write", &pb.WriteFileArgs{Path: "/proc/self/comm", Content: []byte("renamed\n"), Inplace: true}) {
		t.Error("what is there already was written again")
	}
}

func TestALinkIsReplacedByWriteAndFollowedByAppend(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.write("/f", "old")
	must(t, os.Symlink("f", g.dir+"/link"))
	g.changed("file.append", text("/link", "+"))
	g.has("/f", "old+")
	g.changed("file.write", &pb.WriteFileArgs{Path: "/link", Content: []byte("in place"), Inplace: true})
	g.has("/f", "in place")
	g.changed("file.write", &pb.WriteFileArgs{Path: "/link", Content: []byte("own"), Backup: true})
	g.has("/f", "in place")
	g.has("/link", "own")
	if target, err := os.Readlink(g.dir + "/link.bak"); target != "f" {
		t.Errorf("the backup is %q, %v", target, err)
	}
}

func TestOnlyADirectoryThatIsEmptyGoesWithoutRecursive(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.mkdir("/d/sub")
	must(t, os.Symlink("d", g.dir+"/link"))
	g.refused("not_empty", "file.remove", &pb.RemoveArgs{Path: "/d"})
	g.changed("file.remove", &pb.RemoveArgs{Path: "/link", Recursive: true})
	g.names("/d", "sub")
	g.changed("file.remove", &pb.RemoveArgs{Path: "/d/sub"})
	g.changed("file.remove", &pb.RemoveArgs{Path: "/d", Recursive: true})
	g.names("/")
	if g.changed("file.remove", &pb.RemoveArgs{Path: "/not/there"}) {
		t.Error("removed what was not there")
	}
	g.refused("refused", "file.remove", &pb.RemoveArgs{Path: "/", Recursive: true})
}

func TestACopyHasTheContentAndTheModeOfItsSource(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.write("/f", "x")
	must(t, os.Chmod(g.dir+"/f", 0o750|os.ModeSetuid))
	g.write("/there", "y")
	must(t, os.Chmod(g.dir+"/there", 0o600))
	g.changed("file.copy", &pb.FromToArgs{From: "/f", To: "/new"})
	g.changed("file.copy", &pb.FromToArgs{From: "/f", To: "/there"})
	for path, want := range map[string]string{"/new": "0750", "/there": "0600"} {
		g.has(path, "x")
		if out, err := run[*pb.FileInfo](g, "file.stat", &pb.PathArgs{Path: path}); err != nil || out.Mode != want {
			t.Errorf("%v, %v", out, err)
		}
	}
	g.mkdir("/d")
	g.refused("is_directory", "file.copy", &pb.FromToArgs{From: "/d", To: "/e"})
	g.refused("is_directory", "file.copy", &pb.FromToArgs{From: "/f", To: "/d"})
	g.refused("not_found", "file.copy", &pb.FromToArgs{From: "/not", To: "/e"})
	if g.changed("file.copy", &pb.FromToArgs{From: "/f", To: "/f"}) {
		t.Error("copied onto itself")
	}
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<17)
	g.write("/big", string(big))
	g.changed("file.copy", &pb.FromToArgs{From: "/big", To: "/bigger"})
	big[len(big)-1] = 'x'
	g.write("/big", string(big))
	if !g.changed("file.copy", &pb.FromToArgs{From: "/big", To: "/bigger"}) {
		t.Error("a difference in the last byte was not seen")
	}
	g.has("/bigger", string(big))
}

func TestAMoveReplacesFilesAndNeverDirectories(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.mkdir("/d/sub")
	g.mkdir("/e")
	g.write("/f", "f")
	g.write("/g", "g")
	g.refused("exists", "file.move", &pb.FromToArgs{From: "/d", To: "/e"})
	g.refused("is_directory", "file.move", &pb.FromToArgs{From: "/f", To: "/e"})
	g.refused("invalid", "file.move", &pb.FromToArgs{From: "/d", To: "/d/sub/d"})
	g.refused("not_found", "file.move", &pb.FromToArgs{From: "/not", To: "/neither"})
	g.changed("file.move", &pb.FromToArgs{From: "/f", To: "/g"})
	g.has("/g", "f")
	g.changed("file.move", &pb.FromToArgs{From: "/d", To: "/e/d"})
	g.names("/e/d", "sub")
	must(t, os.Link(g.dir+"/g", g.dir+"/h"))
	g.refused("refused", "file.move", &pb.FromToArgs{From: "/g", To: "/h"})
	g.names("/", "e", "g", "h")
}

func TestTemplatesPutInValuesAndMissNone(t *testing.T) {
	g := newGuest(t, file.Config{})
	vars := map[string]string{"name": "web", "port": "80", "odd": "{{name}}"}
	in := &pb.TemplateArgs{Path: "/t", Vars: vars, Text: "{{name}}:{{ port }} {{\"{{\"}}x}} {one} {{odd}}\n"}
	g.changed("file.template", in)
	g.has("/t", "web:80 {{x}} {one} {{name}}\n")
	for text, want := range map[string]string{
		"a\nb {{nmae}}":                  "line 2: there is no value for {{nmae}}; there are name, odd, port",
		"{{name}} {{port}}":              "the value odd is not used",
		"\n\n{{name":                     "line 3: {{ has no }}",
		"{{name\n}}":                     "line 1: {{ has no }}",
		"{{name}}{{port}}{{odd}}{{{x}}}": "line 1: {{ has no }}",
	} {
		if got := g.refused("invalid", "file.template", &pb.TemplateArgs{Path: "/t", Text: text, Vars: vars}); !strings.Contains(got, want) {
			t.Errorf("%q: %s", text, got)
		}
	}
	if got := g.refused("invalid", "file.template", &pb.TemplateArgs{Path: "/t", Text: "{{x}}"}); !strings.Contains(got, "there are none") {
		t.Error(got)
	}
}

func TestGlobMatchesElementByElement(t *testing.T) {
	g := newGuest(t, file.Config{})
	for _, dir := range []string{"/a1", "/a2", "/b", "/.hidden"} {
		g.mkdir(dir)
		g.write(dir+"/x.conf", "")
		g.write(dir+"/.y.conf", "")
	}
	g.write("/a3", "")
	g.write("/b/\xff.conf", "")
	must(t, os.Symlink("b", g.dir+"/link"))
	for pattern, want := range map[string]string{
		"/a*/x.conf":        "/a1/x.conf /a2/x.conf",
		"/*/*.conf":         "/a1/x.conf /a2/x.conf /b/%FF.conf /b/x.conf /link/%FF.conf /link/x.conf",
		"/a[12]/.*":         "/a1/.y.conf /a2/.y.conf",
		"/b/x.conf":         "/b/x.conf",
		"/b/?.conf":         "/b/%FF.conf /b/x.conf",
		"/b/not":            "",
		"/not/*":            "",
		"/[.]hidden/x.conf": "",
		"/[!b]1/x.conf":     "/a1/x.conf",
		"/[!a]1/x.conf":     "",
		"/\\b":              "/b",
		"/*/":               "/a1 /a2 /b /link",
		"/a3/":              "",
		"/link/":            "/link",
		"/[]a-]3":           "/a3",
	} {
		out, err := run[*pb.Paths](g, "file.glob", &pb.GlobArgs{Pattern: pattern})
		if err != nil || strings.Join(out.GetPaths(), " ") != want {
			t.Errorf("%s: %v, %v", pattern, out.GetPaths(), err)
		}
	}
	g.refused("invalid", "file.glob", &pb.GlobArgs{Pattern: "a*"})
	for _, pattern := range []string{"/[a", "/[a/b]*", "/**/a", "/{a,b}", "/[[:alpha:]]*"} {
		g.refused("invalid", "file.glob", &pb.GlobArgs{Pattern: pattern})
	}
}

// What a transaction keeps at the root of a mount is no file of the guest: a script that removes all that it sees would fail at it.
func TestWhatIsKeptIsNotSeen(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.mkdir("/mnt/" + builtins.SpoolPrefix + "ABC")
	g.write("/mnt/.a", "")
	list, err := run[*pb.FileList](g, "file.list", &pb.PathArgs{Path: "/mnt"})
	if err != nil || len(list.Entries) != 1 || list.Entries[0].Name != ".a" {
		t.Error(list, err)
	}
	if paths, err := run[*pb.Paths](g, "file.glob", &pb.GlobArgs{Pattern: "/mnt/.*"}); err != nil || len(paths.Paths) != 1 {
		t.Error(paths, err)
	}
}

func TestTargetsOfLinks(t *testing.T) {
	g := newGuest(t, file.Config{})
	for _, target := range []string{"", "a\x00b"} {
		g.refused("invalid", "file.symlink", &pb.SymlinkArgs{Path: "/l", Target: target})
	}
}

func TestLooking(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.mkdir("/d/sub")
	g.write("/d/f", "hello")
	must(t, os.Symlink("nowhere\xff", g.dir+"/d/link"))
	g.write("/d/.h", "")
	when := time.Unix(1234567890, 500_000_000)
	must(t, os.Chtimes(g.dir+"/d/f", when, when))
	out, err := run[*pb.FileList](g, "file.list", &pb.PathArgs{Path: "/d/"})
	must(t, err)
	var got []string
	for _, e := range out.Entries {
		got = append(got, e.Name+" "+e.Path+" "+e.Type+" "+e.Target)
	}
	if want := []string{".h /d/.h file ", "f /d/f file ", "link /d/link symlink nowhere%FF", "sub /d/sub directory "}; !reflect.DeepEqual(got, want) {
		t.Errorf("%q", got)
	}
	f := out.Entries[1]
	if f.Size != 5 || f.Mode != "0644" || f.Mtime != 1234567890.5 {
		t.Errorf("%v", f)
	}
	for path, want := range map[string]bool{"/d/f": true, "/d/link": true, "/d/not": false, "/not/there": false, "/d/f/g": false, "/": true} {
		if out, err := run[*pb.Exists](g, "file.exists", &pb.PathArgs{Path: path}); err != nil || out.Exists != want {
			t.Errorf("%s: %v, %v", path, out, err)
		}
	}
	if out, err := run[*pb.Digest](g, "file.sha256", &pb.PathArgs{Path: "/d/f"}); err != nil || out.Sha256 != "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824" {
		t.Errorf("%v, %v", out, err)
	}
	g.call.Attachment = func(name string) ([]byte, error) {
		if name != "a" {
			return nil, fs.ErrNotExist
		}
		return []byte("data"), nil
	}
	if out, err := run[*pb.Content](g, "file.attachment", &pb.AttachmentArgs{Name: "a"}); err != nil || string(out.Content) != "data" {
		t.Errorf("%v, %v", out, err)
	}
	g.refused("not_found", "file.attachment", &pb.AttachmentArgs{Name: "b"})
	g.refused("not_found", "file.read", &pb.ReadFileArgs{Path: "/d/link"})
	g.refused("is_directory", "file.read", &pb.ReadFileArgs{Path: "/d"})
}

func TestANameThatIsNotUTF8CanBeUsed(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.write("/\xff%FF", "x")
	out, err := run[*pb.FileList](g, "file.list", &pb.PathArgs{Path: "/"})
	must(t, err)
	path := out.Entries[0].Path
	if path != "/%FF%25FF" {
		t.Errorf("listed as %s", path)
	}
	if out, err := run[*pb.Content](g, "file.read", &pb.ReadFileArgs{Path: path}); err != nil || string(out.Content) != "x" {
		t.Errorf("%v, %v", out, err)
	}
	if !g.changed("file.remove", &pb.RemoveArgs{Path: path}) {
		t.Error("was not removed")
	}
	g.names("/")
}

// Of a large file whose attributes change the attributes alone are kept.
func TestAttributesOfALargeFile(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.write("/large", "")
	must(t, os.Truncate(g.dir+"/large", 1<<40))
	must(t, os.Chmod(g.dir+"/large", 0o640))
	x := g.inTx()
	if !g.changed("file.chmod", &pb.ChmodArgs{Path: "/large", Mode: "0400"}) {
		t.Error("nothing was changed")
	}
	x.logged("undo file.attributes")
	g.call.Tx = nil
	for range 2 {
		if _, err := run[*pb.Changed](g, "file.attributes", x.undo[0]); err != nil {
			t.Error(err)
		}
		if info, err := os.Stat(g.dir + "/large"); err != nil || info.Mode() != 0o640 {
			t.Error(info, err)
		}
	}
	must(t, os.Remove(g.dir+"/large"))
	if _, err := run[*pb.Changed](g, "file.attributes", x.undo[0]); err != nil {
		t.Error("of a file that is gone:", err)
	}
}
