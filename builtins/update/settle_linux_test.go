package update

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// onTrial sends a program to a room, and returns the room of the process that is the new version, with its hook.
func onTrial(t *testing.T, step func(string)) (b *bench, next *Room) {
	t.Helper()
	b = newBench(t, nil)
	if _, err := b.send(b.chunks(works, "1.1.0")...); err != nil {
		t.Fatal(err)
	}
	_, trial, err := Next(b.config.State, b.config.Program, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	c := b.config
	c.Trial, c.Version, c.Step = trial, "1.1.0", step
	next = New(b.guest, c)
	next.settle()
	return b, next
}

// after is the outcome that the next agent finds.
func (b *bench) after() *pb.UpdateOutcome {
	b.t.Helper()
	r := New(b.guest, b.config)
	r.settle()
	if r.trouble != nil {
		b.t.Error(r.trouble)
	}
	if left, err := os.ReadDir(stagePath(b.config.Program)); !errors.Is(err, os.ErrNotExist) {
		b.t.Error(left, err)
	}
	if trial, err := Trial(b.config.State); trial != nil || err != nil {
		b.t.Error(trial, err)
	}
	return r.Status().Last
}

func text(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// locked reports whether another open file has a directory locked.
func locked(t *testing.T, path string) bool {
	t.Helper()
	dir, err := os.Open(path)
	if err != nil {
		t.Error(err)
		return false
	}
	defer dir.Close()
	return errors.Is(unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// A watcher that gives an update up while it is being confirmed waits, and then finds it confirmed: the process stays.
func TestAbandonWhileConfirming(t *testing.T) {
	var b *bench
	var next *Room
	abandoned := make(chan string, 1)
	b, next = onTrial(t, func(name string) {
		if name != "confirm.backup" {
			return
		}
		if !locked(t, stagePath(b.config.Program)) {
			t.Error("a confirmation keeps nobody out")
		}
		begun := make(chan struct{})
		go func() {
			close(begun)
			noted, err := Abandon(b.config.State, next.config.Trial.Id, "too late")
			abandoned <- fmt.Sprint(noted, err)
		}()
		<-begun
	})
	if err := next.Confirm(); err != nil {
		t.Error(err)
	}
	if got := <-abandoned; got != "false <nil>" {
		t.Error("the watcher hears", got)
	}
	if trial, err := Trial(b.config.State); trial != nil || err != nil {
		t.Error("a note came back:", trial, err)
	}
	if last := b.after(); !last.GetConfirmed() || text(t, b.config.Program) != works {
		t.Error(last)
	}
}

// Who gives an update up while another process settles it looks once more when that has ended.
func TestAbandonLooksAgain(t *testing.T) {
	b, next := onTrial(t, nil)
	stage := stagePath(b.config.Program)
	dir, err := os.Open(stage)
	if err == nil {
		err = unix.Flock(int(dir.Fd()), unix.LOCK_EX)
	}
	if err != nil {
		t.Fatal(err)
	}
	opened := descriptors(t, stage)
	abandoned := make(chan string, 1)
	go func() {
		noted, err := Abandon(b.config.State, next.config.Trial.Id, "too late")
		abandoned <- fmt.Sprint(noted, err)
	}()
	for descriptors(t, stage) == opened { // it has not come to the lock yet
		select {
		case got := <-abandoned:
			t.Fatal("it does not wait, and returns", got)
		case <-time.After(time.Millisecond):
		}
	}
	if err := os.Rename(filepath.Join(stage, programName), b.config.Program); err != nil {
		t.Fatal(err)
	}
	dir.Close()
	if got := <-abandoned; got != "false <nil>" {
		t.Error(got)
	}
	if last := b.after(); !last.GetConfirmed() || last.GetError() != "" {
		t.Error(last)
	}
}

// descriptors counts those of this process that are of a directory.
func descriptors(t *testing.T, path string) (n int) {
	t.Helper()
	list, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range list {
		if to, err := os.Readlink(fd); err == nil && to == path {
			n++
		}
	}
	return n
}

// What was given up before is not confirmed by a host that is heard later.
func TestConfirmAfterAbandon(t *testing.T) {
	b, next := onTrial(t, nil)
	if noted, err := Abandon(b.config.State, next.config.Trial.Id, "it hangs"); !noted || err != nil {
		t.Fatal(noted, err)
	}
	if noted, err := Abandon(b.config.State, next.config.Trial.Id, "again"); noted || err != nil {
		t.Error("a second time:", noted, err)
	}
	if err := next.Confirm(); err == nil || !strings.Contains(err.Error(), "given up: it hangs") {
		t.Error(err)
	}
	if text(t, b.config.Program) != installed {
		t.Error("it is installed")
	}
	if last := b.after(); last.GetConfirmed() || last.GetError() != "it hangs" {
		t.Error(last)
	}
}

// A confirmation that fails at any of its steps can be tried again, and keeps the former program, not the new one, as what it
// was.
func TestConfirmIsTriedAgain(t *testing.T) {
	for _, at := range []string{"confirm.backup", "confirm.rename", "confirm.sync", "conclude.note", "conclude.clean", "conclude.forget"} {
		t.Run(at, func(t *testing.T) {
			broken := true
			b, next := onTrial(t, func(name string) {
				if broken && name == at {
					panic(at) // as any fault would: what follows it is not done
				}
			})
			confirm := func() (err error) {
				defer func() {
					if value := recover(); value != nil {
						err = errors.New(fmt.Sprint(value))
					}
				}()
				return next.Confirm()
			}
			for range 2 {
				if err := confirm(); err == nil || err.Error() != at {
					t.Fatal(err)
				}
				if s := next.Status().State; s != applying {
					t.Error("the state is", s)
				}
			}
			broken = false
			if err := confirm(); err != nil {
				t.Fatal(err)
			}
			if kept := text(t, b.config.Program+backupSuffix); kept != installed {
				t.Errorf("the program that is kept is %q", kept)
			}
			if now := text(t, b.config.Program); now != works {
				t.Errorf("the installed program is %q", now)
			}
			if s := next.Status(); s.State != complete || !s.Last.GetConfirmed() {
				t.Error(s)
			}
			if last := b.after(); !last.GetConfirmed() {
				t.Error(last)
			}
		})
	}
}

// A note that an update failed, and that came when its program was installed already, takes nothing back.
func TestFailureThatIsNotedTooLate(t *testing.T) {
	b, next := onTrial(t, nil)
	if err := os.Rename(next.config.Trial.Staged, b.config.Program); err != nil {
		t.Fatal(err)
	}
	if noted, err := Abandon(b.config.State, next.config.Trial.Id, "too late"); noted || err != nil {
		t.Error(noted, err)
	}
	trial, err := Trial(b.config.State)
	if err != nil {
		t.Fatal(err)
	}
	trial.Failed = "too late" // as a process would note it that looked before
	if err := writeNote(b.config.State, trialFile, trial); err != nil {
		t.Fatal(err)
	}
	if program, _, err := Next(b.config.State, b.config.Program, func(string) {}); program != "" || err != nil {
		t.Error(program, err)
	}
	if last := b.after(); !last.GetConfirmed() || last.GetError() != "" || text(t, b.config.Program) != works {
		t.Error(last)
	}
}
