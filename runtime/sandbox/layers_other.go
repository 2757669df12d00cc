//go:build !linux && !windows

package sandbox

// Layers returns nil: there are no runners here.
func Layers() []Layer { return nil }
