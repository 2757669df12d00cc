package firstboot

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A run that changed the instance, and whose agent was killed before it wrote down that the run had ended, is known by its key, and so
// are those before it.
func TestInstanceChangedByAKilledRun(t *testing.T) {
	file, instance := filepath.Join(t.TempDir(), "first-boot.json"), "one"
	var ran []string
	known := map[string]bool{}
	killed := false
	next := func() *Runner {
		return New(Config{
			File: file, Boot: "boot",
			Scripts: func(context.Context) ([]Script, error) {
				return []Script{{Name: "10-a"}, {Name: "20-b"}, {Name: "30-c"}}, nil
			},
			Instance: func(context.Context) (string, error) { return instance, nil },
			Run: func(ctx context.Context, request *pb.RunScriptRequest) (*pb.RunScriptResponse, error) {
				reply := &pb.RunScriptResponse{Status: pb.ScriptStatus_SCRIPT_STATUS_COMMITTED}
				if known[request.Key] {
					return reply, nil
				}
				ran = append(ran, request.Name)
				if request.Name != "20-b.lua" {
					return reply, nil
				}
				from := instance
				instance, known[request.Key], killed = "two", true, true
				for _, key := range []string{"a host's", request.Key, request.Key} {
					if err := InstanceChanged(file, key, from, instance); err != nil {
						t.Error(err)
					}
				}
				return nil, fmt.Errorf("killed: %w", context.Canceled)
			},
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // what Run returns is then no outcome
	if err := next().Run(ctx); err == nil || !killed {
		t.Fatal(err)
	}
	if err := next().Run(t.Context()); err != nil {
		t.Error(err)
	}
	if want := []string{"10-a.lua", "20-b.lua", "30-c.lua"}; !slices.Equal(ran, want) {
		t.Errorf("ran %q, want %q", ran, want)
	}
	instance = "a clone"
	clear(known)
	if err := next().Run(t.Context()); err == nil || len(ran) < 4 || ran[3] != "10-a.lua" {
		t.Errorf("a clone: %v, ran %q", err, ran)
	}
}

// Of those whom a kill interrupts while they write no more than one file is left, and none after the next write.
func TestNothingIsLeftOfAKill(t *testing.T) {
	file := filepath.Join(t.TempDir(), "first-boot.json")
	if err := os.WriteFile(file+".new", []byte("longer than what is written to it now"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := write(file, &record{Instance: "one"}); err != nil {
		t.Fatal(err)
	}
	r := New(Config{File: file})
	if got, err := r.read("one"); err != nil || got.Instance != "one" {
		t.Error(got, err)
	}
	if list, err := os.ReadDir(filepath.Dir(file)); err != nil || len(list) != 1 {
		t.Error(list, err)
	}
}
