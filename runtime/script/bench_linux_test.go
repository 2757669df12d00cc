package script_test

import (
	"testing"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/runtime/script"
	"github.com/quantix-kvm/guest-agent/scripts"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func BenchmarkFirstListing(b *testing.B) {
	pool := sandbox.New(sandbox.Config{})
	defer pool.Close()
	for b.Loop() {
		manager := script.New(script.Config{Pool: pool, Library: script.NewLibrary(1<<18, script.Place{Name: "/scripts", FS: scripts.Bundled()})})
		table := builtins.NewTable(manager.Ops())
		manager.Table = table
		request := &pb.ListScriptsRequest{}
		if _, err := table.Invoke(b.Context(), &builtins.Call{}, table.Native(request), request); err != nil {
			b.Fatal(err)
		}
	}
}
