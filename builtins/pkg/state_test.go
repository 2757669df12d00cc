package pkg

import (
	"slices"
	"testing"

	"github.com/quantix-kvm/guest-agent/builtins/internal/packages"
)

// Versions of a kernel beside each other are all there, and one more is one that was installed.
func TestSeveralVersions(t *testing.T) {
	of := func(versions ...string) *state {
		var list []packages.Package
		for _, v := range versions {
			list = append(list, packages.Package{Type: packages.RPM, Name: "kernel", Arch: "x86_64", Version: v, State: packages.StateInstalled})
		}
		return newState(list)
	}
	one, two := of("5.14-1"), of("5.14-2", "5.14-1")
	if got := two.versions("kernel.x86_64"); !slices.Equal(got, []string{"5.14-1", "5.14-2"}) || !two.fulfils(wish{"kernel", "5.14-2"}) {
		t.Error(got)
	}
	if steps := difference(one, two); len(steps) != 1 || steps[0].action() != "installed" || steps[0].after != "5.14-2" {
		t.Error(steps)
	}
	if steps := difference(two, one); len(steps) != 1 || steps[0].action() != "removed" || steps[0].before != "5.14-2" {
		t.Error(steps)
	}
}
