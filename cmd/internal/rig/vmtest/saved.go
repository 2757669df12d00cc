package vmtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest/image"
)

const bootedFile = "/run/vmtest/booted"

// settle is run in the guest before it is saved, so that tests do not find it busy with the rest of its boot: module
// loading goes on after multi-user.target, and the network interface needs a second or two for its link-local address.
const settle = `
udevadm settle
until ip -6 addr show dev ens3 scope link -tentative | grep -q inet6; do sleep 0.1; done
until test "$(systemctl is-system-running)" = running; do sleep 0.1; done
sync
`

// units are the rig's own, wanted by sysinit.target: the probe, from the first moment on; and a mark for the end of the
// boot. Neither has the default dependencies, so that the guest's own order is what it would be without them.
var units = map[string]string{
	"vmtest-probe.service": `[Unit]
Description=hand of the test rig
DefaultDependencies=no
StartLimitIntervalSec=0

[Service]
ExecStart=/run/vmtest/probe
Restart=always
RestartSec=200ms
OOMScoreAdjust=-1000
Environment=HOME=/root LANG=C.UTF-8
TasksMax=infinity
LimitNOFILE=524288
`,
	"vmtest-booted.service": `[Unit]
Description=mark of the test rig for the end of the boot
DefaultDependencies=no
After=multi-user.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/touch ` + bootedFile + `
`,
}

// saved is the machine layer: an initramfs, and a machine that has booted and was stopped.
type saved struct {
	root  *image.Root
	dir   string
	accel string
}

func (s *saved) initrd() string { return filepath.Join(s.dir, "initrd") }
func (s *saved) memory() string { return filepath.Join(s.dir, "memory") }
func (s *saved) state() string  { return filepath.Join(s.dir, "state") }

// blankDisk is an empty overlay of the root layer's disk, bootedDisk one of the saved machine's. Both are copied.
func (s *saved) blankDisk() string  { return filepath.Join(s.dir, "blank.qcow2") }
func (s *saved) bootedDisk() string { return filepath.Join(s.dir, "booted.qcow2") }

// prepared returns the machine layer, building it once per process when the cache has none. The root layer must exist.
var prepared = func() func(context.Context) (*saved, error) {
	var mu sync.Mutex
	var done *saved
	return func(ctx context.Context) (*saved, error) {
		mu.Lock()
		defer mu.Unlock()
		if done != nil {
			return done, nil
		}
		s, err := prepare(ctx)
		if err == nil {
			done = s
		}
		return s, err
	}
}()

// Prepare makes the machine layer if the cache has none, which takes one boot, and returns its directory. The root layer
// must have been built (image.BuildRoot).
func Prepare(ctx context.Context) (string, error) {
	s, err := prepared(ctx)
	if err != nil {
		return "", err
	}
	return s.dir, nil
}

func prepare(ctx context.Context) (*saved, error) {
	root, err := image.FindRoot()
	if err != nil {
		return nil, fmt.Errorf("%w (build it: go run ./cmd/internal/rig/vmtest/prepare)", err)
	}
	cache, err := image.Cache()
	if err != nil {
		return nil, err
	}
	bin, err := os.MkdirTemp("", "vm-bin")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(bin)
	hash, err := buildPrograms(ctx, bin)
	if err != nil {
		return nil, err
	}
	version, err := exec.CommandContext(ctx, qemu, "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", qemu, err)
	}
	kvm := hasKVM()
	name := "vm-" + image.Hash(root.Hash, hash, string(version), describe(), fmt.Sprint(kvm))
	dir, err := image.Layer(cache, name, func(tmp string) error {
		ctx, cancel := context.WithTimeout(ctx, startLimit)
		defer cancel()
		return buildSaved(ctx, &saved{root: root, dir: tmp}, filepath.Join(cache, name), bin, kvm)
	})
	if err != nil {
		return nil, err
	}
	accel, err := os.ReadFile(filepath.Join(dir, "accel"))
	return &saved{root: root, dir: dir, accel: string(accel)}, err
}

// describe returns all that this package says about the machine, for the layer's name.
func describe() string {
	s := &saved{root: &image.Root{}}
	text := strings.Join(machineArgs(s, "", "", standardPorts()), " ") + strings.Join(resumeArgs(s), " ")
	return text + cpuKVM + accelTCG + units["vmtest-probe.service"] + units["vmtest-booted.service"] + settle
}

// programs are the commands of this module that run in the guest.
func programs() []string { return []string{"earlyinit", "probe", "rawport"} }

// buildPrograms builds them into dir and returns a hash of the results, which Go makes reproducible.
func buildPrograms(ctx context.Context, dir string) (string, error) {
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", dir + "/"}
	for _, p := range programs() {
		args = append(args, "github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest/"+p)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH=amd64", "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the guest's programs: %w\n%s", err, bytes.TrimSpace(out))
	}
	var sums []string
	for _, p := range programs() {
		sum, err := image.HashFile(filepath.Join(dir, p))
		if err != nil {
			return "", err
		}
		sums = append(sums, sum)
	}
	return image.Hash(sums...), nil
}

// hasKVM reports whether KVM may be tried at all.
func hasKVM() bool {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	f.Close()
	return true
}

// kvmLimit bounds the trial of KVM: where it works, a boot takes 2 to 3 s.
const kvmLimit = 30 * time.Second

// buildSaved fills s.dir, which will be renamed to final.
func buildSaved(ctx context.Context, s *saved, final, bin string, kvm bool) error {
	rig := map[string]string{"probe": filepath.Join(bin, "probe"), "rawport": filepath.Join(bin, "rawport")}
	initramfs, err := image.Initramfs(filepath.Join(bin, "earlyinit"), s.root.Modules, rig, units)
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.initrd(), initramfs, 0o644); err != nil {
		return err
	}
	if err := overlay(ctx, s.blankDisk(), s.root.Disk, "raw"); err != nil {
		return err
	}
	s.accel = accelTCG
	if kvm && worksWithKVM(ctx, *s) {
		s.accel = accelKVM
	}
	if err := os.WriteFile(filepath.Join(s.dir, "accel"), []byte(s.accel), 0o644); err != nil {
		return err
	}
	if err := bootAndSave(ctx, s); err != nil {
		return err
	}
	return overlay(ctx, s.bootedDisk(), filepath.Join(final, "saved.qcow2"), "qcow2")
}

// overlay makes an empty qcow2 disk on top of another, which need not exist yet.
func overlay(ctx context.Context, path, backing, format string) error {
	const size = "3G" // of the root layer's disk
	cmd := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", format, "-b", backing, path, size)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("qemu-img create %s: %w: %s", path, err, bytes.TrimSpace(out))
	}
	return nil
}

// worksWithKVM boots once: a device file that can be opened says little, nested machines often cannot run a kernel.
func worksWithKVM(ctx context.Context, s saved) bool {
	ctx, cancel := context.WithTimeout(ctx, kvmLimit)
	defer cancel()
	s.accel = accelKVM
	vm, err := launch(ctx, &s, Options{Fresh: true})
	return err == nil && vm.Close() == nil
}

// bootAndSave boots with the memory in a file, and leaves that file, the devices' state and the disk.
func bootAndSave(ctx context.Context, s *saved) (err error) {
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		return err
	}
	vm := &VM{saved: s, dir: dir, disk: filepath.Join(s.dir, "saved.qcow2"), ports: standardPorts()}
	defer func() { err = errors.Join(err, vm.Close()) }()
	if err := newDisk(s.blankDisk(), vm.disk); err != nil {
		return err
	}
	if err := vm.run(ctx, saveArgs(s.memory())); err != nil {
		return err
	}
	if err := vm.connect(ctx); err != nil {
		return fmt.Errorf("%w\n%s", err, vm.consoleTail())
	}
	if err := vm.guest.awaitBoot(ctx); err != nil {
		return fmt.Errorf("%w\n%s", err, vm.Diagnosis())
	}
	r, err := vm.Shell(ctx, settle)
	if err == nil && r.ExitCode != 0 {
		err = fmt.Errorf("exit code %d: %s", r.ExitCode, r.Stderr)
	}
	if err != nil {
		return fmt.Errorf("settle: %w\n%s", err, vm.Diagnosis())
	}
	// The port must be idle in the saved machine: a test's connection is the first it sees.
	vm.guest.close()
	vm.guest = nil
	return vm.proc.saveState(ctx, s.state())
}
