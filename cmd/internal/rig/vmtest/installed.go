package vmtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest/image"
)

// keepInstalled is how long a saved machine with a package is kept after its last use: each change of the sources makes
// another one, of some hundred MiB.
const keepInstalled = 2 * time.Hour

// withPackage gives the machine layer in which a package is installed, and makes it when the cache has none: from the
// saved machine, in which it is installed and which is saved again.
func withPackage(ctx context.Context, base *saved, deb string) (*saved, error) {
	sum, err := image.HashFile(deb)
	if err != nil {
		return nil, err
	}
	cache, err := image.Cache()
	if err != nil {
		return nil, err
	}
	name := "agent-" + image.Hash(base.dir, sum, installText)
	if _, err := os.Stat(filepath.Join(cache, name)); err != nil {
		if err := image.Prune("agent-", keepInstalled); err != nil {
			return nil, err
		}
	}
	dir, err := image.Layer(cache, name, func(tmp string) error {
		ctx, cancel := context.WithTimeout(ctx, startLimit)
		defer cancel()
		return installAndSave(ctx, base, &saved{root: base.root, dir: tmp, accel: base.accel}, filepath.Join(cache, name), deb)
	})
	if err != nil {
		return nil, err
	}
	return &saved{root: base.root, dir: dir, accel: base.accel}, nil
}

const packageInGuest = "/run/vmtest.deb"

// installText installs as an administrator would, and waits until the guest is idle.
const installText = `
dpkg -i ` + packageInGuest + `
rm ` + packageInGuest + `
udevadm settle
until test "$(systemctl is-system-running)" = running; do sleep 0.1; done
sync
`

// installAndSave fills s.dir, which will be renamed to final.
func installAndSave(ctx context.Context, base, s *saved, final, deb string) (err error) {
	for _, path := range []string{base.initrd(), base.blankDisk()} {
		if err := os.Symlink(path, filepath.Join(s.dir, filepath.Base(path))); err != nil {
			return err
		}
	}
	if out, err := exec.CommandContext(ctx, "cp", "--sparse=always", base.memory(), s.memory()).CombinedOutput(); err != nil {
		return fmt.Errorf("copy the memory: %w: %s", err, out)
	}
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		return err
	}
	vm := &VM{saved: s, dir: dir, disk: filepath.Join(s.dir, "saved.qcow2"), ports: standardPorts()}
	defer func() { err = errors.Join(err, vm.Close()) }()
	if err := newDisk(base.bootedDisk(), vm.disk); err != nil {
		return err
	}
	if err := vm.run(ctx, append(saveArgs(s.memory()), "-incoming", "defer")); err != nil {
		return err
	}
	if err := vm.proc.loadState(ctx, base.state()); err != nil {
		return err
	}
	if err := vm.connect(ctx); err != nil {
		return err
	}
	if err := vm.Put(ctx, deb, packageInGuest, 0o644); err != nil {
		return err
	}
	r, err := vm.Shell(ctx, installText)
	if err == nil && r.ExitCode != 0 {
		err = fmt.Errorf("exit code %d: %s%s", r.ExitCode, r.Stdout, r.Stderr)
	}
	if err != nil {
		return fmt.Errorf("install %s: %w\n%s", deb, err, vm.Diagnosis())
	}
	vm.guest.close()
	vm.guest = nil
	if err := vm.proc.saveState(ctx, s.state()); err != nil {
		return err
	}
	return overlay(ctx, s.bootedDisk(), filepath.Join(final, "saved.qcow2"), "qcow2")
}
