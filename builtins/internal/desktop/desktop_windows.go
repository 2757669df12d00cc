package desktop

import (
	"context"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

var errNone = fault.Unsupported("desktop sessions are not served on Windows")

// origin is by what a session is known.
type origin struct{ leader int }

type finder struct{}

func newFinder(context.Context, *fsys.Root, func()) *finder { return &finder{} }

func (*finder) front(context.Context) (*Session, error) { return nil, errNone }

func (*finder) environment(*Session) ([]string, error) { return nil, errNone }

func (*finder) tells(error) bool { return true }

func (*finder) close() error { return nil }

func watchEnd(int, func()) (func(), error) { return nil, errNone }

func startHelper([]string, []string, *proc.User) (*process, error) { return nil, errNone }
