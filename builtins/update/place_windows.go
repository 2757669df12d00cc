package update

import (
	"io/fs"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// supported returns why no program can be replaced on this system.
func supported() error { return fault.Unsupported("not supported on Windows yet") }

func checkParents(string) error { return nil }

func checkOwner(string, fs.FileInfo) error { return nil }

func lockStage(string, time.Duration) (unlock func(), err error) { return func() {}, nil }

// syncDir does nothing: NTFS journals its directory entries.
func syncDir(string) error { return nil }
