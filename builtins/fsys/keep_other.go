//go:build !linux

package fsys

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// sameMount takes a volume for a mount.
func sameMount(a, b handle) (bool, error) {
	return strings.EqualFold(filepath.VolumeName(a), filepath.VolumeName(b)), nil
}

func linkAt(fromDir handle, from string, toDir handle, to string) error {
	return fault.Cause(os.Link(filepath.Join(fromDir, from), filepath.Join(toDir, to)))
}

// syncAll has nothing to do: only an administrator may flush a volume, and files are synced one by one.
func syncAll(handle) error { return nil }

func pseudo(handle) (bool, error) { return false, nil }
