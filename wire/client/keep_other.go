//go:build !linux

package client

import (
	"io/fs"
	"os"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// What Tree.All keeps on this system.
const hasOwners, hasXattrs = false, false

func localKept(string, fs.FileInfo) (kept, error) { return kept{}, nil }

func setOwner(*os.Root, string, kept) error { return nil }

func setXattrs(*os.File, []*pb.CopiedAttribute) error { return nil }
