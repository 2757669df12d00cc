package sandbox

import (
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// TestHasProcesses: an id is in use from the start of its first process to the end of its last one, also where the list of
// processes was made before.
func TestHasProcesses(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it starts a process of another user")
	}
	id, err := freeUserID()
	if err != nil {
		t.Fatal(err)
	}
	if hasProcesses(id) {
		t.Errorf("%d is free, and has processes", id)
	}
	cmd := exec.Command("/bin/sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: id, Gid: id}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if contains(lately.ids(), id) {
		t.Log("the list was made anew meanwhile")
	}
	if !hasProcesses(id) {
		t.Errorf("%d has a process, which is not seen", id)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait() //nolint:errcheck // as it was killed
	if hasProcesses(id) {
		t.Errorf("the process of %d has ended", id)
	}
}
