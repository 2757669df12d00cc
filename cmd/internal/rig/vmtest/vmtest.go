// Package vmtest boots a real guest under QEMU for tests: a small Debian 12 with systemd, netplan, qemu-ga and the virtio
// ports that the agent serves.
//
//	        prepare (once)                        Start (each test, well under a second)
//	┌──────────────────────────┐          ┌────────────────────────────────────────────┐
//	│ Debian ─► root.raw       │          │ empty overlay ─► QEMU -incoming ─► running │
//	│ boot ─► memory, state    ├─────────►│   ▲                 │  sockets: one a port │
//	└──────────────────────────┘          │   └─ Kill, PowerOn ─┘  probe: Run Put Get  │
//	                                      └────────────────────────────────────────────┘
//
// A test gets a machine that has just finished booting, with a disk of its own. The agent under test is not in it, unless
// Options.Package has it installed. What the agent did is looked at through the probe, a program of the rig on a port of its
// own. Tests that use this package carry the build tag vm and run with `make vmtest`; those that mostly wait are parallel.
//
// Without KVM the guest is emulated and its processor 10 to 30 times slower than a real one: times are comparable within
// one boot only.
//
// Not here: building the image (package image); anything that knows the agent or its protocol.
package vmtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// Names of the virtio-serial ports that every guest has. Socket gives the host's end of each.
const (
	AgentPort  = "org.quantix.agent.0"    // the Node Daemon's
	CtlPort    = "org.quantix.agent.1"    // the command line tool's
	RawPort    = "org.quantix.raw.0"      // bare read and write, for rawport
	QemuGAPort = "org.qemu.guest_agent.0" // qemu-ga's; `systemctl start qemu-guest-agent` serves it
	probePort  = "org.quantix.probe.0"    // the rig's own
)

// RawProgram is where the guest has the rawport command. The rig puts it there at every boot, outside the disk.
const RawProgram = "/run/vmtest/rawport"

// Defaults of Options, and what the saved machine has.
const (
	DefaultMemoryMiB = 768
	processors       = 2
)

// startLimit bounds Start and what else the rig waits for by itself. A cold boot takes 10 to 20 s emulated; building
// the layer before it as much again.
const startLimit = 3 * time.Minute

// Options says what machine a test wants. The zero value is a resumed machine with DefaultMemoryMiB.
type Options struct {
	// Fresh boots from power-on instead of resuming the saved machine. It costs seconds. Optional.
	Fresh bool
	// Disk is a path for the machine's overlay disk, which is then kept: it is made when it does not exist, and booted
	// from when it does. Requires Fresh. Default: a new one, removed with the machine.
	Disk string
	// MemoryMiB is the guest's memory in MiB. Requires Fresh. Default: DefaultMemoryMiB.
	MemoryMiB int
	// Ports are names of further virtio-serial ports. A Fresh machine has them from power-on, a resumed one has them
	// plugged in.
	Ports []string
	// Package is a Debian package of the host that a resumed machine has installed already, and its service running.
	// Excludes Fresh. The first machine with a package costs some seconds; it is then kept in the cache.
	Package string
	// QEMUArgs are appended to QEMU's command line at every power-on. Requires Fresh.
	QEMUArgs []string
}

// VM is one machine. Its methods may be called concurrently, but for Kill, PowerOn and Close.
type VM struct {
	saved *saved
	opts  Options
	dir   string // sockets, console log, and the disk unless Options.Disk
	disk  string
	ports []string

	proc  *process
	guest *guest
}

// Start returns a running machine. It fails the test when there is none, and kills the machine when the test ends; if the
// test failed, the end of the console and of the journal are logged. After the time in VMTEST_UNTIL it skips the test. The root
// layer must have been built before: `go run ./cmd/internal/rig/vmtest/prepare`.
func Start(t testing.TB, o Options) *VM {
	t.Helper()
	skipAfterUntil(t)
	ctx, cancel := context.WithTimeout(context.Background(), startLimit)
	defer cancel()
	vm, err := Launch(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(vm.Diagnosis())
		}
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
	})
	return vm
}

// Launch is Start for programs that are no tests. The caller must Close the machine; should the program die instead, the
// kernel kills QEMU.
func Launch(ctx context.Context, o Options) (*VM, error) {
	if !o.Fresh && (o.Disk != "" || o.MemoryMiB != 0 || len(o.QEMUArgs) > 0) {
		return nil, errors.New("vm start: Disk, MemoryMiB and QEMUArgs need Fresh: a resumed machine is as it was saved")
	}
	if o.Fresh && o.Package != "" {
		return nil, errors.New("vm start: a machine with a package is resumed, not fresh")
	}
	s, err := prepared(ctx)
	if err == nil && o.Package != "" {
		s, err = withPackage(ctx, s, o.Package)
	}
	if err != nil {
		return nil, err
	}
	return launch(ctx, s, o)
}

func launch(ctx context.Context, s *saved, o Options) (*VM, error) {
	// Not t.TempDir: the path of a socket may have 107 bytes.
	dir, err := os.MkdirTemp("", "vm")
	if err != nil {
		return nil, fmt.Errorf("vm start: %w", err)
	}
	vm := &VM{saved: s, opts: o, dir: dir, disk: o.Disk, ports: slices.Concat(standardPorts(), o.Ports)}
	if vm.disk == "" {
		vm.disk = filepath.Join(dir, "disk.qcow2")
	}
	if o.Fresh {
		err = vm.coldStart(ctx)
	} else {
		err = vm.resumeSaved(ctx)
	}
	if err != nil {
		err = fmt.Errorf("vm start: %w\n%s", err, vm.consoleTail())
		return nil, errors.Join(err, vm.Close())
	}
	return vm, nil
}

func (vm *VM) coldStart(ctx context.Context) error {
	if err := newDisk(vm.saved.blankDisk(), vm.disk); err != nil {
		return err
	}
	return vm.PowerOn(ctx)
}

// newDisk copies an empty overlay, unless there is a disk already.
func newDisk(template, path string) error {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	in, err := os.Open(template)
	if err != nil {
		return errors.Join(err, out.Close())
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, in.Close(), out.Close())
}

// resumeSaved starts QEMU with the saved machine's memory and devices.
func (vm *VM) resumeSaved(ctx context.Context) error {
	if err := newDisk(vm.saved.bootedDisk(), vm.disk); err != nil {
		return err
	}
	extra := vm.ports[len(standardPorts()):]
	vm.ports = standardPorts()
	if err := vm.run(ctx, resumeArgs(vm.saved)); err != nil {
		return err
	}
	if err := vm.proc.loadState(ctx, vm.saved.state()); err != nil {
		return err
	}
	if err := vm.connect(ctx); err != nil {
		return err
	}
	for _, name := range extra {
		if err := vm.AddPort(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// run starts QEMU with the machine's devices and further arguments.
func (vm *VM) run(ctx context.Context, extra []string) error {
	args := machineArgs(vm.saved, vm.dir, vm.disk, vm.ports)
	proc, err := startQEMU(ctx, append(args, extra...))
	if err != nil {
		return err
	}
	vm.proc = proc
	return nil
}

// connect opens the probe's port and waits until the probe answers.
func (vm *VM) connect(ctx context.Context) error {
	g, err := dialGuest(ctx, vm.Socket(probePort))
	if err != nil {
		return err
	}
	vm.guest = g
	_, err = g.hello(ctx, vm.proc.exited)
	return err
}

// PowerOn boots a machine that is off, from the disk as it is, and returns when systemd has reached multi-user.target.
func (vm *VM) PowerOn(ctx context.Context) error {
	if vm.proc != nil {
		return errors.New("vm power on: it is running")
	}
	memory := vm.opts.MemoryMiB
	if memory == 0 {
		memory = DefaultMemoryMiB
	}
	if err := vm.run(ctx, append(coldArgs(memory), vm.opts.QEMUArgs...)); err != nil {
		return err
	}
	if err := vm.connect(ctx); err != nil {
		return fmt.Errorf("vm power on: %w", err)
	}
	return vm.guest.awaitBoot(ctx)
}

// Kill takes the power away: QEMU is killed, and with it all that the guest had not yet written to its disk. What the
// guest wrote and did not flush survives, because it is in the host's page cache: this is a power cut for the guest's
// memory, not for a disk's cache. A machine that is off stays off.
func (vm *VM) Kill() error {
	if vm.guest != nil {
		vm.guest.close()
		vm.guest = nil
	}
	if vm.proc == nil {
		return nil
	}
	err := vm.proc.kill()
	vm.proc = nil
	return err
}

// Reboot cuts the power and boots again from the same disk. The reboot command in the guest is Run and AwaitReboot.
func (vm *VM) Reboot(ctx context.Context) error {
	if err := vm.Kill(); err != nil {
		return err
	}
	return vm.PowerOn(ctx)
}

// AwaitReboot waits until the guest has booted again after something in it asked for a reboot. before is its BootID of
// the time before that request.
func (vm *VM) AwaitReboot(ctx context.Context, before string) error {
	for {
		id, err := vm.guest.hello(ctx, vm.proc.exited)
		if err != nil {
			return fmt.Errorf("vm await reboot: %w", err)
		}
		if id != before {
			return vm.guest.awaitBoot(ctx)
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("vm await reboot: %w", err)
		}
	}
}

// AwaitPowerOff waits until QEMU has ended by the guest's own doing.
func (vm *VM) AwaitPowerOff(ctx context.Context) error {
	select {
	case <-vm.proc.exited:
		return vm.Kill()
	case <-ctx.Done():
		return fmt.Errorf("vm await power off: %w", context.Cause(ctx))
	}
}

// BootID returns the guest's /proc/sys/kernel/random/boot_id.
func (vm *VM) BootID(ctx context.Context) (string, error) { return vm.guest.hello(ctx, vm.proc.exited) }

// Close kills the machine and removes its files, but for Options.Disk.
func (vm *VM) Close() error { return errors.Join(vm.Kill(), os.RemoveAll(vm.dir)) }

// BootFiles returns what the machine boots from beside its disk: the kernel, its initramfs, and the kernel's command line.
func (vm *VM) BootFiles() (kernel, initrd, line string) {
	return vm.saved.root.Kernel, vm.saved.initrd(), kernelLine
}

// Socket returns the path of the unix socket that is the host's end of a port. QEMU serves one client at a time.
func (vm *VM) Socket(port string) string { return filepath.Join(vm.dir, port) }

// Emulated reports whether the guest runs without KVM.
func (vm *VM) Emulated() bool { return vm.saved.accel != accelKVM }

// consoleLimit is how much of the console a failed test shows, in bytes: a kernel's panic or a unit's last lines.
const consoleLimit = 16 << 10

// Console returns all that the guest has written to its serial console since the machine was made.
func (vm *VM) Console() []byte {
	// Before the first power-on there is no file, which is an empty console.
	data, _ := os.ReadFile(filepath.Join(vm.dir, consoleFile))
	return data
}

func (vm *VM) consoleTail() string {
	console := vm.Console()
	return fmt.Sprintf("--- end of the console:\n%s", bytes.TrimSpace(console[max(0, len(console)-consoleLimit):]))
}

// Diagnosis returns what a failed test should show: the end of the console, and of the journal if the guest still answers.
func (vm *VM) Diagnosis() string {
	text := vm.consoleTail()
	if vm.guest == nil {
		return text + "\n--- the machine is off"
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	r, err := vm.Run(ctx, "journalctl", "--boot", "--no-pager", "--lines=150", "--output=short-monotonic")
	if err != nil {
		return text + "\n--- no journal: " + err.Error()
	}
	return fmt.Sprintf("%s\n--- end of the journal:\n%s", text, r.Stdout)
}
