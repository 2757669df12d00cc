//go:build !race && cgo

package confine

// slack is room that a build needs for itself: C gives each thread a stack of 8 MiB and a heap of 64 MiB to map.
const slack = 256 << 20
