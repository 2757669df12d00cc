//go:build !linux

package port

import (
	"context"
	"errors"
)

// Announced fails: this platform has no such events.
func Announced(context.Context) (<-chan struct{}, error) { return nil, errors.ErrUnsupported }
