package core

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/runtime/journal"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A script that was interrupted when it had a line in fstab for a mount point above the state directory is taken back: that
// line is not waited for. A line that stays is.
func TestFstabOfAnInterruptedScript(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to have an fstab of its own")
	}
	const dirVariable = "FSTAB_TEST_DIR"
	dir := os.Getenv(dirVariable)
	if dir == "" { // again, where /etc is another one for all threads
		c := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		c.Env = append(os.Environ(), dirVariable+"="+t.TempDir())
		c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		if out, err := c.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	etc, state := dir+"/etc", dir+"/var/state"
	if err := errors.Join(os.Mkdir(etc, 0o755), os.Mkdir(dir+"/var", 0o755), unix.Mount(etc, "/etc", "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	const before = "LABEL=root / ext4 defaults 0 1\n"
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile("/etc/fstab", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	open := func() *Core {
		t.Helper()
		core, err := Open(Config{Root: "/", State: state, Tolerant: true, BootID: func() string { return "boot" }, MachineID: func() string { return "machine" }})
		if err != nil {
			t.Fatal(err)
		}
		return core
	}
	// interrupted makes a change in a transaction that the agent which began it does not get to the end of.
	running := func(*journal.Tx) error { return nil }
	committed := func(tx *journal.Tx) error {
		return tx.Commit(t.Context(), &pb.RunScriptResponse{Status: pb.ScriptStatus_SCRIPT_STATUS_COMMITTED})
	}
	interrupted := func(path, text string, end func(*journal.Tx) error) {
		t.Helper()
		core := open()
		tx, err := core.Journal.Begin(t.Context(), journal.Header{})
		if err == nil {
			err = tx.Before(t.Context(), path)
		}
		if err == nil {
			err = os.WriteFile(path, []byte(text), 0o644)
		}
		if err == nil {
			err = end(tx)
		}
		if err = errors.Join(err, core.Close()); err != nil {
			t.Fatal(err)
		}
	}
	holds := func(path, want string) {
		t.Helper()
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s holds %q, %v; want %q", path, got, err, want)
		}
	}
	line := "LABEL=new " + dir + "/var ext4 defaults 0 2\n"
	for _, early := range []bool{false, true} {
		write(before)
		interrupted("/etc/fstab", before+line, running)
		core := open()
		var err error
		if early {
			_, err = core.RecoverEarly(t.Context(), t.Context())
		} else {
			_, err = core.Recover(t.Context())
		}
		if err != nil || core.Journal.Unusable() != nil {
			t.Errorf("early %t: %v, %v", early, err, core.Journal.Unusable())
		}
		holds("/etc/fstab", before)
		core.Close()
	}

	// The line of somebody else is waited for.
	write(before)
	interrupted(dir+"/file", "of the script\n", running)
	write(line)
	core := open()
	if _, err := core.Recover(t.Context()); err != nil || core.Journal.Unusable() == nil {
		t.Error(err, core.Journal.Unusable())
	}
	holds(dir+"/file", "of the script\n")
	write(before)
	if _, err := core.Recover(t.Context()); err != nil || core.Journal.Unusable() != nil {
		t.Error(err, core.Journal.Unusable())
	}
	if _, err := os.Stat(dir + "/file"); !errors.Is(err, os.ErrNotExist) {
		t.Error("not taken back: ", err)
	}
	core.Close()

	// So is the line of a script that has committed, once what is left to do of that is done.
	interrupted("/etc/fstab", line, committed)
	core = open()
	defer core.Close()
	if core.Journal.Unusable() != nil {
		t.Error(core.Journal.Unusable())
	}
	found, err := core.Recover(t.Context())
	if err != nil || len(found) != 1 || core.Journal.Unusable() == nil {
		t.Error(found, err, core.Journal.Unusable())
	}
	if _, err := core.Journal.Begin(t.Context(), journal.Header{}); err == nil {
		t.Error("a transaction begins in what is not the state directory")
	}
	holds("/etc/fstab", line)
	write(before)
	if _, err := core.Recover(t.Context()); err != nil || core.Journal.Unusable() != nil {
		t.Error(err, core.Journal.Unusable())
	}
}
