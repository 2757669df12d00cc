package port

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/Microsoft/go-winio"
	"golang.org/x/sys/windows"
)

func noneOpen(string) bool { return false }

// hostEnd is the other end of a pipe that stands for a port: one at a time can have it open, and each write is a message, so
// that the sizes of writes can be seen.
type hostEnd struct {
	*os.File
	path   string
	handle windows.Handle
}

var pipeNumber atomic.Int32

func newHostEnd(t *testing.T) *hostEnd {
	t.Helper()
	path := fmt.Sprintf(`%sport-test-%d-%d`, pipePrefix, os.Getpid(), pipeNumber.Add(1))
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		t.Fatal(err)
	}
	h, err := windows.CreateNamedPipe(name, windows.PIPE_ACCESS_DUPLEX|windows.FILE_FLAG_OVERLAPPED,
		windows.PIPE_TYPE_MESSAGE|windows.PIPE_READMODE_BYTE, 1, 1<<16, 1<<16, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	e := &hostEnd{os.NewFile(uintptr(h), path), path, h}
	t.Cleanup(func() { e.Close() })
	return e
}

func openSerial(t *testing.T, path string) *virtioPort {
	t.Helper()
	ports, err := Open(path, noneOpen)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ports[0].Close() })
	return ports[0].(*virtioPort)
}

// serialSession is what the connection sees of a session.
type serialSession interface {
	io.ReadWriteCloser
	persistentChannel
	SetReadDeadline(time.Time) error
}

func acceptSerial(t *testing.T, v *virtioPort) serialSession {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s, err := v.Accept(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return s.(serialSession)
}

func wants(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v; want %q", got, err, want)
	}
}

// A host that says nothing gets what the agent writes all the same.
func TestChannelReadHoldsUpNoWrite(t *testing.T) {
	host := newHostEnd(t)
	s := acceptSerial(t, openSerial(t, host.path))
	if !s.Backlog() {
		t.Error("what comes first may be old")
	}
	s.SetReadDeadline(time.Now().Add(time.Millisecond))
	s.Read(make([]byte, 1))
	s.SetReadDeadline(time.Time{})
	if s.Backlog() {
		t.Error("the port was empty")
	}
	read := make(chan error, 1)
	go func() {
		b := make([]byte, 5)
		_, err := io.ReadFull(s, b)
		if err == nil && string(b) != "hello" {
			err = errors.New(string(b))
		}
		read <- err
	}()
	for i := range 100 {
		line := fmt.Sprintf("telemetry %d", i)
		if _, err := s.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
		wants(t, host, line)
	}
	select {
	case err := <-read:
		t.Fatal("read ended by itself:", err)
	default:
	}
	host.WriteString("hello")
	if err := <-read; err != nil {
		t.Fatal(err)
	}
}

// The driver refuses large writes, so none has more than 32,000 bytes.
func TestChannelWritesAreBounded(t *testing.T) {
	host := newHostEnd(t)
	s := acceptSerial(t, openSerial(t, host.path))
	sent := bytes.Repeat([]byte("0123456789"), 20000)
	wrote := make(chan error, 1)
	go func() { n, err := s.Write(sent); wrote <- errors.Join(err, lengthError(n, len(sent))) }()
	var got []byte
	largest := uint32(0)
	for len(got) < len(sent) {
		b := make([]byte, 1<<16)
		n, err := host.Read(b[:1])
		if err != nil {
			t.Fatal(err)
		}
		var left uint32 // of the message
		if err := peek(host.handle, &left); err != nil {
			t.Fatal(err)
		}
		largest = max(largest, left+1)
		m, err := io.ReadFull(host, b[n:n+int(left)])
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, b[:n+m]...)
	}
	if err := <-wrote; err != nil || !bytes.Equal(got, sent) {
		t.Error("not what was written:", err, len(got))
	}
	if largest != maxWrite {
		t.Errorf("the largest write had %d bytes", largest)
	}
}

func lengthError(n, want int) error {
	if n != want {
		return fmt.Errorf("%d bytes of %d", n, want)
	}
	return nil
}

var peekNamedPipe = windows.NewLazySystemDLL("kernel32.dll").NewProc("PeekNamedPipe")

func peek(h windows.Handle, left *uint32) error {
	r, _, err := peekNamedPipe.Call(uintptr(h), 0, 0, 0, 0, uintptr(unsafe.Pointer(left)))
	if r == 0 {
		return err
	}
	return nil
}

// Close ends a read and a write that wait, and what comes meanwhile is the next session's.
func TestChannelSessionsEnd(t *testing.T) {
	host := newHostEnd(t)
	v := openSerial(t, host.path)
	for i := range 20 {
		s := acceptSerial(t, v)
		ends := make(chan error, 1)
		go func() { _, err := s.Read(make([]byte, 10)); ends <- err }()
		if i%2 == 0 {
			host.WriteString("a")
			if err := <-ends; err != nil {
				t.Fatal(err)
			}
			go func() { _, err := s.Read(make([]byte, 10)); ends <- err }()
		}
		s.Close()
		s.Close()
		if err := <-ends; !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
		if _, err := s.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Fatal(err)
		}
	}
	host.WriteString("left")
	s := acceptSerial(t, v)
	wants(t, s, "left")
	s.Unread([]byte("put back"))
	s.Close()
	s = acceptSerial(t, v)
	host.WriteString(" and new")
	wants(t, s, "put back and new")

	writes := make(chan error, 1)
	go func() { _, err := s.Write(make([]byte, 10<<20)); writes <- err }() // the host reads nothing
	wants(t, host, "\x00\x00")
	s.Close()
	if err := <-writes; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// A read ends when its time is over, and nothing is lost by that.
func TestChannelReadDeadline(t *testing.T) {
	host := newHostEnd(t)
	s := acceptSerial(t, openSerial(t, host.path))
	for range 20 {
		if err := s.SetReadDeadline(time.Now().Add(5 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if n, err := s.Read(make([]byte, 10)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal(n, err)
		}
	}
	s.SetReadDeadline(time.Time{})
	host.WriteString("all of it")
	wants(t, s, "all of it")
}

// A port whose other end is gone is given up, and can be opened again; while another has it, it is not.
func TestChannelGoneAndHeld(t *testing.T) {
	host := newHostEnd(t)
	v := openSerial(t, host.path)
	if _, err := Open(host.path, noneOpen); !isHeld(err) {
		t.Error("opened twice:", err)
	}
	s := acceptSerial(t, v)
	host.WriteString("last words")
	wants(t, s, "last words")
	if err := host.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Read(make([]byte, 1)); err != io.EOF {
		t.Error(err)
	}
	if n, err := s.Write([]byte("x")); err == nil {
		t.Error("written to nobody:", n)
	}
	s.Close()
	if _, err := v.Accept(context.Background()); !errors.Is(err, ErrGone) {
		t.Error(err)
	}
	v.Close()
	if _, err := v.Accept(context.Background()); !errors.Is(err, ErrGone) {
		t.Error(err)
	}
}

// Where the driver can be asked, a session begins when a host is there and ends when it has left. No pipe can show that, so
// the answer of the driver is the test's.
func TestChannelHostComesAndGoes(t *testing.T) {
	host := newHostEnd(t)
	v := openSerial(t, host.path)
	var there atomic.Bool
	var asked atomic.Int32
	v.present = func() (bool, error) { asked.Add(1); return there.Load(), nil }
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { _, err := v.Accept(ctx); ended <- err }()
	time.Sleep(2 * absentPoll)
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if n := asked.Load(); n > 5 {
		t.Errorf("asked %d times within two intervals", n)
	}
	there.Store(true)
	s := acceptSerial(t, v)
	host.WriteString("x")
	wants(t, s, "x")
	there.Store(false)
	if _, err := s.Read(make([]byte, 1)); err != io.EOF {
		t.Error(err)
	}
	if s.AwaitHost() {
		t.Error("no host is there")
	}
	s.Close()
	v.present = func() (bool, error) { return false, windows.ERROR_GEN_FAILURE }
	if _, err := v.Accept(context.Background()); !errors.Is(err, ErrGone) {
		t.Error(err)
	}
}

// The driver refuses a write at once while its queue is full, and while no host is there: the one is tried again.
func TestChannelDriverRefusesWrites(t *testing.T) {
	host := newHostEnd(t)
	v := openSerial(t, host.path)
	s := acceptSerial(t, v)
	var there atomic.Bool
	there.Store(true)
	v.present = func() (bool, error) { return there.Load(), nil }
	refused := 0
	v.write = func(h windows.Handle, p []byte, done *uint32, o *windows.Overlapped) error {
		if refused++; refused <= 10 {
			return []error{windows.ERROR_NO_SYSTEM_RESOURCES, windows.ERROR_CANT_WAIT}[refused%2]
		}
		return windows.WriteFile(h, p, done, o)
	}
	if n, err := s.Write([]byte("in the end")); n != 10 || err != nil {
		t.Fatal(n, err)
	}
	wants(t, host, "in the end")
	there.Store(false)
	refused = 0
	if n, err := s.Write([]byte("to nobody")); n != 0 || !errors.Is(err, io.ErrClosedPipe) || refused > 1 {
		t.Error(n, err, refused)
	}
	if v.gone.Load() {
		t.Error("a port without a host was given up")
	}
	v.write = func(windows.Handle, []byte, *uint32, *windows.Overlapped) error {
		return windows.ERROR_DEVICE_NOT_CONNECTED
	}
	if _, err := s.Write([]byte("x")); !errors.Is(err, windows.ERROR_DEVICE_NOT_CONNECTED) || !v.gone.Load() {
		t.Error(err)
	}
}

// Tools connect to a pipe, several at a time.
func TestPipeSessions(t *testing.T) {
	name := fmt.Sprintf("pipe-test-%d", os.Getpid())
	ports, err := Open("pipe:"+name, noneOpen)
	if err != nil {
		t.Fatal(err)
	}
	p := ports[0]
	t.Cleanup(func() { p.Close() })
	if p.Name() != "pipe:"+name {
		t.Error(p.Name())
	}
	if isWine() { // which gives the first one nobody at the other end, and lets pipes be made twice
		lost, err := winio.DialPipe(pipePrefix+name, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer lost.Close()
	} else if ports, err := Open("pipe:"+name, noneOpen); err == nil {
		ports[0].Close()
		t.Error("a second agent took the pipe")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	first, firstTool := pipeSessionOf(t, ctx, p, name)
	second, secondTool := pipeSessionOf(t, ctx, p, name)
	second.Write([]byte("two"))
	first.Write([]byte("one"))
	wants(t, firstTool, "one")
	wants(t, secondTool, "two")
	firstTool.Close()
	if _, err := first.Read(make([]byte, 1)); err != io.EOF {
		t.Error(err)
	}
	first.Close()
	secondTool.Write([]byte("still here"))
	wants(t, second, "still here")
	second.Close()
	cancel()
	if _, err := p.Accept(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	p.Close()
	if _, err := p.Accept(context.Background()); !errors.Is(err, ErrGone) {
		t.Error(err)
	}
}

func isWine() bool {
	return windows.NewLazySystemDLL("ntdll.dll").NewProc("wine_get_version").Find() == nil
}

func pipeSessionOf(t *testing.T, ctx context.Context, p Port, name string) (session io.ReadWriteCloser, tool net.Conn) {
	t.Helper()
	tool, err := winio.DialPipeContext(ctx, pipePrefix+name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tool.Close() })
	if session, err = p.Accept(ctx); err != nil {
		t.Fatal(err)
	}
	return session, tool
}

// What this system has not is said by name.
func TestUnsupportedChannels(t *testing.T) {
	for _, spec := range []string{"unix:C:/agent.sock", "vsock:9443"} {
		if _, err := Open(spec, noneOpen); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", spec, err)
		}
	}
	if _, err := Open("auto", noneOpen); !errors.Is(err, fs.ErrNotExist) {
		t.Error("no port is there:", err)
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none"), noneOpen); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file, noneOpen); !errors.Is(err, fs.ErrInvalid) {
		t.Error("a file is no port:", err)
	}
}
