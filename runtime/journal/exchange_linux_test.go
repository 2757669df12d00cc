package journal

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// userGuest is a guest with a directory home of another user, in which there are a directory and a file of root's, for nobody
// else.
func userGuest(t *testing.T, change func(*Config)) (testDirs, *guest, string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("changes owners: run as root")
	}
	p := newTestDirs(t)
	mustPopulate(t, p)
	home := filepath.Join(p.files, "home")
	err := errors.Join(os.MkdirAll(home+"/sub", 0o777), os.Chmod(home+"/sub", 0o777), os.MkdirAll(home+"/rootdir", 0o700),
		os.WriteFile(home+"/rootdir/secret", []byte("root's"), 0o600), os.WriteFile(home+"/secret", []byte("root's"), 0o600),
		os.Lchown(home, 1234, 1234), os.Lchown(home+"/sub", 1234, 1234))
	if err != nil {
		t.Fatal(err)
	}
	return p, newGuest(t, p, change), home
}

func exchange(a, b string) error {
	return unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
}

// isRoots sees that an object is root's still, and for nobody else.
func isRoots(t *testing.T, path string) {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Lstat(path, &stat); err != nil || stat.Uid != 0 || stat.Mode&0o77 != 0 {
		t.Errorf("%s: owner %d, mode %o, %v", path, stat.Uid, stat.Mode, err)
	}
}

// Whoever exchanges a directory of his while a rollback gives it its time back does not have another one get its owner and
// mode.
func TestTimeOfAnExchangedDirectory(t *testing.T) {
	var home string
	exchanged := false
	_, g, dir := userGuest(t, func(c *Config) {
		c.Step = func(name string) error {
			if name != "restore.time" || exchanged {
				return nil
			}
			exchanged = true
			return exchange(home+"/sub", home+"/rootdir")
		}
	})
	home = dir
	tx := g.begin(t)
	g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/home/sub/f", Content: []byte("x")})
	tx.Mark()
	if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || !exchanged {
		t.Errorf("%+v", report)
	}
	isRoots(t, home+"/sub")
}

// A user's version of a file that is kept beside it has its owner and mode before it has a name that he can give to another
// one.
func TestConflictFileThatIsExchanged(t *testing.T) {
	_, g, home := userGuest(t, nil)
	old := strings.Repeat("old", 1<<20)
	if err := errors.Join(os.WriteFile(home+"/f", []byte(old), 0o644), os.Chown(home+"/f", 1234, 1234)); err != nil {
		t.Fatal(err)
	}
	tx := g.begin(t)
	g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/home/f", Content: []byte(old + "ours"), Owner: "1234", Inplace: true})
	tx.Mark()
	if err := os.WriteFile(home+"/f", []byte(old+"his"), 0o644); err != nil {
		t.Fatal(err)
	}
	beside, done := home+"/f.quantix-conflict-"+tx.ID(), make(chan error, 1)
	go func() {
		for t.Context().Err() == nil {
			if _, err := os.Lstat(beside); err == nil {
				break
			}
		}
		done <- exchange(beside, home+"/secret")
	}()
	report := tx.Rollback(t.Context())
	if err := <-done; err != nil || len(report.Conflicts()) != 1 {
		t.Errorf("%v, %+v", err, report)
	}
	isRoots(t, beside)
	if got, err := os.ReadFile(home + "/secret"); string(got) != old+"his" || err != nil {
		t.Errorf("his version: %d bytes, %v", len(got), err)
	}
}

// Another file that only ends as the one to which something was appended is neither cut nor given owner and mode of that one.
func TestAppendedFileThatIsReplaced(t *testing.T) {
	_, g, home := userGuest(t, nil)
	old := strings.Repeat("x", 2<<20)
	if err := errors.Join(os.WriteFile(home+"/log", []byte(old), 0o755), unix.Chmod(home+"/log", 0o4755)); err != nil {
		t.Fatal(err)
	}
	tx := g.begin(t)
	g.mustCall(t, tx, "file.append", &pb.WriteFileArgs{Path: "/home/log", Content: []byte("more")})
	tx.Mark()
	his := "#!evil" + old[6:]
	err := errors.Join(os.WriteFile(home+"/his", []byte(his), 0o777), os.Chown(home+"/his", 1234, 1234), os.Rename(home+"/his", home+"/log"))
	if err != nil {
		t.Fatal(err)
	}
	if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED || report.Hint() != "" {
		t.Errorf("%+v, %s", report, report.Hint())
	}
	var stat unix.Stat_t
	if err := unix.Lstat(home+"/log", &stat); err != nil || stat.Uid != 1234 || stat.Mode&0o4000 != 0 {
		t.Errorf("owner %d, mode %o, %v", stat.Uid, stat.Mode, err)
	}
}

// Where only root can put another file, the one that is there is cut back: what undid a command made it anew, or an
// administrator.
func TestAppendedFileThatRootReplaced(t *testing.T) {
	p := newTestDirs(t)
	mustPopulate(t, p)
	path, old := filepath.Join(p.files, "etc/large"), strings.Repeat("x", 2<<20)
	if err := os.WriteFile(path, []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	g := newGuest(t, p, nil)
	tx := g.begin(t)
	g.mustCall(t, tx, "file.append", &pb.WriteFileArgs{Path: "/etc/large", Content: []byte("more")})
	tx.Mark()
	now, err := os.ReadFile(path)
	if err == nil {
		err = errors.Join(os.WriteFile(path+".new", now, 0o600), os.Rename(path+".new", path))
	}
	if err != nil {
		t.Fatal(err)
	}
	if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		t.Errorf("%+v", report)
	}
	if got, err := os.ReadFile(path); string(got) != old || err != nil {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// A large file in a user's directory to which something was appended is cut back also where the rollback of a later step, or an
// interrupted one, has made it anew.
func TestAppendedFileThatIsMadeAnew(t *testing.T) {
	for _, interrupted := range []bool{false, true} {
		p, g, home := userGuest(t, nil)
		old := strings.Repeat("x", 2<<20)
		if err := os.WriteFile(home+"/log", []byte(old), 0o644); err != nil {
			t.Fatal(err)
		}
		tx := g.begin(t)
		g.mustCall(t, tx, "file.append", &pb.WriteFileArgs{Path: "/home/log", Content: []byte("more")})
		g.mustCall(t, tx, "file.append", &pb.WriteFileArgs{Path: "/home/log", Content: []byte("more")})
		g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/home/log", Content: []byte("new")})
		tx.Mark()
		var report Report
		if interrupted {
			if err := g.close(); err != nil {
				t.Fatal(err)
			}
			g = newGuest(t, p, nil)
			list, err := g.journal.Recover(t.Context(), nil)
			if len(list) != 1 || err != nil {
				t.Fatalf("%+v, %v", list, err)
			}
			report = list[0].Report
		} else {
			report = tx.Rollback(t.Context())
		}
		if report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
			t.Errorf("%+v", report)
		}
		if got, err := os.ReadFile(home + "/log"); string(got) != old || err != nil {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	}
}

// On a file system whose numbers do not tell objects from each other, such as overlayfs, no object gets back rights that may be
// another one's: a large file, a moved file and a directory that a user exchanged.
func TestExchangedOnOverlay(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts a file system: run as root")
	}
	layers := t.TempDir()
	err := unix.Mount("tmpfs", layers, "tmpfs", 0, "size=50m")
	if err != nil {
		t.Skipf("cannot mount here (run as root of the machine): %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(layers, unix.MNT_DETACH) })
	p := newTestDirs(t)
	for _, dir := range []string{"/lower/etc", "/upper", "/work"} {
		if err := os.MkdirAll(layers+dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	options := "lowerdir=" + layers + "/lower,upperdir=" + layers + "/upper,workdir=" + layers + "/work"
	if err := unix.Mount("overlay", p.files, "overlay", 0, options); err != nil {
		t.Skipf("no overlay here: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(p.files, unix.MNT_DETACH) })
	large, home := strings.Repeat("x", 2<<20), p.files+"/home"
	err = errors.Join(os.MkdirAll(home+"/d", 0o755), os.MkdirAll(home+"/rootdir", 0o700),
		os.WriteFile(home+"/suid", []byte(large), 0o755), unix.Chmod(home+"/suid", 0o4755),
		os.WriteFile(home+"/rootdir/secret", []byte("root's"), 0o644), os.WriteFile(p.files+"/etc/tool", []byte("tool"), 0o755),
		os.Chown(home, 1234, 1234), os.Chown(home+"/d", 1234, 1234))
	if err != nil {
		t.Fatal(err)
	}
	work := func(g *guest, tx *Tx) {
		g.mustCall(t, tx, "file.chown", &pb.ChownArgs{Path: "/home/d", Owner: "0"})
		g.mustCall(t, tx, "file.chmod", &pb.ChmodArgs{Path: "/home/suid", Mode: "0755"})
		g.mustCall(t, tx, "file.move", &pb.FromToArgs{From: "/etc/tool", To: "/home/tool"})
		tx.Mark()
	}
	g := newGuest(t, p, nil)
	before := mustDescribeTree(t, p.files)
	tx := g.begin(t)
	work(g, tx)
	if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
		t.Errorf("%+v", report)
	}
	if err := tx.Close(t.Context(), &pb.RunScriptResponse{}); err != nil {
		t.Fatal(err)
	}
	checkTree(t, before, p.files)

	tx = g.begin(t)
	work(g, tx)
	evil := home + "/evil"
	err = errors.Join(os.Rename(home+"/d", home+"/d.old"), os.Rename(home+"/rootdir", home+"/d"),
		os.WriteFile(evil, []byte("evil"+large[4:]), 0o755), os.Chown(evil, 1234, 1234), os.Rename(evil, home+"/suid"),
		os.WriteFile(evil, []byte("evil"), 0o755), os.Chown(evil, 1234, 1234), os.Rename(evil, home+"/tool"))
	if err != nil {
		t.Fatal(err)
	}
	if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLBACK_FAILED || len(report.NotUndone()) != 3 {
		t.Errorf("%+v", report)
	}
	isRoots(t, home+"/d")
	var stat unix.Stat_t
	if err := unix.Lstat(home+"/suid", &stat); err != nil || stat.Uid != 1234 || stat.Mode&0o6000 != 0 {
		t.Errorf("suid: owner %d, mode %o, %v", stat.Uid, stat.Mode, err)
	}
	if _, err := os.Lstat(p.files + "/etc/tool"); err == nil {
		t.Error("his tool was moved to root's directory")
	}
}

// What stood in root's directory is not restored in another one that a user put in its place, where he would read it.
func TestDirectoryAboveThatIsReplaced(t *testing.T) {
	_, g, home := userGuest(t, nil)
	dir := home + "/rootdir"
	if err := errors.Join(os.WriteFile(dir+"/conf", []byte("root's old secret"), 0o644), os.Mkdir(dir+"/d", 0o700)); err != nil {
		t.Fatal(err)
	}
	tx := g.begin(t)
	g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/home/rootdir/conf", Content: []byte("new")})
	g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/home/rootdir/made", Content: []byte("new")})
	g.mustCall(t, tx, "file.chmod", &pb.ChmodArgs{Path: "/home/rootdir/d", Mode: "0777"})
	g.mustCall(t, tx, "file.remove", &pb.RemoveArgs{Path: "/home/rootdir/secret"})
	tx.Mark()
	if err := errors.Join(os.Rename(dir, dir+".o"), os.MkdirAll(dir+"/d", 0o755), os.Chown(dir, 1234, 1234)); err != nil {
		t.Fatal(err)
	}
	report := tx.Rollback(t.Context())
	if report.Status() != pb.ScriptStatus_SCRIPT_STATUS_PARTIAL || len(report.NotUndone()) != 4 {
		t.Errorf("%+v", report)
	}
	if list, err := os.ReadDir(dir); len(list) != 1 || err != nil {
		t.Errorf("in his directory are %v, %v", list, err)
	}
	for _, name := range []string{"conf", "secret"} {
		isRoots(t, home+"/"+name+".quantix-conflict-"+tx.ID())
	}
	if got, err := os.ReadFile(home + "/conf.quantix-conflict-" + tx.ID()); string(got) != "root's old secret" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// Another object than the one that was looked at is not moved away.
func TestTakeOfAnExchangedObject(t *testing.T) {
	_, g, home := userGuest(t, nil)
	tx := g.begin(t)
	place, err := g.root.At("/home/sub")
	if err != nil {
		t.Fatal(err)
	}
	defer place.Close()
	seen, err := place.Capture()
	if err != nil {
		t.Fatal(err)
	}
	if err := exchange(home+"/sub", home+"/rootdir"); err != nil {
		t.Fatal(err)
	}
	if err := tx.Take(t.Context(), "/home/sub", seen); !errors.Is(err, fault.ErrChanged) {
		t.Error(err)
	}
	if _, err := os.Stat(home + "/sub/secret"); err != nil {
		t.Error(err)
	}
}
