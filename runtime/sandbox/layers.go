package sandbox

import (
	"os"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/confine"
)

// Layers lists the walls around the runners of an agent like this one, on this machine; what is missing says why. The
// death with the agent is always there.
func Layers() []Layer {
	var layers []Layer
	for _, wall := range confine.All() {
		layers = append(layers, Layer(wall))
	}
	if layers == nil {
		return nil
	}
	user := Layer{Name: "user of its own"}
	if os.Geteuid() != 0 {
		user.Missing = "the agent is not root"
	}
	memory := Layer{Name: "memory of a cgroup"}
	if err := groupMissing(); err != nil {
		memory.Missing = err.Error()
	}
	return append(layers, user, memory)
}
