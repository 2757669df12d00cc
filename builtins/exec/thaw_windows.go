package exec

import "github.com/quantix-kvm/guest-agent/wire/fault"

// thawTarget does not exist on Windows: no command freezes a file system there.
type thawTarget struct{}

func openThawTarget(string) (*thawTarget, error) {
	return nil, fault.Unsupported("fsfreeze is not on Windows")
}

func (*thawTarget) thaw() (bool, error) { return false, nil }

func (*thawTarget) close() {}
