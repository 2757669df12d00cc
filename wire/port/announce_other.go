//go:build !linux

package port

import (
	"context"
	"errors"
)

// Announced gives a value whenever a port came or went. Here nothing tells that.
func Announced(context.Context) (<-chan struct{}, error) { return nil, errors.ErrUnsupported }
