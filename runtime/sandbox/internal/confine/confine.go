// Package confine seals the process that it runs in: afterwards it can compute, and talk over what is open.
//
//	Seal:  descriptors ─► not dumpable ─► no new privileges ─► rlimits ─► Landlock ─► seccomp
//
// Each wall holds by itself. What a kernel does not have is left out, and Missing tells the agent, which is the same
// binary on the same kernel, what that is. Anything else that fails is an error, and the process must not go on.
//
// Not here: the user a runner runs as and the kill at its parent's death, which its start decides.
package confine

// Limits are what a sealed process may use.
type Limits struct {
	// AddressSpace is how many bytes it may map beyond what it has.
	AddressSpace uint64
	// CPU is seconds of processor time; one more and the kernel kills it.
	CPU uint64
}

// Wall is one of them. Missing says why this machine does not have it.
type Wall struct{ Name, Missing string }
