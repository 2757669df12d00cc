package confine

import (
	"os"
	"os/exec"
	"testing"
)

// TestMain makes this program one that seals itself and then starts a process.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "sealed" {
		if err := Seal(Limits{}); err != nil {
			os.Stderr.WriteString(err.Error())
			os.Exit(1)
		}
		if exec.Command("cmd.exe", "/C", "exit 0").Run() == nil {
			os.Exit(9)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// A process can seal itself, and starts no other one afterwards where the system enforces that.
func TestSeal(t *testing.T) {
	out, err := exec.Command(os.Args[0], "sealed").CombinedOutput()
	exit, _ := err.(*exec.ExitError)
	switch {
	case err == nil && !Wine():
	case exit != nil && exit.ExitCode() == 9 && Wine():
		t.Skip("Wine accepts the policy against child processes and does not enforce it")
	default:
		t.Errorf("%v, %s", err, out)
	}
}
