package client

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// channelNames are the channels of a virtual machine, in the order in which they are tried: the Node Daemon keeps number 0
// open.
var channelNames = []string{"org.quantix.agent.1", "org.quantix.agent.0", "org.limiquantix.agent.0"}

// ErrAmbiguous is the cause of an error when an id names several virtual machines.
var ErrAmbiguous = errors.New("it names several virtual machines")

// Places below root where sockets of virtual machines are: the Node Daemon's own, and directories of libvirt's.
const ownSockets = "var/run/quantix-kvm/vms"

// The last one is that of libvirt 9 and older, as Debian 12 has it.
var libvirtChannels = []string{
	"run/libvirt/qemu/channel", "var/lib/libvirt/qemu/channel", "var/lib/libvirt/qemu/channel/target",
}

// shortName is how many characters of a name libvirt puts into that of the directory.
const shortName = 20

// FindSocket returns the path of the host's socket of a virtual machine, by its id: the Node Daemon's own, else libvirt's.
// On Windows a pipe named org.quantix.agent.ID comes first.
// Of a directory of libvirt's the id is the whole name, with libvirt's number before it or without. root is put before the
// paths that are searched; "/" on a host. No socket is fs.ErrNotExist, and several virtual machines of the id are
// ErrAmbiguous; the error names what there is.
func FindSocket(root, id string) (string, error) {
	if id == "" || strings.ContainsAny(id, `/\`) || strings.Trim(id, ".") == "" {
		return "", fault.Wrapf(fs.ErrInvalid, "virtual machine %q: that is no id: it is empty, has a slash or is of dots alone", id)
	}
	if pipe := localChannel(id); pipe != "" {
		return pipe, nil
	}
	for _, end := range []string{".agent.1.sock", ".agent.sock"} {
		if own := filepath.Join(root, ownSockets, id+end); isSocket(own) {
			return own, nil
		}
	}
	var unreadable error
	for _, base := range libvirtChannels {
		path, err := libvirtSocket(filepath.Join(root, base), id)
		switch {
		case errors.Is(err, ErrAmbiguous):
			return "", fmt.Errorf("virtual machine %s: %w", id, err)
		case err != nil:
			unreadable = errors.Join(unreadable, err)
		case path != "":
			return path, nil
		}
	}
	if unreadable != nil {
		return "", fmt.Errorf("virtual machine %s: %w", id, unreadable)
	}
	return "", fmt.Errorf("virtual machine %s: no agent socket (%s): %w", id, known(root), fs.ErrNotExist)
}

// known lists which virtual machines have a socket, and where sockets are looked for.
func known(root string) string {
	names := "there is none"
	if ids := ListVMs(root); len(ids) > 0 {
		names = "there are " + strings.Join(ids, ", ")
	}
	places := []string{filepath.Join(root, ownSockets)}
	for _, base := range libvirtChannels {
		places = append(places, filepath.Join(root, base))
	}
	return names + " in " + strings.Join(places, ", ")
}

// libvirtSocket finds the socket of the one virtual machine of an id in a directory of libvirt's; empty: there is none.
func libvirtSocket(base, id string) (string, error) {
	entries, err := os.ReadDir(base)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var names, paths []string
	for _, e := range entries {
		name := withoutNumber(e.Name())
		if e.Name() != id && name != id && !(name == shortened(id) && name != "") {
			continue
		}
		if path := agentSocket(filepath.Join(base, e.Name())); path != "" {
			names, paths = append(names, e.Name()), append(paths, path)
		}
	}
	switch len(paths) {
	case 0:
		return "", nil
	case 1:
		return paths[0], nil
	}
	return "", fmt.Errorf("%w: %s", ErrAmbiguous, strings.Join(names, ", "))
}

// withoutNumber returns the name in that of a directory of libvirt's, which has a number and a hyphen before it, and before
// that, where it is of an older libvirt, "domain-".
func withoutNumber(dir string) string {
	numbered := strings.TrimPrefix(dir, "domain-")
	if name := strings.TrimLeft(numbered, "0123456789"); len(name) < len(numbered) && strings.HasPrefix(name, "-") {
		return name[1:]
	}
	return dir
}

// shortened returns what libvirt keeps of a name that is too long for a directory; empty: all of it.
func shortened(id string) string {
	if letters := []rune(id); len(letters) > shortName {
		return string(letters[:shortName])
	}
	return ""
}

// agentSocket returns the first socket of the agent in the directory of a virtual machine; empty: there is none.
func agentSocket(dir string) string {
	for _, name := range channelNames {
		if path := filepath.Join(dir, name); isSocket(path) {
			return path
		}
	}
	return ""
}

func isSocket(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&fs.ModeSocket != 0
}
