//go:build !race && !cgo

package walls

// slack is room that a build needs for itself.
const slack = 0
