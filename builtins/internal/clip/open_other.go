//go:build !linux && !windows

package clip

import (
	"context"
	"runtime"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Open opens the clipboard of the session of this process.
func Open(context.Context, func(string) string) (Backend, error) {
	return nil, fault.Unsupported("the clipboard of %s", runtime.GOOS)
}
