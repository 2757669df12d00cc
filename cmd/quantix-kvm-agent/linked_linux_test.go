package main

import (
	"bytes"
	"os"
	"testing"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/ctltest"
)

// Neither program looks up methods by name, as text/template does: the linker would then keep every exported method of every
// type, a sixth of the program. cobra has no need of templates unless it is given one.
func TestUnusedMethodsAreNotLinked(t *testing.T) {
	for _, binary := range []func() (string, error){agenttest.Binary, ctltest.Binary} {
		path, err := binary()
		if err != nil {
			t.Fatal(err)
		}
		program, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(program, []byte("text/template.(*state).evalField")) {
			t.Errorf("%s has templates", path)
		}
		if !bytes.Contains(program, []byte("github.com/spf13/cobra.(*Command).ExecuteC")) {
			t.Errorf("%s does not show which functions it has", path)
		}
	}
}
