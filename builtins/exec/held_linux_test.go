package exec

import (
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Where commands cannot be held to what they say of themselves the reply says so, and not where they are, or shall not be.
func TestACommandThatIsNotHeldIsTold(t *testing.T) {
	for _, reexec := range []bool{true, false} {
		r, table := room(t, Config{})
		if !reexec {
			r.guest.Runner = proc.New(proc.Config{Name: "test", Cgroup: "none", JobCgroup: "none"})
		}
		held := r.confinement() == proc.Confined
		for _, in := range []*pb.RunArgs{
			{Argv: []string{"/bin/true"}, Readonly: true}, {Argv: []string{"/bin/true"}, Touches: []string{t.TempDir() + "/f"}},
			{Argv: []string{"/bin/true"}, Readonly: true, Unconfined: true}, {Argv: []string{"/bin/true"}, Irreversible: true},
		} {
			c := &calling{table: table, tx: &tx{}}
			if _, err := c.invoke("exec.run", in); err != nil {
				t.Fatal(err)
			}
			says := (in.Readonly || len(in.Touches) > 0) && !in.Unconfined
			if told := len(c.warnings) == 1 && strings.HasPrefix(c.warnings[0], "true is not held"); told != (says && !held) {
				t.Errorf("%v: %q where confinement is %s", in, c.warnings, r.confinement())
			}
		}
	}
}
