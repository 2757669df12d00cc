//go:build !race && !cgo

package confine

// extraAddressSpace is what this build maps for itself, in bytes.
const extraAddressSpace = 0
