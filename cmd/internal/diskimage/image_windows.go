package diskimage

import (
	"context"
	"errors"
)

// Image is a disk image whose file systems are mounted. There is none on Windows.
type Image struct{}

var errWindows = errors.New("images cannot be mounted on Windows")

// OwnNamespace fails.
func OwnNamespace() error { return errWindows }

// Open fails.
func Open(context.Context, string, Options) (*Image, error) { return nil, errWindows }

// Root returns nothing.
func (*Image) Root() string { return "" }

// Mounts returns nothing.
func (*Image) Mounts() []string { return nil }

// LeftOut returns nothing.
func (*Image) LeftOut() []string { return nil }

// Close does nothing.
func (*Image) Close() error { return nil }
