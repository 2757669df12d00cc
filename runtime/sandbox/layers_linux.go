package sandbox

import (
	"os"

	"github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/confine"
)

// Layers returns the layers of isolation around the runners of this process, on this machine. That runners die with
// their agent is not listed: it is always so.
func Layers() []Layer {
	var layers []Layer
	for _, layer := range confine.Layers() {
		layers = append(layers, Layer(layer))
	}
	if layers == nil {
		return nil
	}
	user := Layer{Name: "user of its own"}
	if os.Geteuid() != 0 {
		user.Missing = "the agent is not root"
	} else if _, err := freeUserID(); err != nil {
		user.Missing = err.Error()
	}
	memory := Layer{Name: "memory of a cgroup"}
	if err := cgroupMissing(); err != nil {
		memory.Missing = err.Error()
	}
	return append(layers, user, memory)
}
