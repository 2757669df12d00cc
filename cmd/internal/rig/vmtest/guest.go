package vmtest

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest/frame"
)

// pollPause is the time between two polls of something that only polling can see. Short against a boot, long enough that
// looking does not slow an emulated guest down.
const pollPause = 100 * time.Millisecond

func pause(ctx context.Context) error {
	select {
	case <-time.After(pollPause):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// guest is the connection to the probe.
type guest struct {
	conn net.Conn
	done chan struct{} // closed when the reader has ended

	writing sync.Mutex // keeps frames whole

	mu    sync.Mutex // guards all below
	next  uint64
	calls map[uint64]chan answer
	err   error // why the reader ended
}

type answer struct {
	head frame.Message
	body []byte
}

func dialGuest(ctx context.Context, socket string) (*guest, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("probe: %w", err)
	}
	g := &guest{conn: conn, done: make(chan struct{}), calls: map[uint64]chan answer{}}
	go g.read()
	return g, nil
}

func (g *guest) close() {
	g.conn.Close()
	<-g.done
}

// read is the only reader. It ends with the connection.
func (g *guest) read() {
	defer close(g.done)
	r := bufio.NewReaderSize(g.conn, 64<<10)
	for {
		m, body, err := frame.Read(r)
		g.mu.Lock()
		if err != nil {
			g.err = fmt.Errorf("probe connection: %w", err)
			for id, c := range g.calls {
				delete(g.calls, id)
				close(c)
			}
			g.mu.Unlock()
			return
		}
		if c, ok := g.calls[m.ID]; ok {
			delete(g.calls, m.ID)
			c <- answer{m, body}
		}
		g.mu.Unlock()
	}
}

// call sends one request and waits for its reply, whose Error becomes an error.
func (g *guest) call(ctx context.Context, m frame.Message, body []byte) (frame.Message, []byte, error) {
	id, c, err := g.send(ctx, m, body)
	if err != nil {
		return frame.Message{}, nil, err
	}
	select {
	case a, ok := <-c:
		if !ok {
			return frame.Message{}, nil, g.cause()
		}
		if a.head.Error != "" {
			return frame.Message{}, nil, errors.New(a.head.Error)
		}
		return a.head, a.body, nil
	case <-ctx.Done():
		g.mu.Lock()
		delete(g.calls, id)
		g.mu.Unlock()
		if m.Op == frame.OpRun {
			// Should this not get through, then neither would a second try: write has given the connection up.
			_ = g.write(context.WithoutCancel(ctx), frame.Message{Op: frame.OpCancel, Target: id}, nil)
		}
		return frame.Message{}, nil, context.Cause(ctx)
	}
}

func (g *guest) send(ctx context.Context, m frame.Message, body []byte) (uint64, chan answer, error) {
	g.mu.Lock()
	if g.err != nil {
		defer g.mu.Unlock()
		return 0, nil, g.err
	}
	g.next++
	m.ID = g.next
	c := make(chan answer, 1)
	g.calls[m.ID] = c
	g.mu.Unlock()
	return m.ID, c, g.write(ctx, m, body)
}

// writeLimit is how long the probe may take to read one frame.
const writeLimit = 30 * time.Second

// write writes one frame. One that was cut off in the middle would swallow part of the next, so the connection ends with it.
func (g *guest) write(ctx context.Context, m frame.Message, body []byte) error {
	g.writing.Lock()
	defer g.writing.Unlock()
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if err := g.conn.SetWriteDeadline(time.Now().Add(writeLimit)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { g.conn.SetWriteDeadline(time.Now()) })
	defer stop()
	if err := frame.Write(g.conn, m, body); err != nil {
		g.conn.Close()
		return err
	}
	return nil
}

func (g *guest) cause() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

// helloPause is how long the first hello is given before the next is sent, and helloPatience how long one is given at most:
// the first ones are lost in a guest that has not started its probe, or that is going down.
const (
	helloPause    = 250 * time.Millisecond
	helloPatience = 5 * time.Second
)

// hello waits until the probe answers, sets the guest's clock, and returns the id of its boot. exited ends the wait.
func (g *guest) hello(ctx context.Context, exited <-chan struct{}) (id string, err error) {
	// The first answer may be to a hello that waited in the port while the guest booted; the next is fresh, and sets the clock
	// for good. A guest that goes down between the two answers it never, so that each is sent until it is answered.
	patience := helloPause
	for answers := 0; answers < 2; {
		once, cancel := context.WithTimeout(ctx, patience)
		seed := make([]byte, 32)
		rand.Read(seed)
		m, _, err := g.call(once, frame.Message{Op: frame.OpHello, Now: time.Now().UnixNano(), Seed: seed}, nil)
		cancel()
		if err == nil {
			answers++
			id, patience = m.BootID, helloPatience
			continue
		}
		answers, patience = 0, min(2*patience, helloPatience)
		select {
		case <-exited:
			return "", errors.New("qemu has ended")
		case <-ctx.Done():
			return "", fmt.Errorf("probe does not answer: %w", context.Cause(ctx))
		default:
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			return "", err
		}
	}
	return id, nil
}

// awaitBoot waits for the file that a unit of the rig makes when multi-user.target has been reached.
func (g *guest) awaitBoot(ctx context.Context) error {
	for {
		_, _, err := g.call(ctx, frame.Message{Op: frame.OpGet, Path: bootedFile}, nil)
		if err == nil {
			return nil
		}
		if gone := g.cause(); gone != nil {
			return fmt.Errorf("guest boot: %w", gone)
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("guest boot: %w", err)
		}
	}
}

// SetClock sets the guest's clock to the host's, which Start and PowerOn have done.
func (vm *VM) SetClock(ctx context.Context) error {
	_, err := vm.BootID(ctx)
	return err
}

// Command is something to run in the guest, as root, below the probe.
type Command struct {
	Argv  []string // required; looked up in PATH
	Stdin []byte   // optional, at most frame.MaxBody
	Env   []string // optional NAME=value, added to the probe's own
	Dir   string   // optional working directory; default /
}

// Result is what a command left.
type Result struct {
	Stdout, Stderr []byte
	ExitCode       int // 128 plus the signal for a killed command
}

// Run runs a command in the guest through the probe and waits for it. An exit code other than 0 is no error. When ctx
// ends, the command and its process group are killed.
func (vm *VM) Run(ctx context.Context, argv ...string) (Result, error) {
	return vm.RunCommand(ctx, Command{Argv: argv})
}

// Shell runs a text with the guest's sh, which stops at the first command that fails.
func (vm *VM) Shell(ctx context.Context, text string) (Result, error) {
	return vm.Run(ctx, "sh", "-ec", text)
}

// RunCommand is Run with the command's surroundings. It answers 0.2 s after the command's own end even when children of
// it keep its output open.
func (vm *VM) RunCommand(ctx context.Context, c Command) (Result, error) {
	m, body, err := vm.guest.call(ctx, frame.Message{Op: frame.OpRun, Argv: c.Argv, Env: c.Env, Dir: c.Dir}, c.Stdin)
	if err != nil {
		return Result{}, fmt.Errorf("vm run %s: %w", strings.Join(c.Argv, " "), err)
	}
	if m.Stdout > len(body) {
		return Result{}, fmt.Errorf("vm run: reply of %d bytes claims %d of standard output", len(body), m.Stdout)
	}
	return Result{Stdout: body[:m.Stdout], Stderr: body[m.Stdout:], ExitCode: m.Code}, nil
}

// Must runs a text with the guest's sh and returns its standard output without the last newline. The test fails when the
// text does.
func (vm *VM) Must(t testing.TB, text string) string {
	t.Helper()
	r, err := vm.Shell(t.Context(), text)
	if err != nil {
		t.Fatal(err)
	}
	if r.ExitCode != 0 {
		t.Fatalf("in the guest: %s\nexit code %d\n%s%s", text, r.ExitCode, r.Stdout, r.Stderr)
	}
	return strings.TrimSuffix(string(r.Stdout), "\n")
}

// putBlock is how much of a file one frame carries, in bytes.
const putBlock = 4 << 20

// Put copies a file of the host into the guest, with the permission bits of mode. It is durable there when Put returns.
func (vm *VM) Put(ctx context.Context, local, path string, mode fs.FileMode) error {
	f, err := os.Open(local)
	if err != nil {
		return fmt.Errorf("vm put: %w", err)
	}
	defer f.Close()
	return vm.PutReader(ctx, f, path, mode)
}

// PutReader is Put for content that is no file of the host.
func (vm *VM) PutReader(ctx context.Context, r io.Reader, path string, mode fs.FileMode) error {
	buf := make([]byte, putBlock)
	for offset := int64(0); ; {
		n, err := io.ReadFull(r, buf)
		last := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !last {
			return fmt.Errorf("vm put %s: %w", path, err)
		}
		m := frame.Message{Op: frame.OpPut, Path: path, Mode: uint32(mode.Perm()), Offset: offset, Last: last}
		if _, _, err := vm.guest.call(ctx, m, buf[:n]); err != nil {
			return fmt.Errorf("vm put %s: %w", path, err)
		}
		if last {
			return nil
		}
		offset += int64(n)
	}
}

// Get returns the content of a file in the guest.
func (vm *VM) Get(ctx context.Context, path string) ([]byte, error) {
	var all []byte
	for {
		m, body, err := vm.guest.call(ctx, frame.Message{Op: frame.OpGet, Path: path, Offset: int64(len(all))}, nil)
		if err != nil {
			return nil, fmt.Errorf("vm get %s: %w", path, err)
		}
		all = append(all, body...)
		if m.Last {
			return all, nil
		}
	}
}
