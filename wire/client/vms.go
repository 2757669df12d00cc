package client

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// ListVMs returns the ids of the virtual machines for which FindSocket finds a socket, sorted. What cannot be read is left
// out. A virtual machine of libvirt is listed under the name of its directory, without the number before it.
func ListVMs(root string) []string {
	var ids []string
	for _, end := range []string{".agent.1.sock", ".agent.sock"} {
		found, _ := filepath.Glob(filepath.Join(root, "var/run/quantix-kvm/vms", "*"+end)) // the pattern is a good one
		for _, path := range found {
			ids = append(ids, strings.TrimSuffix(filepath.Base(path), end))
		}
	}
	for _, base := range []string{"run/libvirt/qemu/channel", "var/lib/libvirt/qemu/channel"} {
		entries, err := os.ReadDir(filepath.Join(root, base))
		if err != nil {
			continue
		}
		for _, entry := range entries {
			id := strings.TrimLeft(entry.Name(), "0123456789")
			ids = append(ids, strings.TrimPrefix(id, "-"))
		}
	}
	slices.Sort(ids)
	ids = slices.Compact(ids)
	return slices.DeleteFunc(ids, func(id string) bool {
		_, err := FindSocket(root, id)
		return err != nil
	})
}
