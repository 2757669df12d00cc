package facts

import "github.com/quantix-kvm/guest-agent/wire/fault"

// Routes is not supported on Windows.
func Routes() ([]Route, error) { return nil, fault.Unsupported("routes are not read on Windows") }
