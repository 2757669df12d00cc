package wayland

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// maxFiles is how many descriptors may come in one read: libwayland sends at most 28 at once.
const maxFiles = 28

// Conn is a connection to a compositor. Requests may be sent from any goroutine; one at a time may call Dispatch, Roundtrip or
// Bind.
type Conn struct {
	socket     *net.UnixConn
	compositor string
	display    *Object
	registry   *Object

	in    []byte     // read, and not an event yet
	files []*os.File // descriptors that came, and belong to no event yet

	write sync.Mutex // one request is on its way at a time

	mu      sync.Mutex
	objects map[uint32]*Object
	free    []uint32 // ids of ours that the compositor has given back
	next    uint32
	globals []Global
	err     error // why the connection is of no use any more
}

// Object is an object of the protocol. Its fields must not be changed once Dispatch may see it.
type Object struct {
	// Interface says what it is, and Version by which version of that it is spoken to.
	Interface *Interface
	Version   uint32
	// Handle is called by Dispatch with each event; it must not dispatch itself. Nil: they are dropped. For an object that the
	// compositor made it is set by the handler of the event that brought it.
	Handle func(*Event)

	conn      *Conn
	id        uint32
	destroyed bool
}

// Dial connects to the compositor that listens at a socket, and learns what it offers, within Timeout. Without a socket the
// error is unsupported.
func Dial(ctx context.Context, path string) (*Conn, error) {
	dialer := net.Dialer{Timeout: Timeout}
	plain, err := dialer.DialContext(ctx, "unix", path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fault.Unsupported("there is no Wayland compositor at %s", path)
	}
	if err != nil {
		return nil, fault.On(path, err)
	}
	c := &Conn{socket: plain.(*net.UnixConn), objects: map[uint32]*Object{}, next: 1}
	c.compositor = peerName(c.socket)
	c.display = c.add(displayInterface, 1, c.displayEvent)
	c.registry = c.add(registryInterface, 1, c.registryEvent)
	err = c.display.Request(displayGetRegistry, c.registry)
	if err == nil {
		err = c.Roundtrip(ctx)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// peerName returns the name of the program that listens at the other end; empty: it is not known. It has at most 15 bytes.
func peerName(socket *net.UnixConn) (name string) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return ""
	}
	raw.Control(func(fd uintptr) {
		if peer, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", peer.Pid))
			name = strings.TrimSpace(string(comm))
		}
	})
	return name
}

// Compositor returns the name of the compositor's program, cut at 15 bytes; where it is not known it is "the compositor".
func (c *Conn) Compositor() string {
	if c.compositor == "" {
		return "the compositor"
	}
	return c.compositor
}

// Close ends the connection. A Dispatch that waits returns.
func (c *Conn) Close() error {
	c.fail(net.ErrClosed)
	return nil
}

// fail notes why the connection is of no use any more, the first time, and returns that.
func (c *Conn) fail(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
		c.socket.Close()
	}
	return c.err
}

// Err returns why the connection is of no use any more; nil: it is.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// add makes an object with an id of ours.
func (c *Conn) add(kind *Interface, version uint32, handle func(*Event)) *Object {
	c.mu.Lock()
	defer c.mu.Unlock()
	object := &Object{Interface: kind, Version: version, Handle: handle, conn: c}
	if n := len(c.free); n > 0 {
		object.id, c.free = c.free[n-1], c.free[:n-1]
	} else {
		object.id = c.next
		c.next++
	}
	c.objects[object.id] = object
	return object
}

// Globals returns what the compositor offers now, in the order in which it did.
func (c *Conn) Globals() []Global {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.globals)
}

// Bind makes an object of the first global of an interface, in the highest version that both sides speak. Where the compositor
// does not offer one the error is unsupported, and names it.
func (c *Conn) Bind(kind *Interface, handle func(*Event)) (*Object, error) {
	globals := c.Globals()
	at := slices.IndexFunc(globals, func(g Global) bool { return g.Interface == kind.Name })
	if at < 0 {
		return nil, fault.Unsupported("%s does not offer %s", c.Compositor(), kind.Name)
	}
	return c.BindGlobal(globals[at], kind, handle)
}

// BindGlobal is Bind for one of several globals of an interface.
func (c *Conn) BindGlobal(global Global, kind *Interface, handle func(*Event)) (*Object, error) {
	object := c.add(kind, min(kind.Version, global.Version), handle)
	return object, c.registry.Request(registryBind, global.Name, kind.Name, object.Version, object)
}

// New makes an object that an argument new_id of a request of o stands for; the request is sent by Request.
func (o *Object) New(kind *Interface, handle func(*Event)) *Object {
	return o.conn.add(kind, min(o.Version, kind.Version), handle)
}

// Request sends a request. Arguments are int32, uint32, Fixed, string, []byte, *Object for object and new_id (nil is null), and
// *os.File for fd, which stays the caller's. A compositor that does not read for Timeout is an error.
func (o *Object) Request(opcode uint16, args ...any) error { return o.conn.send(o, opcode, args) }

// Destroy sends the request that ends the object, and drops the events that are still on their way to it.
func (o *Object) Destroy(opcode uint16) error {
	err := o.Request(opcode)
	o.Forget()
	return err
}

// Forget drops all further events of the object: for one that the compositor has ended.
func (o *Object) Forget() {
	o.conn.mu.Lock()
	defer o.conn.mu.Unlock()
	o.destroyed = true
}

func (c *Conn) send(o *Object, opcode uint16, args []any) error {
	message, files, err := encode(o.id, opcode, args)
	if err != nil {
		return err
	}
	var rights []byte
	if len(files) > 0 {
		numbers := make([]int, len(files))
		for i, file := range files {
			numbers[i] = int(file.Fd())
		}
		rights = unix.UnixRights(numbers...)
	}
	c.write.Lock()
	defer c.write.Unlock()
	if err := c.Err(); err != nil {
		return err
	}
	c.socket.SetWriteDeadline(time.Now().Add(Timeout))
	n, _, err := c.socket.WriteMsgUnix(message, rights, nil)
	runtime.KeepAlive(files)
	for err == nil && n < len(message) {
		message = message[n:]
		n, err = c.socket.Write(message)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return c.fail(c.Silent())
	default:
		return c.lost(err)
	}
}

// Silent returns the error about a compositor that does not answer within Timeout.
func (c *Conn) Silent() error {
	return fault.Wrapf(context.DeadlineExceeded, "%s does not answer (waited for %d s)", c.Compositor(), int(Timeout.Seconds()))
}

// lost ends a connection that the other end has ended. What it said before may say why.
func (c *Conn) lost(err error) error {
	if known := c.Err(); known != nil {
		return known
	}
	return fault.Wrapf(err, "%s has ended the connection: %v", c.Compositor(), fault.Cause(err))
}

// Roundtrip waits until the compositor has done all requests sent so far, and handles the events that it sends until then. It
// waits for Timeout at most.
func (c *Conn) Roundtrip(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, Timeout, c.Silent())
	defer cancel()
	done := false
	callback := c.display.New(Callback, func(*Event) { done = true })
	// Where the compositor has ended the connection, what it sent before says why.
	c.display.Request(displaySync, callback) //nolint:errcheck // Dispatch returns it, or a better one
	return c.DispatchUntil(ctx, func() bool { return done })
}

// DispatchUntil handles events until done says so, which it asks after each that came.
func (c *Conn) DispatchUntil(ctx context.Context, done func() bool) error {
	for !done() {
		if err := c.Dispatch(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Dispatch waits for one event and handles it. When ctx ends first it returns its cause, and the connection is as before.
func (c *Conn) Dispatch(ctx context.Context) error {
	for {
		if err := c.Err(); err != nil {
			return err
		}
		handled, err := c.handleOne()
		if err != nil {
			return c.fail(err)
		}
		if handled {
			return c.Err() // it may have been the error event
		}
		if err := c.read(ctx); err != nil {
			return err
		}
	}
}

// read waits for more bytes.
func (c *Conn) read(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	c.socket.SetReadDeadline(time.Time{})
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		c.socket.SetReadDeadline(time.Unix(1, 0))
		close(ended)
	})
	buffer, rights := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*maxFiles))
	n, m, flags, _, err := c.socket.ReadMsgUnix(buffer, rights)
	if !stop() {
		<-ended // the deadline is not set behind the back of the next read
	}
	if fileErr := c.receive(rights[:m]); fileErr != nil && err == nil {
		err = fileErr
	}
	switch {
	case err == nil && flags&unix.MSG_CTRUNC != 0:
		return c.fail(errors.New("the compositor sent more descriptors than it may"))
	case err == nil && n > 0:
		c.in = append(c.in, buffer[:n]...)
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return context.Cause(ctx)
	case err == nil: // the end
		err = errors.New("end of the stream")
	}
	return c.fail(c.lost(err))
}

// receive takes the descriptors of a control message.
func (c *Conn) receive(rights []byte) error {
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return err
	}
	for _, message := range messages {
		numbers, err := unix.ParseUnixRights(&message)
		if err != nil {
			continue // credentials, which nobody asked for
		}
		for _, fd := range numbers {
			unix.SetNonblock(fd, true) // so that its file has deadlines
			c.files = append(c.files, os.NewFile(uintptr(fd), "wayland"))
		}
	}
	return nil
}

// handleOne handles the event that was read first, if a whole one was.
func (c *Conn) handleOne() (handled bool, err error) {
	if len(c.in) < headerSize {
		return false, nil
	}
	id, word := order.Uint32(c.in), order.Uint32(c.in[4:])
	size, opcode := int(word>>16), uint16(word)
	if size < headerSize || size%4 != 0 {
		return false, fmt.Errorf("%s sent an event of %d bytes", c.Compositor(), size)
	}
	if len(c.in) < size {
		return false, nil
	}
	body := c.in[headerSize:size]
	c.in = c.in[size:]

	c.mu.Lock()
	object := c.objects[id]
	c.mu.Unlock()
	if object == nil {
		return false, fmt.Errorf("%s sent an event of object %d, which there is not", c.Compositor(), id)
	}
	event, err := c.decode(object, opcode, body)
	if err != nil {
		return false, err
	}
	defer event.closeFiles()
	c.mu.Lock()
	handle, destroyed := object.Handle, object.destroyed
	c.mu.Unlock()
	if handle != nil && !destroyed {
		handle(event)
	}
	return true, nil
}

// decode reads an event and takes the descriptors that belong to it.
func (c *Conn) decode(object *Object, opcode uint16, body []byte) (*Event, error) {
	if int(opcode) >= len(object.Interface.Events) {
		return nil, fmt.Errorf("%s sent event %d of %s, which there is not", c.Compositor(), opcode, object.Interface.Name)
	}
	kind := object.Interface.Events[opcode]
	event, d := &Event{Object: object, Opcode: opcode}, decoder{data: body}
	for _, letter := range kind.Args {
		switch letter {
		case 'i':
			event.args = append(event.args, int32(d.word()))
		case 'u':
			event.args = append(event.args, d.word())
		case 'f':
			event.args = append(event.args, Fixed(d.word()))
		case 's':
			event.args = append(event.args, d.text())
		case 'a':
			event.args = append(event.args, d.bytes())
		case 'o':
			event.args = append(event.args, c.living(d.word()))
		case 'n':
			made := &Object{Interface: kind.New, Version: min(object.Version, kind.New.Version), conn: c, id: d.word()}
			if d.bad = d.bad || made.id < firstServerID; !d.bad {
				c.mu.Lock()
				c.objects[made.id] = made // in place of one that was destroyed
				c.mu.Unlock()
			}
			event.args = append(event.args, made)
		case 'h':
			if len(c.files) == 0 {
				d.bad = true
				continue
			}
			event.args = append(event.args, c.files[0])
			c.files = c.files[1:]
		default:
			panic("wayland: an event with an argument " + string(letter))
		}
	}
	if d.bad || len(d.data) != 0 {
		event.closeFiles()
		return nil, fmt.Errorf("%s sent a malformed event %s.%s", c.Compositor(), object.Interface.Name, kind.Name)
	}
	return event, nil
}

// living returns an object that was not destroyed; nil: there is none of this id.
func (c *Conn) living(id uint32) *Object {
	c.mu.Lock()
	defer c.mu.Unlock()
	if object := c.objects[id]; object != nil && !object.destroyed {
		return object
	}
	return nil
}

func (c *Conn) displayEvent(e *Event) {
	switch e.Opcode {
	case displayError:
		refused := &ProtocolError{Code: e.Uint(1), Message: e.String(2)}
		if object := e.Of(0); object != nil {
			refused.Interface, refused.Object = object.Interface.Name, object.id
		}
		c.fail(refused)
	case displayDeleteID:
		c.mu.Lock()
		defer c.mu.Unlock()
		if id := e.Uint(0); id > c.registry.id && id < firstServerID && c.objects[id] != nil {
			delete(c.objects, id)
			c.free = append(c.free, id)
		}
	}
}

func (c *Conn) registryEvent(e *Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch e.Opcode {
	case registryGlobal:
		c.globals = append(c.globals, Global{Name: e.Uint(0), Interface: e.String(1), Version: e.Uint(2)})
	case registryGlobalRemove:
		c.globals = slices.DeleteFunc(c.globals, func(g Global) bool { return g.Name == e.Uint(0) })
	}
}
