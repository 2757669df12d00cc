// Command probe is the rig's own hand inside the test guest. It runs commands and moves files over a port of its own, so
// that what an agent did is seen from outside the agent.
//
//	host ◄── org.quantix.probe.0 ──► session ──► run, put, get
//
// It starts before anything of the guest does, survives the saving and resuming of the machine, and is restarted by
// systemd when it dies.
//
// Not here: the channel's format (package frame); anything of the agent under test.
package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest/frame"
	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest/vport"
)

func main() {
	name := flag.String("port", "org.quantix.probe.0", "name of the virtio-serial port to serve")
	flag.Parse()
	if err := serve(*name); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

// serve answers one host session after the other until the port is gone.
func serve(name string) error {
	port, err := vport.Open(name, 30*time.Second)
	if err != nil {
		return err
	}
	defer port.Close()
	p := &probe{out: port, running: map[uint64]int{}}
	defer p.handlers.Wait()
	for {
		if err := p.session(port); !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
	}
}

// probe is what sessions share. Commands outlive the session that started them: a host may come back for the effects.
type probe struct {
	handlers sync.WaitGroup

	mu      sync.Mutex // guards all below, and keeps frames whole
	out     io.Writer
	running map[uint64]int // process group by request
}

// session reads requests until the host leaves.
func (p *probe) session(port *vport.Port) error {
	r := bufio.NewReaderSize(port.Session(), 64<<10)
	for {
		m, body, err := frame.Read(r)
		if err != nil {
			return err
		}
		p.handlers.Go(func() { p.handle(m, body) })
	}
}

func (p *probe) handle(m frame.Message, body []byte) {
	if m.Op == frame.OpCancel {
		p.cancel(m.Target)
		return
	}
	var reply frame.Message
	var out []byte
	var err error
	switch m.Op {
	case frame.OpHello:
		reply, err = hello(m)
	case frame.OpRun:
		reply, out, err = p.run(m, body)
	case frame.OpPut:
		err = put(m, body)
	case frame.OpGet:
		reply, out, err = get(m)
	default:
		err = fmt.Errorf("unknown operation %q", m.Op)
	}
	reply.ID = m.ID
	if err != nil {
		reply.Error = err.Error()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// A failed write means that the port is gone, which the reader reports.
	_ = frame.Write(p.out, reply, out)
}

// hello sets the clock, which stood still while the machine lay saved on the host's disk, and makes the copies of a machine
// draw random numbers of their own.
func hello(m frame.Message) (frame.Message, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return frame.Message{}, err
	}
	ts := unix.NsecToTimespec(m.Now)
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return frame.Message{}, fmt.Errorf("set clock: %w", err)
	}
	return frame.Message{BootID: string(id[:len(id)-1])}, reseed(m.Seed)
}

// reseed mixes a seed into the kernel's random numbers, at once for all that is drawn from now on; see random(4).
func reseed(seed []byte) error {
	pool := binary.NativeEndian.AppendUint32(nil, uint32(8*len(seed))) // struct rand_pool_info: bits of entropy, bytes, the bytes
	pool = append(binary.NativeEndian.AppendUint32(pool, uint32(len(seed))), seed...)
	random, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer random.Close()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, random.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&pool[0]))); errno != 0 {
		return fmt.Errorf("add entropy: %w", errno)
	}
	if err := unix.IoctlSetInt(int(random.Fd()), unix.RNDRESEEDCRNG, 0); err != nil {
		return fmt.Errorf("reseed: %w", err)
	}
	return nil
}
