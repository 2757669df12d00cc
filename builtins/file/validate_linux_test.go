package file_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/builtins/file"
	guestof "github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A new file that is changed while its program looks at it, or exchanged for another, is not put in place.
func TestAFileThatChangesWhileItIsValidated(t *testing.T) {
	g := newGuest(t, file.Config{})
	for name, change := range map[string]func(path string) error{
		"":          func(string) error { return nil },
		"written":   func(path string) error { return os.WriteFile(path, []byte("bad"), 0o600) },
		"exchanged": func(path string) error { return errors.Join(os.Remove(path), os.WriteFile(path, []byte("new"), 0o600)) },
	} {
		g.write("/f", "old")
		// The line of a command has %s as it was written: the file is the only one beside.
		g.of.Answer = func(context.Context, guestof.Command) (*pb.RunResult, error) {
			found, err := filepath.Glob(g.dir + "/.quantix-kvm-*.tmp")
			if err != nil || len(found) != 1 {
				t.Fatal(found, err)
			}
			return &pb.RunResult{}, change(found[0])
		}
		_, err := run[*pb.Changed](g, "file.write", &pb.WriteFileArgs{Path: "/f", Content: []byte("new"), Validate: []string{"check", "%s"}})
		want := "new"
		if name != "" {
			want = "old"
		}
		if got, e := os.ReadFile(g.dir + "/f"); string(got) != want || e != nil || errors.Is(err, fault.ErrChanged) != (name != "") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if left, _ := os.ReadDir(g.dir); len(left) != 1 {
			t.Errorf("%s: %v is left", name, left)
		}
	}
}

// A program that validates and cannot be held to changing nothing is told of in the reply.
func TestAValidatorThatIsNotHeldIsTold(t *testing.T) {
	g := newGuest(t, file.Config{})
	if g.of.Runner = proc.New(proc.Config{Name: "test", Cgroup: "none", JobCgroup: "none"}); g.of.Runner.Confinement() == proc.Confined {
		t.Fatal("it is held")
	}
	var said []string
	g.call.Warned = func(text string) { said = append(said, text) }
	in := &pb.WriteFileArgs{Path: "/f", Content: []byte("new"), Validate: []string{"true", "%s"}}
	if _, err := run[*pb.Changed](g, "file.write", in); err != nil {
		t.Fatal(err)
	}
	if len(said) != 1 || !strings.HasPrefix(said[0], "true, which validates, is not held to changing nothing: ") {
		t.Errorf("%q", said)
	}
}
