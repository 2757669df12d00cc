package client

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// channelNames are the channels of a virtual machine, in the order in which they are tried: the Node Daemon keeps number 0 open.
var channelNames = []string{"org.quantix.agent.1", "org.quantix.agent.0", "org.limiquantix.agent.0"}

// ErrAmbiguous is the cause of an error when an id names several virtual machines.
var ErrAmbiguous = errors.New("it names several virtual machines")

// FindSocket returns the path of the host's socket of a virtual machine, by its id: the Node Daemon's own, else libvirt's, whose directory
// has the id in its name. root is put before the paths that are looked at; "/" on a host. No socket is fs.ErrNotExist.
func FindSocket(root, id string) (string, error) {
	if id == "" || strings.ContainsAny(id, `/\`) || strings.Trim(id, ".") == "" {
		return "", fmt.Errorf("virtual machine %q: %w", id, fs.ErrInvalid)
	}
	for _, end := range []string{".agent.1.sock", ".agent.sock"} {
		if own := filepath.Join(root, "var/run/quantix-kvm/vms", id+end); isSocket(own) {
			return own, nil
		}
	}
	for _, base := range []string{"run/libvirt/qemu/channel", "var/lib/libvirt/qemu/channel"} {
		dir, err := libvirtDir(filepath.Join(root, base), id)
		if err != nil {
			return "", fmt.Errorf("virtual machine %s: %w", id, err)
		}
		for _, name := range channelNames {
			if path := filepath.Join(dir, name); dir != "" && isSocket(path) {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("virtual machine %s: no agent socket: %w", id, fs.ErrNotExist)
}

// libvirtDir finds the one directory of a virtual machine; a name that ends in the id goes before one that contains it.
func libvirtDir(base, id string) (string, error) {
	entries, err := os.ReadDir(base)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var ends, contains []string
	for _, e := range entries {
		if e.Name() == id || strings.HasSuffix(e.Name(), "-"+id) {
			ends = append(ends, e.Name())
		} else if strings.Contains(e.Name(), id) {
			contains = append(contains, e.Name())
		}
	}
	found := ends
	if len(found) == 0 {
		found = contains
	}
	switch len(found) {
	case 0:
		return "", nil
	case 1:
		return filepath.Join(base, found[0]), nil
	}
	return "", fmt.Errorf("%w: %s", ErrAmbiguous, strings.Join(found, ", "))
}

func isSocket(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&fs.ModeSocket != 0
}
