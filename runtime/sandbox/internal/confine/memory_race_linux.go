//go:build race

package confine

// extraAddressSpace is what this build maps for itself, in bytes: the race detector maps several times what the program
// uses.
const extraAddressSpace = 4 << 30
