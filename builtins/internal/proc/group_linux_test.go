package proc

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A group that cannot be joined does not keep a command from being started.
func TestGroupThatCannotBeJoined(t *testing.T) {
	r := newRunner(t, Config{})
	dir := t.TempDir() // is none
	if err := os.WriteFile(filepath.Join(dir, "cgroup.events"), []byte(eventsAsNew), 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	events, err := unix.Open(filepath.Join(dir, "cgroup.events"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	r.platform.spares["tied"] = []*cgroup{{dir: dir, fd: fd, events: events}}
	if result, err := r.Run(t.Context(), Spec{Argv: []string{"true"}, Tied: true}); err != nil || result.Code != 0 {
		t.Errorf("%+v, %v", result, err)
	}
}

// The group of a command that has ended is the next one's. One that somebody has removed, frozen or entered is not used, and
// none is left by Release.
func TestSpareGroup(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, dir string) error{
		"untouched": nil,
		"removed":   func(_ *testing.T, dir string) error { return unix.Rmdir(dir) },
		"frozen": func(_ *testing.T, dir string) error {
			return os.WriteFile(filepath.Join(dir, "cgroup.freeze"), []byte("1"), 0)
		},
		"entered": func(t *testing.T, dir string) error {
			cmd := exec.Command("sleep", "300")
			if err := cmd.Start(); err != nil {
				return err
			}
			t.Cleanup(func() {
				cmd.Process.Kill()
				cmd.Wait()
				eventually(t, "the group goes", func() bool { return unix.Rmdir(dir) != unix.EBUSY })
			})
			return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRunner(t, Config{})
			spare := func() string {
				r.platform.mu.Lock()
				defer r.platform.mu.Unlock()
				if list := r.platform.spares["job"]; len(list) > 0 {
					return list[len(list)-1].dir
				}
				return ""
			}
			run(t, r, Spec{Argv: []string{"true"}})
			eventually(t, "a group for the next command", func() bool { return spare() != "" })
			want := spare()
			if spoil != nil {
				if err := spoil(t, want); err != nil {
					t.Fatal(err)
				}
			}
			groups := string(run(t, r, Spec{Argv: []string{"cat", "/proc/self/cgroup"}}).Stdout)
			if in := strings.Contains(groups, filepath.Base(want)+"\n"); in != (spoil == nil) {
				t.Errorf("the spare group is %s, and the command's groups are %s", want, groups)
			}
			if !strings.Contains(groups, "/"+r.config.Name+"-") {
				t.Errorf("the command is in no group of its own: %s", groups)
			}
			eventually(t, "a group for the next command", func() bool { return spare() != "" })
			last := spare()
			if err := r.Release(); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(last); !os.IsNotExist(err) {
				t.Errorf("after Release there is %s: %v", last, err)
			}
		})
	}
}

// A group in which a command has left or set anything is no other command's.
func TestSpareGroupThatIsNotAsNew(t *testing.T) {
	top, _ := ownCgroup()
	if top == "" || os.Geteuid() != 0 {
		t.Skip("needs root and cgroup v2")
	}
	r := newRunner(t, Config{})
	const own = `cd "$TOP$(sed -n s/^0:://p /proc/self/cgroup)"; `
	for name, command := range map[string]string{
		"a process": "sleep 300 </dev/null >/dev/null 2>&1 &",
		"a group":   "mkdir sub",
		"an owner":  "chown 1 .",
		"rights":    "chmod 777 .",
		"a freeze":  "echo 1 >cgroup.freeze; sleep 300",
	} {
		env := append(LoginEnv(nil), "TOP="+top)
		used := strings.TrimSpace(string(run(t, r, Spec{Argv: sh(own + "pwd; " + command), Env: env, Timeout: time.Second}).Stdout))
		g := &cgroup{dir: used, fd: -1, events: -1}
		t.Cleanup(func() {
			g.kill()
			eventually(t, "the end of a group", func() bool { err := g.remove(); return err == nil || errors.Is(err, os.ErrNotExist) })
		})
		for range 2 {
			result := run(t, r, Spec{Argv: sh(own + "pwd"), Env: env, Timeout: 10 * time.Second})
			if now := strings.TrimSpace(string(result.Stdout)); now == used || now == "" {
				t.Errorf("%s: the next command is in %q, as the one before in %q", name, now, used)
			}
		}
	}
}

// Groups that many commands leave at once are there for others that soon follow, and but for one no longer than for those.
func TestSpareGroupsOfMany(t *testing.T) {
	r := newRunner(t, Config{})
	spares := func() int {
		r.platform.mu.Lock()
		defer r.platform.mu.Unlock()
		return len(r.platform.spares["job"])
	}
	var all sync.WaitGroup
	for range 2 * burstSize {
		all.Go(func() { run(t, r, Spec{Argv: []string{"sleep", "0.3"}}) })
	}
	all.Wait()
	if spares() < 2 {
		t.Skip("needs cgroup v2")
	}
	eventually(t, "a single spare group", func() bool { return spares() == 1 })
}
