package display

import "github.com/quantix-kvm/guest-agent/builtins/internal/desktop/helper"

// Serve has the helper in a desktop session serve what the room asks of it: nothing yet on Windows.
func Serve(*helper.Registry) {}
