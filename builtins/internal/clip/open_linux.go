package clip

import (
	"context"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Open opens the clipboard of the display that an environment names: the Wayland one where it names both. Where there is
// neither, or the compositor gives no program access to its clipboard, the error is of cause errors.ErrUnsupported, and names
// the compositor.
func Open(ctx context.Context, getenv func(string) string) (Backend, error) {
	switch {
	case getenv("WAYLAND_DISPLAY") != "":
		return openWayland(ctx, getenv)
	case getenv("DISPLAY") != "":
		return openX11(ctx, getenv)
	}
	return nil, fault.Unsupported("there is no display: neither WAYLAND_DISPLAY nor DISPLAY is set")
}
