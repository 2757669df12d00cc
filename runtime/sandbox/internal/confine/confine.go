// Package confine seals the process that it runs in: afterwards it can only compute, and use what is open.
//
//	Seal:  descriptors ─► not dumpable ─► no new privileges ─► rlimits ─► Landlock ─► seccomp
//
// Each layer holds by itself. What a kernel does not have is left out; Layers reports that to the agent, which is the same
// binary on the same kernel, what that is. Anything else that fails is an error, and the process must not go on.
//
// Not here: the user a runner runs as and the kill at its parent's death, which its start decides.
package confine

// Limits are the resources of a sealed process.
type Limits struct {
	// AddressSpace is how many bytes it may map beyond what it has.
	AddressSpace uint64
	// CPU is seconds of processor time. The kernel kills the process at twice that: the limit only backs up whoever
	// watches it.
	CPU uint64
}

// Layer is one layer of the confinement. Missing says why this machine does not have it; empty: it has.
type Layer struct{ Name, Missing string }
