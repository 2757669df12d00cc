package sandbox

import "github.com/quantix-kvm/guest-agent/runtime/sandbox/internal/confine"

// Layers returns the layers of isolation around the runners of this process, on this machine. That runners die with
// their agent is not listed: it is always so.
func Layers() []Layer {
	why := ""
	if confine.Wine() {
		why = "Wine takes it and does not enforce it"
	}
	layers := []Layer{{"restricted token", why}, {"low integrity", why}, {"job: one process", why}, {"job: memory", why}}
	for _, layer := range confine.Layers() {
		layers = append(layers, Layer(layer))
	}
	// The files that every user may read, and the network, are not behind a wall: that would take an app container.
	return append(layers, Layer{"network", "a restricted token does not close it"})
}
