package fsys_test

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
)

func TestTrusted(t *testing.T) {
	needRoot(t, "it makes files of another user's")
	dir := scratch(t)
	sleep := exec.Command("sleep", "60")
	sleep.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: other, Gid: other}}
	must(t, sleep.Start())
	defer func() { _, _ = sleep.Process.Kill(), sleep.Wait() }()
	own, his := uint32(0), uint32(other)
	const yes, no, refused = "true <nil>", "false <nil>", "refused"
	for _, c := range []struct {
		dirOwner int
		dirMode  os.FileMode
		owner    int
		want     [3]string // nobody, root and the user himself was asked for
	}{
		{0, 0o755, other, [3]string{yes, yes, yes}},
		{0, 0o777 | os.ModeSticky, other, [3]string{no, no, yes}},
		{0, 0o777 | os.ModeSticky, 0, [3]string{yes, yes, yes}},
		{0, 0o775, other, [3]string{no, no, yes}},
		{other, 0o755, other, [3]string{refused, no, yes}},
		{other, 0o755, 0, [3]string{yes, yes, yes}},
	} {
		must(t, os.RemoveAll(dir+"/d"))
		must(t, os.Mkdir(dir+"/d", 0o755))
		must(t, os.WriteFile(dir+"/d/f", nil, 0o644))
		must(t, os.Chown(dir+"/d/f", c.owner, -1))
		must(t, os.Chown(dir+"/d", c.dirOwner, -1))
		must(t, os.Chmod(dir+"/d", c.dirMode))
		trusted(t, dir+"/d/f", [3]*uint32{nil, &own, &his}, c.want)
	}
	setting := fmt.Sprintf("/proc/%d/oom_score_adj", sleep.Process.Pid)
	trusted(t, setting, [3]*uint32{nil, &own, &his}, [3]string{yes, yes, yes})
}

func trusted(t *testing.T, path string, owners [3]*uint32, want [3]string) {
	t.Helper()
	entry := at(t, host(t), path)
	old, err := entry.Stat()
	must(t, err)
	for i, owner := range owners {
		ok, err := entry.Trusted(old, owner)
		got := fmt.Sprint(ok, err)
		if err != nil {
			got = "refused"
		}
		if got != want[i] {
			t.Errorf("%s, owner %d: %v, %v; want %s", path, old.UID, ok, err, want[i])
		}
	}
}

// Content that is not for all who had the old rights is written when these are gone, and then what was asked for is set.
func TestNarrow(t *testing.T) {
	dir := t.TempDir()
	for _, test := range []struct{ old, want, narrow uint32 }{
		{0o644, 0o600, 0o600}, {0o640, 0o604, 0o600}, {0o600, 0o644, 0o600}, {0o644, 0o644, 0o644},
	} {
		path := dir + "/f"
		must(t, os.WriteFile(path, nil, 0o600))
		must(t, os.Chmod(path, os.FileMode(test.old)))
		entry := at(t, host(t), path)
		old, err := entry.Capture()
		must(t, err)
		file, err := entry.OpenInPlace()
		must(t, err)
		attr, err := entry.Narrow(file, old, fsys.Attr{Mode: &test.want})
		must(t, err)
		now, err := entry.Capture()
		must(t, err)
		must(t, entry.SetAttrFile(file, attr))
		must(t, file.Close())
		after, err := entry.Capture()
		must(t, err)
		if now.Mode != test.narrow || after.Mode != test.want {
			t.Errorf("%04o to %04o: %04o, then %04o", test.old, test.want, now.Mode, after.Mode)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("another owner needs root")
	}
	entry := at(t, host(t), dir+"/f")
	old, err := entry.Capture()
	must(t, err)
	file, err := entry.OpenInPlace()
	must(t, err)
	defer file.Close()
	attr, err := entry.Narrow(file, old, fsys.Attr{UID: new(uint32(1234))})
	must(t, err)
	if now, err := entry.Capture(); err != nil || now.Mode != 0 || *attr.Mode != old.Mode {
		t.Errorf("%+v %v", now, err)
	}
}
