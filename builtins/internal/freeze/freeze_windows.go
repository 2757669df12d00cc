package freeze

import (
	"os"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Target does not exist on Windows, where nothing is frozen yet.
type Target struct{}

// Open fails: it is not there on Windows yet.
func Open(string) (*Target, error) { return nil, fault.Unsupported("it is not there on Windows yet") }

// Thaw does nothing.
func (*Target) Thaw() (bool, error) { return false, nil }

// Close does nothing.
func (*Target) Close() {}

func lockFile(*os.File) bool { return true }

func thawEverything() {}

// meeting never finds anything: nothing is held.
type meeting struct{}

func newMeeting([]Hold) meeting { return meeting{} }

func (meeting) access(builtins.Access) (string, bool) { return "", false }
