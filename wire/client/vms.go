package client

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// ListVMs returns the ids of the virtual machines that have a socket, sorted: FindSocket finds each, unless several have
// the same. What cannot be read is left out. A virtual machine of libvirt is listed under the name of its directory,
// without the number before it.
func ListVMs(root string) []string {
	var ids []string
	for _, end := range []string{".agent.1.sock", ".agent.sock"} {
		found, _ := filepath.Glob(filepath.Join(root, ownSockets, "*"+end)) // the pattern is a good one
		for _, path := range found {
			if isSocket(path) {
				ids = append(ids, strings.TrimSuffix(filepath.Base(path), end))
			}
		}
	}
	for _, base := range libvirtChannels {
		entries, err := os.ReadDir(filepath.Join(root, base))
		if err != nil {
			continue
		}
		for _, entry := range entries {
			if agentSocket(filepath.Join(root, base, entry.Name())) != "" {
				ids = append(ids, withoutNumber(entry.Name()))
			}
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}
