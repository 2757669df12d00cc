//go:build !race && !cgo

package confine

// slack is room that a build needs for itself.
const slack = 0
