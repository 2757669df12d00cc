package vmtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest/qmp"
)

const (
	qemu        = "qemu-system-x86_64"
	consoleFile = "console.log"

	accelKVM = "kvm"
	accelTCG = "tcg,thread=multi"

	cpuKVM = "host"
	// cpuTCG is all that QEMU emulates, without the features that make a guest slower than it is without them:
	//   - la57: a page table walk has five levels instead of four.
	//   - erms: the kernel and libc copy with REP MOVSB, which is emulated byte by byte.
	//   - xsave: each context switch saves the AVX registers.
	//   - smap, smep, pku: the kernel changes the access rights around each copy from and to user space.
	//   - svm: the guest loads its own KVM.
	cpuTCG = "max,la57=off,erms=off,xsave=off,smap=off,smep=off,pku=off,svm=off"

	// kernelLine turns off what only makes sense on real hardware (mitigations, calibration), and what no test depends on: the
	// self-tests of the kernel's crypto, zeroing of pages at allocation, and all security modules but Landlock, which the
	// sandbox uses. norandmaps gives a library the same address in all processes, so that QEMU translates it once instead of
	// once per process. With cpuTCG, this saves about a third of the processor time of an emulated boot.
	kernelLine = "console=ttyS0 quiet loglevel=4 mitigations=off norandmaps init_on_alloc=0 lsm=landlock cryptomgr.notests " +
		"audit=0 nowatchdog tsc=reliable no_timer_check random.trust_cpu=on systemd.show_status=false"
)

// standardPorts returns the names of the ports in the order of their numbers, which must be the same at saving and at
// resuming.
func standardPorts() []string {
	return []string{AgentPort, CtlPort, QemuGAPort, RawPort, probePort}
}

// machineArgs describes the machine but for its memory, which coldArgs and resumeArgs and saveArgs say.
func machineArgs(s *saved, dir, disk string, ports []string) []string {
	cpu := cpuTCG
	if s.accel == accelKVM {
		cpu = cpuKVM
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none",
		"-machine", "pc,memory-backend=ram,hpet=off,vmport=off",
		"-accel", s.accel, "-cpu", cpu, "-smp", strconv.Itoa(processors), "-rtc", "base=utc",
		"-kernel", s.root.Kernel, "-initrd", s.initrd(), "-append", kernelLine,
		// The monitor on stdin and stdout shows QEMU's end by itself and needs no socket.
		"-chardev", "stdio,id=monitor,signal=off", "-mon", "chardev=monitor,mode=control",
		"-chardev", "file,id=console,append=on,path=" + filepath.Join(dir, consoleFile), "-serial", "chardev:console",
		"-blockdev", "qcow2,node-name=root,file.driver=file,file.filename=" + disk,
		"-device", "virtio-blk-pci,drive=root,addr=5",
		// Restricted user networks: a gateway that answers, and no way out. The guest configures the first interface.
		"-netdev", "user,id=net0,restrict=on,ipv6=off,net=10.0.2.0/24",
		"-device", "virtio-net-pci,netdev=net0,romfile=,mac=52:54:00:12:34:03,addr=3",
		"-netdev", "user,id=net1,restrict=on,ipv6=off,net=10.0.3.0/24",
		"-device", "virtio-net-pci,netdev=net1,romfile=,mac=52:54:00:12:34:04,addr=4",
		"-device", "virtio-rng-pci,addr=7",
		"-device", "virtio-serial-pci,id=serial,max_ports=16,addr=6",
	}
	for i, name := range ports {
		args = append(args,
			"-chardev", "socket,server=on,wait=off,id="+chardevID(name)+",path="+filepath.Join(dir, name),
			"-device", "virtserialport,bus=serial.0,nr="+strconv.Itoa(i+1)+",chardev="+chardevID(name)+",name="+name+",id="+portID(name))
	}
	return args
}

func chardevID(port string) string { return "chardev-" + port }
func portID(port string) string    { return "port-" + port }

// coldArgs gives the machine empty memory of its own.
func coldArgs(mib int) []string {
	return []string{"-m", strconv.Itoa(mib), "-object", fmt.Sprintf("memory-backend-ram,id=ram,size=%dM", mib)}
}

// saveArgs puts the memory into a file, which then need not be copied when the machine is saved.
func saveArgs(file string) []string { return fileMemory(file, "on") }

// resumeArgs maps the file of a saved machine privately: pages come as they are touched, and no change goes back.
func resumeArgs(s *saved) []string {
	return append(fileMemory(s.memory(), "off"), "-incoming", "defer")
}

func fileMemory(file, share string) []string {
	return []string{"-m", strconv.Itoa(DefaultMemoryMiB), "-object",
		fmt.Sprintf("memory-backend-file,id=ram,size=%dM,mem-path=%s,share=%s", DefaultMemoryMiB, file, share)}
}

// process is a running QEMU.
type process struct {
	monitor *qmp.Conn
	exited  chan struct{} // closed when QEMU is gone
	stop    func() error  // kills QEMU
	stderr  *bytes.Buffer // complete when exited is closed
}

// startQEMU starts QEMU and waits until its monitor answers, by when all its sockets listen.
func startQEMU(ctx context.Context, args []string) (*process, error) {
	cmd := exec.Command(qemu, args...)
	stdin, toQEMU, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	fromQEMU, stdout, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, stdin.Close(), toQEMU.Close())
	}
	p := &process{exited: make(chan struct{}), stderr: &bytes.Buffer{}}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, p.stderr
	err = startChild(cmd, p.exited)
	stdin.Close()
	stdout.Close()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", qemu, err), toQEMU.Close(), fromQEMU.Close())
	}
	p.stop = cmd.Process.Kill
	p.monitor, err = qmp.New(ctx, &duplex{fromQEMU, toQEMU})
	if err != nil {
		err = errors.Join(err, p.kill())
		return nil, fmt.Errorf("%w\n%s", err, strings.TrimSpace(p.stderr.String()))
	}
	return p, nil
}

// kill ends QEMU at once and waits for its end.
func (p *process) kill() error {
	err := p.stop()
	<-p.exited
	if p.monitor != nil {
		p.monitor.Close()
	}
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// duplex makes one stream of QEMU's stdout and stdin.
type duplex struct {
	io.ReadCloser
	w io.WriteCloser
}

func (d *duplex) Write(b []byte) (int, error) { return d.w.Write(b) }
func (d *duplex) Close() error                { return errors.Join(d.w.Close(), d.ReadCloser.Close()) }

// saveState stops the machine and writes its devices' state to file.
func (p *process) saveState(ctx context.Context, file string) error {
	if err := p.monitor.Execute(ctx, "stop", nil, nil); err != nil {
		return err
	}
	return p.migrate(ctx, "migrate", "exec:cat >'"+file+"'")
}

// loadState reads what saveState wrote into a QEMU that was started with resumeArgs, and lets the machine go on.
func (p *process) loadState(ctx context.Context, file string) error {
	if err := p.migrate(ctx, "migrate-incoming", "exec:cat '"+file+"'"); err != nil {
		return err
	}
	return p.monitor.Execute(ctx, "cont", nil, nil)
}

// migrate moves the machine to or from uri, but for memory that lies in a file, and waits until that is done.
func (p *process) migrate(ctx context.Context, command, uri string) error {
	type capability struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	capabilities := []capability{{"x-ignore-shared", true}, {"events", true}}
	err := p.monitor.Execute(ctx, "migrate-set-capabilities", map[string]any{"capabilities": capabilities}, nil)
	if err != nil {
		return err
	}
	if err := p.monitor.Execute(ctx, command, map[string]any{"uri": uri}, nil); err != nil {
		return err
	}
	var status struct{ Status string }
	_, err = p.monitor.Wait(ctx, func(e qmp.Event) bool {
		if e.Name != "MIGRATION" || json.Unmarshal(e.Data, &status) != nil {
			return false
		}
		return status.Status == "completed" || status.Status == "failed"
	})
	if err == nil && status.Status == "failed" {
		err = errors.New("qemu says that it failed")
	}
	if err != nil {
		return fmt.Errorf("%s: %w %s", command, err, strings.TrimSpace(p.diagnosis()))
	}
	return nil
}

// diagnosis returns QEMU's own last words, if it is gone.
func (p *process) diagnosis() string {
	select {
	case <-p.exited:
		return p.stderr.String()
	default:
		return ""
	}
}

// QMP sends a command to QEMU's monitor, for what this package has no method for. arguments is nil or anything that
// encodes to a JSON object; result is nil or a pointer for the returned value.
func (vm *VM) QMP(ctx context.Context, command string, arguments, result any) error {
	return vm.proc.monitor.Execute(ctx, command, arguments, result)
}

// Pause stops the guest's processors, as a hypervisor does for a snapshot. Connections stay.
func (vm *VM) Pause(ctx context.Context) error { return vm.QMP(ctx, "stop", nil, nil) }

// Resume lets a paused guest go on. Its clock has stood still; SetClock mends that.
func (vm *VM) Resume(ctx context.Context) error { return vm.QMP(ctx, "cont", nil, nil) }

// Reset pulls the reset line: the guest boots again without warning, QEMU and its sockets stay. See AwaitReboot.
func (vm *VM) Reset(ctx context.Context) error { return vm.QMP(ctx, "system_reset", nil, nil) }

// AddPort plugs in a virtio-serial port of that name with a socket of its own, or plugs one in again whose device
// RemovePort took away, with the socket and the client it had.
func (vm *VM) AddPort(ctx context.Context, name string) error {
	if _, err := os.Stat(vm.Socket(name)); err != nil {
		address := map[string]any{"type": "unix", "data": map[string]any{"path": vm.Socket(name)}}
		backend := map[string]any{"type": "socket", "data": map[string]any{"addr": address, "server": true, "wait": false}}
		if err := vm.QMP(ctx, "chardev-add", map[string]any{"id": chardevID(name), "backend": backend}, nil); err != nil {
			return err
		}
	}
	return vm.QMP(ctx, "device_add", map[string]any{
		"driver": "virtserialport", "bus": "serial.0", "chardev": chardevID(name), "name": name, "id": portID(name),
	}, nil)
}

// RemovePort unplugs a port's device. Its socket stays, and a client stays connected to it.
func (vm *VM) RemovePort(ctx context.Context, name string) error {
	return vm.QMP(ctx, "device_del", map[string]any{"id": portID(name)}, nil)
}

// Dial connects to the host's end of a port.
func (vm *VM) Dial(ctx context.Context, port string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", vm.Socket(port))
}

// SaveRestore saves the machine, memory and all, ends QEMU, and has another one go on from there, as a host does that is
// rebooted under its guests. Clients of the ports' sockets lose their connection.
func (vm *VM) SaveRestore(ctx context.Context) error {
	file := filepath.Join(vm.dir, "snapshot")
	if err := vm.proc.saveState(ctx, file); err != nil {
		return err
	}
	defer os.Remove(file)
	if err := vm.Kill(); err != nil {
		return err
	}
	if err := vm.run(ctx, resumeArgs(vm.saved)); err != nil {
		return err
	}
	if err := vm.proc.loadState(ctx, file); err != nil {
		return err
	}
	return vm.connect(ctx)
}
