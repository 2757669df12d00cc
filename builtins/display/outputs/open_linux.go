package outputs

import (
	"context"
	"slices"

	"github.com/quantix-kvm/guest-agent/builtins/internal/wayland"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Open connects to the desktop that a session's environment names. Where there is none, or it has no way to list its outputs,
// the error is unsupported, and names it.
func Open(ctx context.Context, getenv func(string) string) (Backend, error) {
	switch {
	case getenv("WAYLAND_DISPLAY") != "" || getenv("XDG_SESSION_TYPE") == "wayland":
		return openWayland(ctx, getenv)
	case getenv("DISPLAY") != "":
		return openX11(ctx, getenv)
	}
	return nil, fault.Unsupported("there is no desktop: the session has neither WAYLAND_DISPLAY nor DISPLAY")
}

func openWayland(ctx context.Context, getenv func(string) string) (Backend, error) {
	path, err := wayland.SocketPath(getenv)
	if err != nil {
		return nil, err
	}
	conn, err := wayland.Dial(ctx, path)
	if err != nil {
		return nil, err
	}
	offers := func(kind *wayland.Interface) bool {
		return slices.ContainsFunc(conn.Globals(), func(g wayland.Global) bool { return g.Interface == kind.Name })
	}
	var b Backend
	switch {
	case offers(wlrManagerType):
		b, err = openWlroots(ctx, conn)
	case offers(kdeManagementType):
		b, err = openKDE(ctx, conn)
	default:
		b, err = openGNOME(ctx, conn, getenv)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return b, nil
}
