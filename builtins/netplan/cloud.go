package netplan

import (
	"errors"
	"io/fs"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// cloudFile is what cloud-init writes at the first boot of an instance, and again when its data source says something else
// (cloudinit/net/netplan.py).
const cloudFile = "50-cloud-init.yaml"

const (
	cloudDir  = "/etc/cloud"
	cloudStop = cloudDir + "/cloud.cfg.d/99-disable-network-config.cfg"
	cloudHint = "cloud-init writes that file; a file " + cloudStop + " with the line network: {config: disabled} keeps it from " +
		"writing it again, and then it can be removed"
)

// mayTouch refuses to change the file of cloud-init as long as that writes it: the change would be lost.
func mayTouch(files *fsys.Root, name string) error {
	if name != cloudFile {
		return nil
	}
	writes, err := cloudWrites(files)
	if err == nil && writes {
		refused := fault.Refuse("it is cloud-init's file, which would write it again")
		return &fault.Error{Object: own + "/" + name, Err: refused, Hint: cloudHint}
	}
	return fault.On(cloudDir, err)
}

// cloudWrites reports whether cloud-init configures the network of this guest.
func cloudWrites(files *fsys.Root) (bool, error) {
	names, err := list(files, cloudDir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	paths := []string{}
	for _, name := range names {
		switch name {
		case "cloud-init.disabled":
			return false, nil
		case "cloud.cfg":
			paths = append(paths, cloudDir+"/"+name)
		}
	}
	more, err := list(files, cloudDir+"/cloud.cfg.d")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	for _, name := range more {
		if strings.HasSuffix(name, ".cfg") {
			paths = append(paths, cloudDir+"/cloud.cfg.d/"+name)
		}
	}
	for _, path := range paths {
		text, err := files.ReadFile(path, maxConfig)
		if err != nil {
			continue // cloud-init would not read it either
		}
		if d, err := parse(path, text); err == nil {
			if setting := at(d.top, "network", "config"); setting != nil && setting.Value == "disabled" {
				return false, nil
			}
		}
	}
	return true, nil
}
