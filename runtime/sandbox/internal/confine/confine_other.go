//go:build !linux && !windows

package confine

import "errors"

// Seal is supported on Linux only.
func Seal(Limits) error { return errors.ErrUnsupported }

// Layers returns nil: there are no runners here.
func Layers() []Layer { return nil }
