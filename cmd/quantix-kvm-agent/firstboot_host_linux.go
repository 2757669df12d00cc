package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Where a host may leave first-boot scripts and parameters, before the guest is booted.
const (
	// firmwareDir holds files of QEMU's -fw_cfg name=opt/org.quantix/firstboot.d/NN-NAME.lua,file=…
	firmwareDir = "/sys/firmware/qemu_fw_cfg/by_name/opt/org.quantix/firstboot.d"
	// oemPrefix begins a string of SMBIOS that is a parameter, QEMU's -smbios
	// type=11,value=org.quantix.firstboot:NN-NAME.KEY=VALUE.
	oemPrefix = "org.quantix.firstboot:"
	// diskLabel names a file system with a directory firstboot.d.
	diskLabel = "/dev/disk/by-label/QUANTIX"
)

// hostFirstBoot adds what the host gives: files by the firmware and on a disk, and single parameters.
func hostFirstBoot(oem []string, files map[string]firstBootText, params map[string]map[string]any) error {
	if err := readDisk(diskLabel, files); err != nil {
		return err
	}
	if err := readFirmware(firmwareDir, files); err != nil {
		return err
	}
	for _, text := range oem {
		if err := addParam(text, params); err != nil {
			return fmt.Errorf("SMBIOS string %q: %w", text, err)
		}
	}
	return nil
}

// readFirmware reads the files of a directory of qemu_fw_cfg: each is a directory with its content in raw.
func readFirmware(dir string, to map[string]firstBootText) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if !firstBootFile().MatchString(entry.Name()) {
			continue
		}
		path := filepath.Join(dir, entry.Name(), "raw")
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		to[entry.Name()] = firstBootText{path, content}
	}
	return nil
}

// readDisk reads firstboot.d of a disk, which is mounted for that moment.
func readDisk(device string, to map[string]firstBootText) (err error) {
	device, err = filepath.EvalSymlinks(device)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("/run", "quantix-kvm-disk-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	for _, kind := range []string{"iso9660", "vfat", "ext4"} {
		if err = unix.Mount(device, dir, kind, unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err == nil {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("mount %s: %w", device, err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(dir, 0)) }()
	return readFirstBootDir(dir, "/firstboot.d", to)
}

// addParam adds the parameter of an OEM string; those of others are left alone.
func addParam(text string, params map[string]map[string]any) error {
	text, is := strings.CutPrefix(text, oemPrefix)
	if !is {
		return nil
	}
	place, given, ok := strings.Cut(text, "=")
	script, key, named := strings.Cut(place, ".")
	if !ok || !named || script == "" || key == "" {
		return fmt.Errorf("it is not %sNN-NAME.KEY=VALUE", oemPrefix)
	}
	var value any = given
	if decoded := any(nil); json.Unmarshal([]byte(given), &decoded) == nil {
		value = decoded
	}
	if params[script] == nil {
		params[script] = map[string]any{}
	}
	params[script][key] = value
	return nil
}
