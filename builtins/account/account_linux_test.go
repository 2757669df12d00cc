package account

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/txtest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// tree is a guest of files.
type tree struct {
	t       *testing.T
	dir     string
	root    *fsys.Root
	room    *Room
	call    *builtins.Call
	kept    []string
	changes []*pb.Change
	op      *builtins.Op // that runs
	undos   int          // inverses that were announced
}

// keeper is a builtins.Tx that records the paths given to Before, and removes the tree given to Take.
type keeper struct {
	builtins.Tx
	tree *tree
}

func (k keeper) Before(_ context.Context, paths ...string) error {
	k.tree.kept = append(k.tree.kept, paths...)
	return nil
}

func (k keeper) Kept(path string) (builtins.Touched, bool) { return txtest.Kept(k.tree.dir, path) }

func (k keeper) Take(_ context.Context, path string, _ fsys.Meta) error {
	return os.RemoveAll(filepath.Join(k.tree.dir, path))
}

func (k keeper) HeldNames(fsys.Meta) uint32 { return 0 }

func (k keeper) NotBegun() {}

func (k keeper) Undo(_ context.Context, op string, _ proto.Message) error {
	if op != k.tree.op.Inverse {
		return fmt.Errorf("%s is not the inverse that %s declares", op, k.tree.op.Name)
	}
	k.tree.undos++
	return nil
}

// debian is what a guest of Debian has, with lines that must stay as they are.
var debian = map[string]string{
	passwdFile: "root:x:0:0:root:/root:/bin/bash\n# a comment\nbroken line\nbob:x:1000:1000:Bob,,,:/home/bob:/bin/bash\n" +
		"www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\nsys1:x:998:998::/:/bin/false\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
	groupFile:    "root:x:0:\nmail:x:8:\nsudo:x:27:bob\nusers:x:100:\nwww-data:x:33:\nsys1:x:998:\nbob:x:1000:\nwheel:x:1005:bob,www-data\nnogroup:x:65534:\n",
	shadowFile:   "root:*:19000:0:99999:7:::\nbob:$6$saltstring$x:19000:0:99999:7:::\nwww-data:*:19000:0:99999:7:::\nsys1:!:19000::::::\nnobody:*:19000:0:99999:7:::\n",
	gshadowFile:  "root:*::\nmail:*::\nsudo:*::bob\nusers:*::\nwww-data:*::\nsys1:!::\nbob:!::\nwheel:!:bob:bob,www-data\nnogroup:*::\n",
	subuidFile:   "bob:100000:65536\n",
	subgidFile:   "bob:100000:65536\n",
	loginDefs:    "# settings\nMAIL_DIR\t/var/mail\nUMASK 022\nPASS_MAX_DAYS\t99999\nPASS_MIN_DAYS\t0\nPASS_WARN_AGE 7\nUID_MIN 1000\nUID_MAX 60000\nGID_MIN 1000\nGID_MAX 60000\nSUB_UID_MIN 100000\nSUB_UID_MAX 600100000\nSUB_UID_COUNT 65536\nSUB_GID_MIN 100000\nSUB_GID_MAX 600100000\nSUB_GID_COUNT 65536\nUSERGROUPS_ENAB yes\nENCRYPT_METHOD SHA512\n",
	useraddFile:  "# defaults\nSHELL=/bin/sh\n# HOME=/elsewhere\n",
	passwordLock: "",

	"/etc/skel/.profile":      "umask 022\n",
	"/etc/skel/.config/a/b":   "deep\n",
	"/home/bob/.bashrc":       "bob\n",
	"/usr/share/not/in/there": "x",
}

// busybox is what a guest of BusyBox has.
var busybox = map[string]string{
	passwdFile: "root:x:0:0:root:/root:/bin/sh\n",
	groupFile:  "root:x:0:\nwheel:x:10:root\n",
	shadowFile: "root::0:0:99999:7:::\n",
}

func newTree(t *testing.T, files map[string]string) *tree {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("run it as root: files get other owners")
	}
	g := &tree{t: t, dir: t.TempDir()}
	for name, content := range files {
		g.put(name, content)
	}
	for _, secret := range []string{shadowFile, gshadowFile} {
		if _, ok := files[secret]; ok {
			if err := errors.Join(os.Chmod(g.path(secret), 0o640), os.Chown(g.path(secret), 0, 42)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, ok := files["/home/bob/.bashrc"]; ok {
		for _, path := range []string{"/home/bob", "/home/bob/.bashrc"} {
			if err := os.Chown(g.path(path), 1000, 1000); err != nil {
				t.Fatal(err)
			}
		}
	}
	root, err := fsys.Open(g.dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	g.root = root
	g.room = New(&guest.Guest{Dir: g.dir, Files: root})
	g.call = &builtins.Call{Tx: keeper{tree: g}, Changed: func(c *pb.Change) { g.changes = append(g.changes, c) }}
	return g
}

func (g *tree) path(name string) string { return filepath.Join(g.dir, name) }

func (g *tree) put(name, content string) {
	g.t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(g.path(name)), 0o755), os.WriteFile(g.path(name), []byte(content), 0o644)); err != nil {
		g.t.Fatal(err)
	}
}

func (g *tree) read(name string) string {
	g.t.Helper()
	content, err := os.ReadFile(g.path(name))
	if err != nil {
		g.t.Fatal(err)
	}
	return string(content)
}

// line is the line of a name in a file; empty where there is none.
func (g *tree) line(file, name string) string {
	g.t.Helper()
	for line := range strings.Lines(g.read(file)) {
		if strings.HasPrefix(line, name+":") {
			return strings.TrimSuffix(line, "\n")
		}
	}
	return ""
}

func (g *tree) do(name string, in proto.Message) (proto.Message, error) {
	g.t.Helper()
	g.kept, g.changes = nil, nil
	ops := g.room.Room().Ops
	op := &ops[slices.IndexFunc(ops, func(op builtins.Op) bool { return op.Name == name })]
	op.AccessOf(in)
	g.op, g.undos = op, 0
	out, err := op.Call(g.t.Context(), g.call, in)
	if held, _ := filepath.Glob(g.path("/etc/[a-z]*.lock")); len(held) > 0 {
		g.t.Errorf("%s left %v", name, held)
	}
	return out, err
}

// sets does it twice: the second time nothing changes, and nothing is kept.
func (g *tree) sets(name string, in proto.Message) {
	g.t.Helper()
	for round, want := range []bool{true, false} {
		again := proto.Clone(in)
		out, err := g.do(name, again)
		changed := false
		switch out := out.(type) {
		case *pb.Changed:
			changed = out.GetChanged()
		case *pb.LuaValue:
			changed = out.GetBoolean()
		}
		if err != nil || changed != want || len(g.kept) > 0 != want || len(g.changes) > 0 != want {
			g.t.Fatalf("round %d of %s: changed is %v, error %v, kept %q, changes %v", round, name, changed, err, g.kept, g.changes)
		}
	}
}

// refuses sees that a request fails with a code and words, and that nothing changed.
func (g *tree) refuses(name string, in proto.Message, code, words string) {
	g.t.Helper()
	before := g.picture()
	_, err := g.do(name, in)
	if fault.Code(err) != code || !strings.Contains(err.Error(), words) {
		g.t.Errorf("%s %.200v: code %s, %v; want %s, %q", name, in, fault.Code(err), err, code, words)
	}
	if after := g.picture(); after != before {
		g.t.Errorf("%s %.200v changed the tree:\n%s\n%s", name, in, before, after)
	}
}

// picture is all of the tree, but for times of directories.
func (g *tree) picture() string {
	g.t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(g.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		stat := info.Sys().(*syscall.Stat_t)
		fmt.Fprintf(&b, "%s %v %d:%d", strings.TrimPrefix(path, g.dir), info.Mode(), stat.Uid, stat.Gid)
		if info.Mode().IsRegular() {
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %q", content)
		}
		b.WriteString("\n")
		return nil
	})
	if err != nil {
		g.t.Fatal(err)
	}
	return b.String()
}

// owned sees the mode and owner of a path.
func (g *tree) owned(path string, mode fs.FileMode, uid, gid uint32) {
	g.t.Helper()
	info, err := os.Lstat(g.path(path))
	if err != nil {
		g.t.Error(err)
		return
	}
	stat := info.Sys().(*syscall.Stat_t)
	if info.Mode().Perm() != mode || stat.Uid != uid || stat.Gid != gid {
		g.t.Errorf("%s is %v of %d:%d, want %v of %d:%d", path, info.Mode(), stat.Uid, stat.Gid, mode, uid, gid)
	}
}

// The same users are made in two copies of a tree, by the agent in one and by useradd in the other: all fields of all files, and
// the home directories, are the same.
func TestCreateIsAsUseraddHasIt(t *testing.T) {
	if _, err := exec.LookPath("useradd"); err != nil {
		t.Skip("run it where there are shadow-utils: ", err)
	}
	for _, c := range []struct {
		name string
		args []string
		in   *pb.AccountCreateArgs
		also map[string]string
	}{
		{"plain", []string{"-m"}, &pb.AccountCreateArgs{}, nil},
		{"all said", []string{"-m", "-u", "1500", "-G", "sudo,mail", "-s", "/bin/bash", "-c", "A B", "-d", "/srv/alice"},
			&pb.AccountCreateArgs{Uid: new(uint32(1500)), Groups: []string{"sudo", "mail"}, Shell: "/bin/bash", Comment: new("A B"), Home: "/srv/alice"}, nil},
		{"system", []string{"--system"}, &pb.AccountCreateArgs{System: true}, nil},
		{"no home", nil, &pb.AccountCreateArgs{CreateHome: new(false)}, nil},
		{"primary group", []string{"-m", "-g", "users"}, &pb.AccountCreateArgs{Group: "users"}, nil},
		{"uid of a group", []string{"-m", "-u", "1005"}, &pb.AccountCreateArgs{Uid: new(uint32(1005))}, nil},
		{"uid beyond", []string{"-m", "-u", "70000"}, &pb.AccountCreateArgs{Uid: new(uint32(70000))}, nil},
		{"no own groups", []string{"-m"}, &pb.AccountCreateArgs{}, map[string]string{loginDefs: strings.Replace(debian[loginDefs], "ENAB yes", "ENAB no", 1)}},
		{"other numbers", []string{"-m"}, &pb.AccountCreateArgs{}, map[string]string{
			loginDefs:  "UID_MIN 2000\nUID_MAX 2999\nGID_MIN 3000\nGID_MAX 3999\nHOME_MODE 0750\nUMASK 077\nSUB_UID_MIN 500000\nSUB_UID_COUNT 1000\nUSERGROUPS_ENAB yes\n",
			subuidFile: "bob:500500:100\nx:500000:100\n",
		}},
		{"a gap", []string{"-m"}, &pb.AccountCreateArgs{}, map[string]string{
			loginDefs:  debian[loginDefs] + "UID_MAX 1010\n",
			passwdFile: debian[passwdFile] + "last:x:1010:100::/:/bin/sh\n", shadowFile: debian[shadowFile] + "last:!:19000::::::\n",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ours, theirs := newTree(t, debian), newTree(t, debian)
			for name, content := range c.also {
				ours.put(name, content)
				theirs.put(name, content)
			}
			for range 2 { // the second user gets the next numbers
				c.in.Name = "alice" + strings.TrimPrefix(strconv.Itoa(len(c.in.Name)), "0")
				args := append([]string{"--prefix", theirs.dir}, c.args...)
				if slices.Contains(args, "-m") {
					args = append(args, "-k", theirs.path("/etc/skel"))
				}
				if out, err := exec.Command("useradd", append(args, c.in.Name)...).CombinedOutput(); err != nil {
					t.Fatalf("useradd: %v, %s", err, out)
				}
				ours.sets("account.create", c.in)
				if c.in.Uid != nil {
					break
				}
			}
			for _, file := range all {
				if got, want := sorted(ours.read(file)), sorted(theirs.read(file)); got != want {
					t.Errorf("%s is\n%s\nby useradd it is\n%s", file, got, want)
				}
			}
			for _, home := range []string{"/home", "/srv"} {
				list := func(g *tree) string {
					out, _ := exec.Command("sh", "-c", "cd "+g.path(home)+" && find . -printf '%p %y %m %U:%G\n' | sort").Output()
					return string(out)
				}
				if got, want := list(ours), list(theirs); got != want {
					t.Errorf("%s is\n%s\nby useradd it is\n%s", home, got, want)
				}
			}
			checked(t, ours)
		})
	}
}

// sorted are the lines of a file that are no comments, which useradd sorts in some.
func sorted(content string) string {
	lines := strings.Split(content, "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// checked sees that shadow-utils find no fault in the files.
func checked(t *testing.T, g *tree) {
	t.Helper()
	for file, content := range map[string]string{passwdFile: g.read(passwdFile), groupFile: g.read(groupFile)} {
		g.put(file, strings.NewReplacer("# a comment\n", "", "broken line\n", "").Replace(content))
	}
	for _, tool := range [][]string{
		{"pwck", "-r", "-q", g.path(passwdFile), g.path(shadowFile)}, {"grpck", "-r", g.path(groupFile), g.path(gshadowFile)},
	} {
		out, err := exec.Command(tool[0], tool[1:]...).CombinedOutput()
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, "alice") && !strings.Contains(line, "no user") && !strings.Contains(line, "delete member") || strings.Contains(line, "entry") {
				t.Errorf("%s: %v, %s", tool[0], err, line) // it looks for members among the users of this machine
			}
		}
	}
}

// A wish is met once; one that differs changes just that.
func TestOneWish(t *testing.T) {
	g := newTree(t, debian)
	wish := &pb.AccountCreateArgs{Name: "alice", Groups: []string{"sudo"}}
	g.sets("account.create", wish)
	if got := g.line(passwdFile, "alice"); got != "alice:x:1001:1001::/home/alice:/bin/sh" {
		t.Error(got)
	}
	g.owned("/home/alice", 0o755, 1001, 1001)
	g.owned("/home/alice/.config/a/b", 0o644, 1001, 1001)
	g.owned(shadowFile, 0o640, 0, 42)
	others := g.line(shadowFile, "alice") + g.read(groupFile) + g.read(subuidFile) + g.read(shadowFile)
	wish.Shell, wish.Comment = "/bin/bash", new("Alice")
	g.sets("account.create", wish)
	if got := g.line(passwdFile, "alice"); got != "alice:x:1001:1001:Alice:/home/alice:/bin/bash" {
		t.Error(got)
	}
	if now := g.line(shadowFile, "alice") + g.read(groupFile) + g.read(subuidFile) + g.read(shadowFile); now != others {
		t.Errorf("more was changed:\n%s\n%s", others, now)
	}
	g.sets("account.modify", &pb.AccountModifyArgs{Name: "alice", Groups: []string{"wheel", "sudo"}, Group: "users"})
	if g.line(groupFile, "wheel") != "wheel:x:1005:bob,www-data,alice" || g.line(gshadowFile, "wheel") != "wheel:!:bob:bob,www-data,alice" ||
		g.line(groupFile, "sudo") != "sudo:x:27:bob,alice" || !strings.Contains(g.line(passwdFile, "alice"), ":1001:100:") {
		t.Error(g.read(groupFile), g.read(passwdFile))
	}
	if err := os.RemoveAll(g.path("/home/alice")); err != nil {
		t.Fatal(err)
	}
	g.sets("account.create", wish) // whose home directory is missing
	g.owned("/home/alice/.profile", 0o644, 1001, 100)
	for _, part := range []string{"# a comment\nbroken line\nbob:x:1000"} {
		if !strings.Contains(g.read(passwdFile), part) {
			t.Errorf("%q is not as it was:\n%s", part, g.read(passwdFile))
		}
	}
	g.put("/home/carol/mine", "x")
	g.sets("account.create", &pb.AccountCreateArgs{Name: "carol"})
	g.owned("/home/carol", 0o755, 0, 0) // was there, and is left alone
	if _, err := os.Stat(g.path("/home/carol/.profile")); err == nil {
		t.Error("a home directory that was there was filled")
	}
}

func TestLinesOfNISStayLast(t *testing.T) {
	files := map[string]string{}
	for name, content := range debian {
		files[name] = content
	}
	files[passwdFile] += "+@admins::::::\n-mallory::::::\n+::::::"
	files[groupFile] = strings.TrimSuffix(files[groupFile], "\n") // the last line has no end
	g := newTree(t, files)
	g.sets("account.create", &pb.AccountCreateArgs{Name: "alice"})
	if !strings.HasSuffix(g.read(passwdFile), "/sbin/nologin\nalice:x:1001:1001::/home/alice:/bin/sh\n+@admins::::::\n-mallory::::::\n+::::::") {
		t.Error(g.read(passwdFile))
	}
	if !strings.HasSuffix(g.read(groupFile), "nogroup:x:65534:\nalice:x:1001:\n") {
		t.Error(g.read(groupFile))
	}
}

// openSUSE has its settings below /usr, and the administrator's files go before them.
func TestSettingsOfTheDistribution(t *testing.T) {
	files := maps.Clone(debian)
	delete(files, loginDefs)
	delete(files, useraddFile)
	files["/usr/etc/login.defs"] = "USERGROUPS_ENAB no\nUID_MIN 2000\nHOME_MODE 0711\n"
	files["/usr/etc/login.defs.d/70-more.defs"], files["/etc/login.defs.d/70-more.defs"] = "UID_MIN 2100\n", "UID_MIN 2200\n"
	files["/usr/etc/default/useradd"], files["/etc/login.defs.d/note"] = "SHELL=/bin/zsh\n", "UID_MIN 9\n"
	g := newTree(t, files)
	g.sets("account.create", &pb.AccountCreateArgs{Name: "al"})
	if line := g.line(passwdFile, "al"); line != "al:x:2200:100::/home/al:/bin/zsh" {
		t.Error(line)
	}
	g.owned("/home/al", 0o711, 2200, 100)
	g.put(loginDefs, "UID_MIN 3000\n")
	g.put(useraddFile, "SHELL=/bin/ksh\n")
	g.put("/etc/login.defs.d/70-more.defs", "")
	g.sets("account.create", &pb.AccountCreateArgs{Name: "bo"})
	if line := g.line(passwdFile, "bo"); line != "bo:x:3000:3000::/home/bo:/bin/ksh" {
		t.Error(line)
	}
}

// A guest of BusyBox has no gshadow, no numbers for containers and no settings.
func TestBusyBox(t *testing.T) {
	g := newTree(t, busybox)
	g.sets("account.create", &pb.AccountCreateArgs{Name: "alice", Groups: []string{"wheel"}})
	if g.line(passwdFile, "alice") != "alice:x:1000:1000::/home/alice:/bin/sh" || g.line(groupFile, "alice") != "alice:x:1000:" ||
		g.line(groupFile, "wheel") != "wheel:x:10:root,alice" || !strings.HasPrefix(g.line(shadowFile, "alice"), "alice:!:") {
		t.Error(g.picture())
	}
	g.owned("/home/alice", 0o755, 1000, 1000)
	g.sets("account.password", &pb.AccountPasswordArgs{Name: "alice", Password: []byte("secret")})
	g.sets("account.remove", &pb.AccountRemoveArgs{Name: "alice", Home: true})
	if strings.Contains(g.read(passwdFile)+g.read(groupFile)+g.read(shadowFile), "alice") {
		t.Error(g.picture())
	}
	for _, file := range []string{gshadowFile, subuidFile, subgidFile} {
		if _, err := os.Stat(g.path(file)); err == nil {
			t.Errorf("%s was made", file)
		}
	}
}

// What BusyBox reads of what the agent has made in a tree.
func TestBesideBusyBox(t *testing.T) {
	program, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("run it where there is a static busybox, such as that of the package busybox-static: ", err)
	}
	binary, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	g := newTree(t, busybox)
	in := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("/bin/busybox", args...)
		cmd.SysProcAttr, cmd.Stdin, cmd.Dir = &syscall.SysProcAttr{Chroot: g.dir}, nil, "/"
		out, err := cmd.CombinedOutput()
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOENT) {
			t.Skip("run it where busybox is a static program: ", err)
		}
		if err != nil {
			t.Fatalf("busybox %v: %v, %s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	if err := errors.Join(os.MkdirAll(g.path("/bin"), 0o755), os.WriteFile(g.path("/bin/busybox"), binary, 0o755)); err != nil {
		t.Fatal(err)
	}
	g.sets("account.create", &pb.AccountCreateArgs{Name: "alice", Groups: []string{"wheel"}})
	if got := in("id", "alice"); got != "uid=1000(alice) gid=1000(alice) groups=1000(alice),10(wheel)" {
		t.Error(got)
	}
	if got := in("stat", "-c", "%U %G", "/home/alice"); got != "alice alice" {
		t.Error(got)
	}
	g.sets("account.password", &pb.AccountPasswordArgs{Name: "alice", Password: []byte("secret")})
	hash := strings.Split(g.line(shadowFile, "alice"), ":")[1]
	if got := in("mkpasswd", "-m", "sha512", "-S", strings.Split(hash, "$")[2], "secret"); got != hash {
		t.Errorf("%s, and BusyBox makes %s of it", hash, got)
	}
	g.sets("account.remove", &pb.AccountRemoveArgs{Name: "alice", Home: true})
}

func TestRemove(t *testing.T) {
	g := newTree(t, debian)
	before := g.picture()
	for _, home := range []bool{true, false} {
		g.sets("account.create", &pb.AccountCreateArgs{Name: "alice", Groups: []string{"sudo", "mail"}})
		g.put("/var/mail/alice", "mail")
		if err := os.Chown(g.path("/var/mail/alice"), 1001, 8); err != nil {
			t.Fatal(err)
		}
		g.sets("account.remove", &pb.AccountRemoveArgs{Name: "alice", Home: home})
		if home {
			if err := os.RemoveAll(g.path("/var")); err != nil { // the directory was not there
				t.Fatal(err)
			}
			if after := g.picture(); after != before {
				t.Errorf("it was\n%s\nand is\n%s", before, after)
			}
		}
	}
	g.owned("/home/alice/.profile", 0o644, 1001, 1001)
	g.owned("/var/mail/alice", 0o644, 1001, 8)

	g.sets("account.remove", &pb.AccountRemoveArgs{Name: "bob"})
	if g.line(groupFile, "bob") != "" || g.line(groupFile, "wheel") != "wheel:x:1005:www-data" || g.line(gshadowFile, "wheel") != "wheel:!::www-data" || g.read(subuidFile) != "" {
		t.Error(g.picture())
	}
	_, err := g.do("account.create", &pb.AccountCreateArgs{Name: "dup", Uid: new(uint32(33))})
	if detail := fault.Detail(err); detail.GetDetails()["hint"] == "" || detail.GetObject() != "dup" {
		t.Errorf("what to do about it is lost: %v", detail)
	}
	g.refuses("account.remove", &pb.AccountRemoveArgs{Name: "root"}, "refused", "superuser")
	g.refuses("account.remove", &pb.AccountRemoveArgs{Name: "root", Force: true, Home: true}, "refused", "superuser")
	g.put(passwdFile, g.read(passwdFile)+"toor:x:0:0::/root:/bin/sh\ntwin:x:33:33::/home/two:/bin/sh\n")
	g.refuses("account.remove", &pb.AccountRemoveArgs{Name: "toor", Force: true}, "refused", "superuser")
	g.put("/var/www/index.html", "site")
	g.refuses("account.remove", &pb.AccountRemoveArgs{Name: "www-data", Home: true}, "refused", "belongs to user 0")
	if err := errors.Join(os.MkdirAll(g.path("/home/two/three"), 0o755), os.Chown(g.path("/home/two"), 33, 33)); err != nil {
		t.Fatal(err)
	}
	g.put(passwdFile, g.read(passwdFile)+"three:x:3003:33::/home/two/three:/bin/sh\n")
	g.refuses("account.remove", &pb.AccountRemoveArgs{Name: "twin", Home: true}, "refused", "home directory of three")
}

// A home directory with a slash at its end is the same one, and the line keeps it.
func TestHomeWithSlash(t *testing.T) {
	g := newTree(t, debian)
	passwd := strings.Replace(debian[passwdFile], ":/home/bob:", ":/home/bob/:", 1)
	g.put(passwdFile, passwd)
	g.sets("account.ssh_keys", &pb.AccountKeysArgs{Name: "bob", Keys: []string{ed25519a}})
	g.owned(bobKeys, 0o600, 1000, 1000)
	g.sets("account.modify", &pb.AccountModifyArgs{Name: "bob", Comment: new("B")})
	if line := g.line(passwdFile, "bob"); line != "bob:x:1000:1000:B:/home/bob/:/bin/bash" {
		t.Error(line)
	}
	g.sets("account.remove", &pb.AccountRemoveArgs{Name: "bob", Home: true})
	if _, err := os.Lstat(g.path("/home/bob")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	g.sets("account.create", &pb.AccountCreateArgs{Name: "al", Home: "/home/al/"})
	if line := g.line(passwdFile, "al"); !strings.Contains(line, ":/home/al:") {
		t.Error(line)
	}
	if did, err := g.do("account.create", &pb.AccountCreateArgs{Name: "al", Home: "/home/al/"}); err != nil || did.(*pb.Changed).Changed {
		t.Error(did, err)
	}
}

// The C library passes over blanks before a member, and over commas without one.
func TestMembersWithBlanks(t *testing.T) {
	g := newTree(t, debian)
	g.put(groupFile, g.read(groupFile)+"docker:x:990:root, bob\nadm:x:991:bob,\n")
	if a, err := g.do("account.get", &pb.AccountNameArgs{Name: "bob"}); err != nil || !slices.Contains(a.(*pb.Account).Groups, "docker") {
		t.Error(a, err)
	}
	before := g.read(groupFile)
	if _, err := g.do("account.groups", &pb.AccountGroupsArgs{Name: "bob", Groups: []string{"docker", "adm"}}); err != nil || g.read(groupFile) != before {
		t.Error(err, g.read(groupFile))
	}
	g.sets("account.remove", &pb.AccountRemoveArgs{Name: "bob"})
	if docker, adm := g.line(groupFile, "docker"), g.line(groupFile, "adm"); docker != "docker:x:990:root" || adm != "adm:x:991:" {
		t.Error(docker, adm)
	}
}

// What cannot be, or would do harm, is refused, and nothing changes.
func TestRefusals(t *testing.T) {
	g := newTree(t, debian)
	for _, name := range []string{
		"", "a\nb", "x\nroot:evil", "a:b", "a/b", "../x", "-h", "--help", "+", "#x", "a b", "a,b", "\xff", "a\x00", strings.Repeat("a", 4096),
	} {
		for op, in := range map[string]proto.Message{
			"account.create": &pb.AccountCreateArgs{Name: name}, "account.modify": &pb.AccountModifyArgs{Name: name},
			"account.remove": &pb.AccountRemoveArgs{Name: name}, "account.password": &pb.AccountPasswordArgs{Name: name, Password: []byte("x")},
			"account.get": &pb.AccountNameArgs{Name: name}, "account.exists": &pb.AccountNameArgs{Name: name},
			"account.groups": &pb.AccountGroupsArgs{Name: name}, "account.ssh_keys": &pb.AccountKeysArgs{Name: name},
			"reset_password": &pb.ResetPasswordRequest{Username: name, NewPassword: "x"},
		} {
			g.refuses(op, in, "invalid", "name")
		}
	}
	for _, name := range []string{"1", "12a", "ä", ".", "..", strings.Repeat("a", 33), "a$b", "a@b"} {
		g.refuses("account.create", &pb.AccountCreateArgs{Name: name}, "invalid", "name")
	}
	for _, in := range []*pb.AccountCreateArgs{
		{Home: "home"}, {Home: "/a/../b"}, {Home: "/a:b"}, {Home: "/a\nb"}, {Shell: "sh"}, {Shell: "/bin/sh\nroot::0:0::/:/bin/sh"}, {Comment: new("a:b")}, {Comment: new("a\nb")},
		{Comment: new(strings.Repeat("x", 4096))}, {Uid: new(^uint32(0))}, {Uid: new(uint32(65535))}, {Gid: new(uint32(1)), Group: "sudo"},
		{Groups: []string{"a:b"}}, {Group: "-x"}, {Groups: []string{""}},
	} {
		in.Name = "alice"
		g.refuses("account.create", in, "invalid", "")
	}
	g.refuses("account.create", &pb.AccountCreateArgs{Name: "alice", Groups: []string{"sudo", "missing"}}, "not_found", "missing")
	g.refuses("account.create", &pb.AccountCreateArgs{Name: "alice", Group: "missing"}, "not_found", "missing")
	g.refuses("account.create", &pb.AccountCreateArgs{Name: "alice", Uid: new(uint32(0))}, "exists", "root")
	g.refuses("account.create", &pb.AccountCreateArgs{Name: "alice", Uid: new(uint32(1000))}, "exists", "bob")
	g.refuses("account.create", &pb.AccountCreateArgs{Name: "mail"}, "exists", "group mail")
	g.refuses("account.modify", &pb.AccountModifyArgs{Name: "root", Uid: new(uint32(5))}, "refused", "superuser")
	g.refuses("account.modify", &pb.AccountModifyArgs{Name: "bob", Uid: new(uint32(0))}, "exists", "root")
	g.refuses("account.modify", &pb.AccountModifyArgs{Name: "bob", Gid: new(uint32(4711))}, "not_found", "4711")
	for op, in := range map[string]proto.Message{
		"account.modify": &pb.AccountModifyArgs{Name: "alice"}, "account.password": &pb.AccountPasswordArgs{Name: "alice", Password: []byte("x")},
		"account.get": &pb.AccountNameArgs{Name: "alice"}, "account.groups": &pb.AccountGroupsArgs{Name: "alice", Exclusive: true},
		"account.ssh_keys": &pb.AccountKeysArgs{Name: "alice"}, "reset_password": &pb.ResetPasswordRequest{Username: "alice", NewPassword: "x"},
	} {
		g.refuses(op, in, "not_found", "no such user")
	}
	g.put(passwdFile, g.read(passwdFile)+"twice:x:2000:100::/:/bin/sh\ntwice:x:2001:100::/:/bin/sh\nshort:x:2002\nwords:x:a:b::/:/bin/sh\n")
	for name, words := range map[string]string{"twice": "are both of twice", "short": "has 3 fields", "words": "no numbers"} {
		g.refuses("account.create", &pb.AccountCreateArgs{Name: name}, "refused", words)
		g.refuses("account.password", &pb.AccountPasswordArgs{Name: name, Password: []byte("x")}, "refused", words)
	}
	g.sets("account.create", &pb.AccountCreateArgs{Name: "toor", Uid: new(uint32(0)), NonUnique: true, CreateHome: new(false)})
	empty := newTree(t, map[string]string{"/etc/hosts": ""})
	empty.refuses("account.create", &pb.AccountCreateArgs{Name: "alice"}, "not_found", "passwd")
	if empty.room.Room().Ops[len(empty.room.Room().Ops)-1].Capability != "" || g.room.Room().Ops[len(g.room.Room().Ops)-1].Capability != "reset_password" {
		t.Error("the capability is not as it is true")
	}
}

func TestRenumber(t *testing.T) {
	g := newTree(t, debian)
	g.sets("account.create", &pb.AccountCreateArgs{Name: "alice"})
	g.put("/home/alice/of-root", "x")
	g.put("/home/alice/large", strings.Repeat("x", maxKept+1))
	if err := os.Chown(g.path("/home/alice/large"), 1001, 1001); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Symlink(".profile", g.path("/home/alice/link")), os.Lchown(g.path("/home/alice/link"), 1001, 1001)); err != nil {
		t.Fatal(err)
	}
	g.sets("account.create", &pb.AccountCreateArgs{Name: "alice", Uid: new(uint32(1500))})
	g.owned("/home/alice", 0o755, 1500, 1001)
	g.owned("/home/alice/.config/a/b", 0o644, 1500, 1001)
	g.owned("/home/alice/link", 0o777, 1500, 1001)
	g.owned("/home/alice/large", 0o644, 1500, 1001)
	g.owned("/home/alice/of-root", 0o644, 0, 0)
	for i := range maxOwned {
		g.put("/home/alice/many/"+strconv.Itoa(i), "")
	}
	_, err := g.do("account.modify", &pb.AccountModifyArgs{Name: "alice", Uid: new(uint32(1600))})
	if fault.Code(err) != "too_large" {
		t.Error(err)
	}
}

func TestLooking(t *testing.T) {
	g := newTree(t, debian)
	out, err := g.do("account.get", &pb.AccountNameArgs{Name: "bob"})
	want := &pb.Account{Name: "bob", Uid: 1000, Gid: 1000, Group: "bob", Groups: []string{"sudo", "wheel"}, Home: "/home/bob", Shell: "/bin/bash", Comment: "Bob,,,", Local: true}
	if err != nil || !proto.Equal(out, want) {
		t.Error(out, err)
	}
	for name, want := range map[string]bool{"bob": true, "alice": false} {
		if out, err := g.do("account.exists", &pb.AccountNameArgs{Name: name}); err != nil || out.(*pb.AccountExists).Exists != want {
			t.Error(name, out, err)
		}
	}
	for _, c := range []struct {
		system *bool
		want   string
	}{{nil, "root bob www-data sys1 nobody"}, {new(true), "root www-data sys1"}, {new(false), "bob nobody"}} {
		out, err := g.do("account.list", &pb.AccountListArgs{System: c.system})
		var names []string
		for _, a := range out.(*pb.AccountList).GetAccounts() {
			names = append(names, a.Name)
		}
		if err != nil || strings.Join(names, " ") != c.want {
			t.Error(names, err)
		}
	}
	value, err := g.do("account.groups", &pb.AccountGroupsArgs{Name: "bob"})
	if list := value.(*pb.LuaValue).GetTable().GetArray(); err != nil || len(list) != 2 || string(list[0].GetString_()) != "sudo" {
		t.Error(value, err)
	}
	g.sets("account.groups", &pb.AccountGroupsArgs{Name: "bob", Groups: []string{"mail"}, Exclusive: true})
	if g.line(groupFile, "sudo") != "sudo:x:27:" || g.line(groupFile, "mail") != "mail:x:8:bob" || g.line(gshadowFile, "wheel") != "wheel:!::www-data" {
		t.Error(g.read(groupFile), g.read(gshadowFile))
	}
	g.sets("account.groups", &pb.AccountGroupsArgs{Name: "bob", Exclusive: true})
}

// While another process holds a lock it is waited for, and named when the time is up. What a process left that is gone is no
// lock, and stays as it was when all is taken back.
func TestLocks(t *testing.T) {
	g := newTree(t, debian)
	g.put(passwdFile+lockSuffix, "1\x00") // lives
	limited, cancel := context.WithTimeout(t.Context(), replyTime+200*time.Millisecond)
	defer cancel()
	create := func(ctx context.Context) error {
		_, err := g.room.create(ctx, g.call, &pb.AccountCreateArgs{Name: "alice"})
		return err
	}
	if err := create(limited); fault.Code(err) != "busy" || !strings.Contains(err.Error(), "process 1 (") || limited.Err() != nil {
		t.Error(err)
	}
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	g.put(passwdFile+lockSuffix, strconv.Itoa(dead.Process.Pid)+"\x00")
	g.put(shadowFile+lockSuffix, "") // of a crash
	g.put(passwdFile+"+", "half of it")
	if err := create(t.Context()); err != nil || !slices.Contains(g.kept, passwdFile+lockSuffix) {
		t.Error(err, g.kept)
	}
	if left, _ := filepath.Glob(g.path("/etc/[a-z]*.lock")); len(left) > 0 {
		t.Error(left)
	}

	// What a tool wrote under its lock is there when it is our turn.
	g.put(groupFile+lockSuffix, "1\x00")
	turn := make(chan error)
	go func() {
		_, err := g.room.create(t.Context(), g.call, &pb.AccountCreateArgs{Name: "after"})
		turn <- err
	}()
	time.Sleep(4 * lockPause) // it waits by then, or reads later
	g.put(passwdFile, g.read(passwdFile)+"tool:x:1002:100::/:/bin/sh\n")
	if err := os.Remove(g.path(groupFile + lockSuffix)); err != nil {
		t.Fatal(err)
	}
	if err := <-turn; err != nil || !strings.HasPrefix(g.line(passwdFile, "after"), "after:x:1003:") || g.line(passwdFile, "tool") == "" {
		t.Error(err, g.read(passwdFile))
	}

	// The lock of lckpwdf, as another process takes it.
	holder := exec.Command(os.Args[0])
	holder.Env = append(os.Environ(), holderEnv+"="+g.path(passwordLock))
	in, err1 := holder.StdinPipe()
	out, err2 := holder.StdoutPipe()
	if err := errors.Join(err1, err2, holder.Start()); err != nil {
		t.Fatal(err)
	}
	defer holder.Wait()
	defer in.Close()
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	limited, cancel = context.WithTimeout(t.Context(), replyTime+200*time.Millisecond)
	defer cancel()
	_, err := g.room.remove(limited, g.call, &pb.AccountRemoveArgs{Name: "alice"})
	if fault.Code(err) != "busy" || !strings.Contains(err.Error(), fmt.Sprintf("process %d (", holder.Process.Pid)) {
		t.Error(err)
	}
	done := make(chan error)
	go func() {
		_, err := g.room.remove(t.Context(), g.call, &pb.AccountRemoveArgs{Name: "alice"})
		done <- err
	}()
	in.Close()
	if err := <-done; err != nil || g.line(passwdFile, "alice") != "" {
		t.Error(err)
	}
}

// holderEnv makes the test program hold the lock of lckpwdf on a file until its input ends.
const holderEnv = "ACCOUNT_TEST_LOCK"

func TestMain(m *testing.M) {
	if path := os.Getenv(holderEnv); path != "" {
		file, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err == nil {
			err = unix.FcntlFlock(file.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		}
		if err != nil {
			panic(err)
		}
		fmt.Println("held")
		os.Stdin.Read(make([]byte, 1))
		return
	}
	os.Exit(m.Run())
}

// Two useradds of shadow-utils and two of the agent at the same time: no user is lost.
func TestBesideShadowUtils(t *testing.T) {
	if _, err := exec.LookPath("useradd"); err != nil {
		t.Skip("run it where there are shadow-utils: ", err)
	}
	g := newTree(t, debian)
	const users = 10
	failed := make(chan error, 2)
	go func() {
		var err error
		for i := range users {
			// useradd --prefix takes the files that are locks, and not the lock of lckpwdf
			out, e := exec.Command("useradd", "--prefix", g.dir, "theirs"+strconv.Itoa(i)).CombinedOutput()
			if e != nil {
				err = cmp.Or(err, fmt.Errorf("%w: %s", e, out))
			}
		}
		failed <- err
	}()
	go func() {
		var err error
		for i := range users {
			_, e := g.room.create(context.Background(), g.call, &pb.AccountCreateArgs{Name: "ours" + strconv.Itoa(i)})
			if errors.Is(e, fault.ErrChanged) || errors.Is(e, fs.ErrExist) { // between our look and the lock of the files
				_, e = g.room.create(context.Background(), g.call, &pb.AccountCreateArgs{Name: "ours" + strconv.Itoa(i)})
			}
			err = cmp.Or(err, e)
		}
		failed <- err
	}()
	if err := errors.Join(<-failed, <-failed); err != nil {
		t.Error(err)
	}
	seen := map[string]string{}
	for line := range strings.Lines(g.read(passwdFile)) {
		if f := fieldsOf(line); len(f) == 7 && f[2] >= "1001" {
			if other := seen[f[2]]; other != "" {
				t.Errorf("%s and %s have the uid %s", other, f[0], f[2])
			}
			seen[f[2]] = f[0]
		}
	}
	for i := range users {
		for _, name := range []string{"theirs", "ours"} {
			if name += strconv.Itoa(i); g.line(passwdFile, name) == "" || g.line(shadowFile, name) == "" || g.line(groupFile, name) == "" {
				t.Errorf("%s is lost", name)
			}
		}
	}
}
