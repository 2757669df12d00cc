package journal

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// fileMachine makes the machine ID what a file of the guest says.
func fileMachine(p testDirs) func(*Config) {
	return func(c *Config) {
		c.MachineID = func() string {
			text, _ := os.ReadFile(filepath.Join(p.files, "machine-id"))
			return strings.TrimSpace(string(text))
		}
	}
}

// setMachine writes the machine ID, as a step of a transaction if there is one.
func setMachine(t *testing.T, p testDirs, tx *Tx, id string) {
	t.Helper()
	if tx != nil {
		mustDo(t, tx.Before(t.Context(), "/machine-id"))
	}
	mustDo(t, os.WriteFile(filepath.Join(p.files, "machine-id"), []byte(id+"\n"), 0o644))
}

// What is stored of a guest stays, whatever machine ID a script writes that is taken back: as it runs, when it was interrupted,
// and when that is recovered.
func TestMachineOfWhatIsTakenBack(t *testing.T) {
	p := newTestDirs(t)
	setMachine(t, p, nil, "one")
	g := newGuest(t, p, fileMachine(p))
	storeReply(t, g, "kept", textReply("x"))
	check := func(when, machine string) {
		t.Helper()
		if _, err := g.journal.Stored(Ref{Key: "kept"}); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if list, _, err := g.journal.List("", 10, anyPort); err != nil || len(list) == 0 {
			t.Errorf("%s: %v, %v", when, list, err)
		}
		if got := g.journal.MachineID(); got != machine {
			t.Errorf("%s: the machine ID is %q", when, got)
		}
	}
	tx := g.begin(t)
	setMachine(t, p, tx, "two")
	check("open", "one")
	if report := tx.Rollback(t.Context()); report.Err != nil {
		t.Fatal(report.Err)
	}
	mustDo(t, tx.Close(t.Context(), nil))
	g.journal.cleanups.Wait()
	check("rolled back", "one")

	setMachine(t, p, g.begin(t), "two")
	mustDo(t, g.close())
	g = newGuest(t, p, fileMachine(p))
	check("interrupted", "two") // until it is recovered, which Refusal tells
	if g.journal.Refusal() == nil {
		t.Error("it looks recovered")
	}
	if _, err := g.journal.Recover(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := g.journal.Refusal(); err != nil {
		t.Error(err)
	}
	check("recovered", "one")

	setMachine(t, p, nil, "three") // as in a clone
	if _, err := g.journal.Stored(Ref{Key: "kept"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("another machine: %v", err)
	}
}

// What a script stored that gave the guest another machine ID counts in a guest with that one and in one with the former, also
// where its agent was killed after the commit, and not in a clone of the guest.
func TestMachineThatAScriptChanges(t *testing.T) {
	for _, end := range []string{"stored", "killed", "killed, and booted again as a clone", "killed, and booted again"} {
		t.Run(end, func(t *testing.T) {
			p := newTestDirs(t)
			setMachine(t, p, nil, "one")
			boot, told := "boot", ""
			change := func(c *Config) {
				fileMachine(p)(c)
				c.BootID = func() string { return boot }
				c.MachineChanged = func(begin *pb.JournalBegin, to string) error {
					told += begin.Key + ":" + begin.MachineId + ">" + to + " "
					return nil
				}
			}
			g := newGuest(t, p, change)
			storeReply(t, g, "former", textReply("x"))
			tx := g.begin(t)
			setMachine(t, p, tx, "two")
			mustDo(t, tx.Commit(t.Context(), committedReply()))
			if end == "stored" {
				mustDo(t, tx.Close(t.Context(), nil))
			}
			mustDo(t, g.close())
			if strings.Contains(end, "again") {
				boot = "next"
			}
			if strings.Contains(end, "clone") {
				setMachine(t, p, nil, "clone")
			}
			g = newGuest(t, p, change)
			if _, err := g.journal.Recover(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			if told != "k:one>two " {
				t.Errorf("told %q", told)
			}
			stored := func(machine string) bool {
				t.Helper()
				setMachine(t, p, nil, machine)
				mustDo(t, g.close())
				g = newGuest(t, p, change)
				_, err := g.journal.Stored(Ref{Key: "k"})
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					t.Error(err)
				}
				return err == nil
			}
			if strings.Contains(end, "clone") {
				if stored("clone") {
					t.Error("it counts in a clone")
				}
				return
			}
			for _, machine := range []string{"two", "one", "two"} {
				if !stored(machine) {
					t.Errorf("it does not count in %q", machine)
				}
			}
			if stored("three") {
				t.Error("it counts in another guest")
			}
		})
	}
}
