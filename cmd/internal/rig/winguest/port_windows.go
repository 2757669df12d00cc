package winguest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/Microsoft/go-winio"
	"golang.org/x/sys/windows"
)

const pipePrefix = `\\.\pipe\`

var (
	ntdll              = windows.NewLazySystemDLL("ntdll.dll")
	createSymbolicLink = ntdll.NewProc("NtCreateSymbolicLinkObject")
)

// Port is a port as the driver of virtio-serial shows it to programs. It can be unplugged and plugged in.
type Port struct {
	Name string // org.quantix.agent.N
	Path string // \\.\Global\NAME

	pipe   string // the name after \\.\pipe\
	link   windows.Handle
	handle windows.Handle // QEMU's end, until an agent has opened the port
	end    *os.File       // and then
}

// NewPort plugs in a port, which is there until the test ends.
func NewPort(t testing.TB, name string) *Port {
	t.Helper()
	p := &Port{Name: name, Path: `\\.\Global\` + name, pipe: fmt.Sprintf("%s-%d", name, os.Getpid())}
	if err := p.Plug(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Unplug)
	return p
}

// Plug plugs the port in.
func (p *Port) Plug() error {
	name, err := windows.UTF16PtrFromString(pipePrefix + p.pipe)
	if err != nil {
		return err
	}
	p.handle, err = windows.CreateNamedPipe(name, windows.PIPE_ACCESS_DUPLEX|windows.FILE_FLAG_OVERLAPPED,
		windows.PIPE_TYPE_BYTE, 1, 1<<16, 1<<16, 0, nil)
	if err != nil {
		return fmt.Errorf("make a pipe: %w", err)
	}
	p.link, err = link(`\??\`+p.Name, `\??\pipe\`+p.pipe)
	return err
}

// Open waits until an agent has opened the port, and returns QEMU's end.
func (p *Port) Open() (*os.File, error) {
	event, err := windows.CreateEvent(nil, 1, 0, nil)
	if err != nil {
		return nil, err
	}
	defer windows.CloseHandle(event)
	overlapped := &windows.Overlapped{HEvent: event}
	err = windows.ConnectNamedPipe(p.handle, overlapped)
	if errors.Is(err, windows.ERROR_IO_PENDING) {
		var n uint32
		err = windows.GetOverlappedResult(p.handle, overlapped, &n, true)
	}
	if err != nil && !errors.Is(err, windows.ERROR_PIPE_CONNECTED) {
		return nil, err
	}
	p.end = os.NewFile(uintptr(p.handle), p.pipe)
	return p.end, nil
}

// Unplug takes the port away: whoever has it open gets an error from the next call.
func (p *Port) Unplug() {
	switch {
	case p.end != nil:
		p.end.Close()
	case p.handle != 0:
		windows.CloseHandle(p.handle)
	}
	if p.link != 0 {
		windows.CloseHandle(p.link)
	}
	p.end, p.link, p.handle = nil, 0, 0
}

// link makes a link in the directory of names of devices. It is there until its handle is closed.
func link(from, to string) (windows.Handle, error) {
	name, err := windows.NewNTUnicodeString(from)
	if err != nil {
		return 0, err
	}
	target, err := windows.NewNTUnicodeString(to)
	if err != nil {
		return 0, err
	}
	attributes := windows.OBJECT_ATTRIBUTES{ObjectName: name, Attributes: windows.OBJ_CASE_INSENSITIVE}
	attributes.Length = uint32(unsafe.Sizeof(attributes))
	var h windows.Handle
	const allAccess = 0xf0001 // SYMBOLIC_LINK_ALL_ACCESS
	status, _, _ := createSymbolicLink.Call(uintptr(unsafe.Pointer(&h)), allAccess,
		uintptr(unsafe.Pointer(&attributes)), uintptr(unsafe.Pointer(target)))
	if status != 0 {
		return 0, fmt.Errorf("link %s to %s: %w", from, to, windows.NTStatus(status))
	}
	return h, nil
}

// Host is QEMU's socket for a port: tools connect to it one after the other, and the port does not notice. What they send
// before an agent has opened the port is kept for it.
type Host struct {
	Path string // of the pipe that tools connect to

	l    net.Listener
	end  *os.File
	work sync.WaitGroup

	mu   sync.Mutex
	tool net.Conn
}

// NewHost serves tools for a port to which an agent has come or will come, until the test ends.
func NewHost(t testing.TB, p *Port) *Host {
	t.Helper()
	h := &Host{Path: pipePrefix + "host-" + p.pipe}
	var err error
	if h.l, err = winio.ListenPipe(h.Path, &winio.PipeConfig{InputBufferSize: 1 << 16, OutputBufferSize: 1 << 16}); err != nil {
		t.Fatal(err)
	}
	lost := firstDial(t, h.Path)
	h.work.Go(func() {
		if h.end, err = p.Open(); err != nil {
			return
		}
		h.work.Go(h.forward)
		h.serve()
	})
	t.Cleanup(func() {
		lost()
		h.l.Close()
		h.set(nil)
		p.Unplug()
		h.work.Wait()
	})
	return h
}

// firstDial makes the connection to a pipe of go-winio that under Wine has nobody at the other end. It has to stay.
func firstDial(t testing.TB, path string) (hangUp func()) {
	t.Helper()
	if !isWine() {
		return func() {}
	}
	timeout := 20 * time.Second
	conn, err := winio.DialPipe(path, &timeout)
	if err != nil {
		t.Fatal(err)
	}
	return func() { conn.Close() }
}

func isWine() bool { return ntdll.NewProc("wine_get_version").Find() == nil }

// serve takes what tools send to the port.
func (h *Host) serve() {
	for {
		conn, err := h.l.Accept()
		if err != nil {
			return
		}
		h.set(conn)
		_, _ = io.Copy(h.end, conn)
		conn.Close()
	}
}

func (h *Host) set(conn net.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.tool != nil {
		h.tool.Close()
	}
	h.tool = conn
}

// forward takes what the agent sends to the tool that is connected; without one it is dropped, as QEMU does.
func (h *Host) forward() {
	buffer := make([]byte, 64<<10)
	for {
		n, err := h.end.Read(buffer)
		if err != nil {
			return
		}
		h.mu.Lock()
		tool := h.tool
		h.mu.Unlock()
		if tool != nil {
			_, _ = tool.Write(buffer[:n])
		}
	}
}
