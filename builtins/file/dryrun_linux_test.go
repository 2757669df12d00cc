package file_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/file"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// pretending makes the calls of a guest a dry run, until the function that it gives is called.
func (g *guest) pretending() (end func()) {
	g.t.Helper()
	root, err := fsys.Open(g.dir)
	must(g.t, err)
	files, err := root.Overlay(filepath.Join(g.t.TempDir(), "plan"))
	must(g.t, err)
	g.call.DryRun = &builtins.DryRun{Files: files}
	return func() {
		g.t.Helper()
		g.call.DryRun = nil
		must(g.t, errors.Join(files.Close(), root.Close()))
	}
}

// look describes a tree as a script sees it, through the operations, without times.
func (g *guest) look(dir string, into map[string]string) map[string]string {
	g.t.Helper()
	out, err := run[*pb.FileList](g, "file.list", &pb.PathArgs{Path: dir})
	if err != nil {
		into[dir] += fmt.Sprint(" list: ", err)
		return into
	}
	for _, e := range out.Entries {
		text := fmt.Sprintln(e.Type, e.Mode, e.Owner, e.Group, e.Size, e.Target)
		stat, err := run[*pb.FileInfo](g, "file.stat", &pb.PathArgs{Path: e.Path})
		if err != nil || stat.Mtime != e.Mtime {
			text += fmt.Sprint(" stat: ", stat, err)
		}
		if e.Type == "file" {
			content, err := run[*pb.Content](g, "file.read", &pb.ReadFileArgs{Path: e.Path})
			sum, _ := run[*pb.Digest](g, "file.sha256", &pb.PathArgs{Path: e.Path})
			text += fmt.Sprintf("%s %v %s", content.GetContent(), err, sum.GetSha256())
		}
		into[e.Path] = text
		if e.Type == "directory" {
			g.look(e.Path, into)
		}
	}
	return into
}

// script is what a script might do: each call with its outcome.
type attempt struct {
	name string
	in   proto.Message
}

func (g *guest) attempt(list []attempt) (outcomes []string) {
	g.t.Helper()
	for _, a := range list {
		out, err := run[*pb.Changed](g, a.name, a.in)
		text := fmt.Sprint(out.GetChanged())
		if err != nil {
			text = err.Error()
		}
		outcomes = append(outcomes, fmt.Sprintf("%s %v: %s", a.name, a.in, text))
	}
	return outcomes
}

// anything makes up a script from few paths, so that its calls get in each other's way.
func anything(random *rand.Rand, length int) []attempt {
	pick := func(list ...string) string { return list[random.IntN(len(list))] }
	path := func() string {
		return pick("/a", "/b", "/dir", "/dir/x", "/dir/sub", "/dir/sub/y", "/new", "/new/z", "/link", "/link/x", "/two", "/empty", "/shut", "/dir/../a", "/dangling")
	}
	modes, bits := []string{"", "", "0600", "0644", "0755", "2755"}, []string{"0600", "0700", "0755", "0000", "4755"}
	if os.Getuid() != 0 { // a transaction takes trees away that an ordinary user could not empty
		modes, bits = []string{"", "", "0700", "0755"}, []string{"0700", "0755"}
	}
	mode := func() string { return pick(modes...) }
	content := func() []byte { return []byte(pick("one\n", "two\nlines\n", "", "three")) }
	var list []attempt
	for range length {
		var a attempt
		switch random.IntN(12) {
		case 0, 1:
			a = attempt{"file.write", &pb.WriteFileArgs{Path: path(), Content: content(), Mode: mode(), Parents: random.IntN(2) == 0, Backup: random.IntN(4) == 0, Inplace: random.IntN(4) == 0}}
		case 2:
			a = attempt{"file.append", &pb.WriteFileArgs{Path: path(), Content: content(), Backup: random.IntN(4) == 0}}
		case 3:
			a = attempt{"file.mkdir", &pb.MkdirArgs{Path: path(), Mode: mode(), Parents: random.IntN(2) == 0}}
		case 4:
			a = attempt{"file.remove", &pb.RemoveArgs{Path: path(), Recursive: random.IntN(2) == 0}}
		case 5:
			a = attempt{"file.copy", &pb.FromToArgs{From: path(), To: path()}}
		case 6, 7:
			a = attempt{"file.move", &pb.FromToArgs{From: path(), To: path()}}
		case 10:
			a = attempt{"file.line", &pb.LineArgs{Path: path(), Line: pick("one", "three", "x = 1"), Match: pick("", "^o", "e$"), Mode: mode(), Parents: random.IntN(2) == 0}}
		case 11:
			a = attempt{"file.replace", &pb.ReplaceArgs{Path: path(), Pattern: pick("one", "o|e", "^"), Replacement: pick("1", "", "# ")}}
		case 8:
			a = attempt{"file.symlink", &pb.SymlinkArgs{Target: pick("a", "dir", "/dir/sub", "nowhere"), Path: path()}}
		default:
			a = attempt{"file.chmod", &pb.ChmodArgs{Path: path(), Mode: pick(bits...)}}
		}
		list = append(list, a)
	}
	return list
}

func crowded(t *testing.T) *guest {
	g := newGuest(t, file.Config{})
	g.mkdir("/dir/sub")
	g.mkdir("/empty")
	g.mkdir("/shut")
	g.write("/a", "one\n")
	g.write("/dir/x", "x\n")
	g.write("/dir/sub/y", "y\n")
	g.write("/two", "names\n")
	t.Cleanup(func() { _ = exec.Command("chmod", "-R", "u+rwx", g.dir).Run() }) // or an ordinary user cannot remove it
	must(t, errors.Join(os.Link(g.dir+"/two", g.dir+"/dir/too"), os.Symlink("dir", g.dir+"/link"), os.Symlink("nothing", g.dir+"/dangling"),
		os.Chmod(g.dir+"/dir/x", 0o600)))
	return g
}

// What a dry run tells, answers and shows is what a run then does, whatever the script; and it changes nothing.
func TestADryRunIsWhatARunWouldBe(t *testing.T) {
	seed := rand.Uint64()
	for n := range uint64(100) {
		random := rand.New(rand.NewPCG(seed, n))
		script := anything(random, 1+random.IntN(12))
		g := crowded(t)
		before := tree(t, g.dir)
		end := g.pretending()
		would, told, seen := g.attempt(script), g.changes, g.look("/", map[string]string{})
		end()
		if after := tree(t, g.dir); !reflect.DeepEqual(before, after) {
			t.Fatalf("seed %d, %d: %s\nbefore %v\nafter %v", seed, n, strings.Join(would, "\n"), before, after)
		}
		g.changes = nil
		did := g.attempt(script)
		for _, c := range told {
			if c.State != pb.ChangeState_CHANGE_STATE_WOULD || !c.Reversible {
				t.Fatalf("seed %d, %d: %v", seed, n, c)
			}
			c.State, c.Reversible = pb.ChangeState_CHANGE_STATE_APPLIED, false
		}
		is := g.look("/", map[string]string{})
		switch {
		case !reflect.DeepEqual(would, did):
			t.Fatalf("seed %d, %d: it would answer\n%s\nand did\n%s", seed, n, strings.Join(would, "\n"), strings.Join(did, "\n"))
		case !reflect.DeepEqual(lines(told), lines(g.changes)):
			t.Fatalf("seed %d, %d: %s\nit would tell\n%s\nand told\n%s", seed, n, strings.Join(did, "\n"), strings.Join(lines(told), "\n"), strings.Join(lines(g.changes), "\n"))
		case !reflect.DeepEqual(seen, is):
			t.Fatalf("seed %d, %d: %s\nit would be\n%v\nand is\n%v", seed, n, strings.Join(did, "\n"), seen, is)
		}
	}
}

func lines(changes []*pb.Change) (list []string) {
	for _, c := range changes {
		list = append(list, fmt.Sprint(c.Op, c.Target, c.Action, c.Diff, c.Reversible, c.State, c.DiffTruncated, c.ContentHidden))
	}
	return list
}

// What the kernel would refuse a dry run refuses.
func TestADryRunKnowsWhatIsReadOnly(t *testing.T) {
	needRoot(t, "mounts a file system")
	g := crowded(t)
	must(t, unix.Mount("none", g.dir+"/empty", "tmpfs", unix.MS_RDONLY, "size=64k"))
	t.Cleanup(func() { must(t, unix.Unmount(g.dir+"/empty", unix.MNT_DETACH)) })
	must(t, unix.Mount(g.dir+"/dir", g.dir+"/dir", "", unix.MS_BIND, ""))
	t.Cleanup(func() { must(t, unix.Unmount(g.dir+"/dir", unix.MNT_DETACH)) })
	must(t, unix.Mount("", g.dir+"/dir", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	defer g.pretending()()
	g.refused("read_only", "file.chmod", &pb.ChmodArgs{Path: "/dir/x", Mode: "0755"})
	g.refused("read_only", "file.chmod", &pb.ChmodArgs{Path: "/dir/sub", Mode: "0700"})
	g.refused("read_only", "file.chown", &pb.ChownArgs{Path: "/dir/x", Owner: "1"})
	g.refused("read_only", "file.write", &pb.WriteFileArgs{Path: "/dir/x", Content: []byte("x"), Mode: "0755", Inplace: true})
	g.refused("read_only", "file.write", &pb.WriteFileArgs{Path: "/empty/f", Content: []byte("x")})
	g.refused("unsupported", "file.move", &pb.FromToArgs{From: "/shut", To: "/empty/dir"})
	g.refused("refused", "file.remove", &pb.RemoveArgs{Path: "/empty", Recursive: true})
}

// A dry run of an ordinary user meets the rights of that user.
func TestADryRunHasTheRightsOfTheAgent(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("needs an ordinary user: run the test binary as one")
	}
	g := crowded(t)
	must(t, os.Chmod(g.dir+"/shut", 0o555))
	defer g.pretending()()
	if !g.changed("file.chmod", &pb.ChmodArgs{Path: "/a", Mode: "0000"}) {
		t.Error("nothing would change")
	}
	g.refused("permission", "file.read", &pb.ReadFileArgs{Path: "/a"})
	g.refused("permission", "file.write", &pb.WriteFileArgs{Path: "/shut/f", Content: []byte("x")})
	g.refused("permission", "file.chown", &pb.ChownArgs{Path: "/two", Owner: "0"})
	if _, err := run[*pb.Changed](g, "file.chown", &pb.ChownArgs{Path: "/two", Group: fmt.Sprint(os.Getgid())}); fault.Code(err) != "" {
		t.Error(err)
	}
}

// A user that a dry run pretends to make can own what it pretends to write, as in a run.
func TestADryRunKnowsTheUsersThatItMakes(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.mkdir("/etc")
	g.write("/etc/passwd", "root:x:0:0::/:/bin/sh\n")
	g.write("/etc/group", "root:x:0:\n")
	end := g.pretending()
	defer end()
	if !g.changed("file.line", &pb.LineArgs{Path: "/etc/passwd", Line: fmt.Sprintf("deploy:x:%d:%d::/:/bin/sh", os.Geteuid(), os.Getegid())}) {
		t.Error("nothing would be changed")
	}
	if !g.changed("file.write", &pb.WriteFileArgs{Path: "/f", Owner: "deploy"}) {
		t.Error("nothing would be made")
	}
	g.refused("invalid", "file.write", &pb.WriteFileArgs{Path: "/f", Owner: "nobody-of-that-name"})
}

// What it costs to keep a large file is told before.
func TestADryRunTellsWhatIsCopied(t *testing.T) {
	g := guestAt(t, tmpfs(t, "size=16m"), file.Config{}) // which shares no blocks with what is elsewhere
	g.write("/large", strings.Repeat("x", 2<<20))
	g.write("/small", "x")
	defer g.pretending()()
	for name, c := range map[string]struct {
		in   proto.Message
		kept uint64
	}{
		"file.append": {&pb.WriteFileArgs{Path: "/large", Content: []byte("y")}, 0},
		"file.chmod":  {&pb.ChmodArgs{Path: "/large", Mode: "0600"}, 0},
		"file.write":  {&pb.WriteFileArgs{Path: "/small", Content: []byte("y")}, 0},
	} {
		g.changed(name, c.in)
		if last := g.changes[len(g.changes)-1]; last.KeptBytes != c.kept {
			t.Errorf("%s: %v", name, last)
		}
	}
	g.write("/other", strings.Repeat("x", 2<<20))
	g.changed("file.write", &pb.WriteFileArgs{Path: "/other", Content: []byte("y")})
	if last := g.changes[len(g.changes)-1]; last.KeptBytes != 2<<20 {
		t.Errorf("a large file that is replaced: %v", last)
	}
}
