package script_test

import (
	"testing"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/runtime/sandbox"
	"github.com/quantix-kvm/guest-agent/runtime/script"
	bundled "github.com/quantix-kvm/guest-agent/scripts"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func BenchmarkFirstListing(b *testing.B) {
	pool := sandbox.New(sandbox.Config{})
	defer pool.Close()
	for b.Loop() {
		_, calls := scripts(pool, script.NewLibrary(1<<18, script.Place{Name: "/scripts", FS: bundled.Bundled()}))
		request := &pb.ListScriptsRequest{}
		if _, err := calls.Execute(b.Context(), &builtins.Call{}, calls.Native(request), request); err != nil {
			b.Fatal(err)
		}
	}
}
