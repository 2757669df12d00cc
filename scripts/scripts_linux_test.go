package scripts_test

import (
	"io/fs"
	"os"
	"testing"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox/lua"
	"github.com/quantix-kvm/guest-agent/scripts"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// TestMain makes this program a runner where it is started as one.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == sandbox.Arg {
		os.Exit(lua.Main(os.Args[2:]))
	}
	os.Exit(m.Run())
}

func newPool(t *testing.T) *sandbox.Pool {
	pool := sandbox.New(sandbox.Config{})
	t.Cleanup(pool.Close)
	return pool
}

func TestEachScriptDeclaresItsFileName(t *testing.T) {
	pool := newPool(t)
	entries, err := fs.ReadDir(scripts.Bundled(), ".")
	if err != nil || len(entries) == 0 {
		t.Fatalf("bundled scripts: %v, %v", entries, err)
	}
	for _, entry := range entries {
		source, err := fs.ReadFile(scripts.Bundled(), entry.Name())
		if err != nil {
			t.Fatal(err)
		}
		out := pool.Run(t.Context(), sandbox.Job{Start: &pb.RunnerStart{Name: entry.Name(), Source: source, Describe: true}})
		d := out.Declaration
		if out.Error != nil || d.GetName()+".lua" != entry.Name() || d.GetVersion() == "" || d.GetDescription() == "" ||
			len(d.GetNeeds()) == 0 {
			t.Errorf("%s declares %v, error %v", entry.Name(), d, out.Error)
		}
	}
}
