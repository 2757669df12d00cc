//go:build !race && cgo

package confine

// extraAddressSpace is what this build maps for itself, in bytes: C gives each thread a stack of 8 MiB and a heap of 64
// MiB to map.
const extraAddressSpace = 256 << 20
