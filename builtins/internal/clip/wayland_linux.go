package clip

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/internal/wayland"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// A program without a window reaches the clipboard of a compositor by ext-data-control-v1, or by wlr-data-control-unstable-v1,
// which is the same but for the names.
//
//	Read:  the offer that the device sent last ─► receive(type, fd) ─► read to the end
//	Write: a source with its types ─► set_selection ─► send(type, fd) of anybody ─► write
//	Watch: the device's event selection
const (
	managerCreateSource = 0
	managerGetDevice    = 1

	deviceSetSelection = 0
	deviceSetPrimary   = 2
	deviceDataOffer    = 0
	deviceSelection    = 1
	deviceFinished     = 2
	devicePrimary      = 3

	sourceOffer     = 0
	sourceDestroy   = 1
	sourceSend      = 0
	sourceCancelled = 1

	offerReceive = 0
	offerDestroy = 1
)

// ownType begins a type that nobody asks for: by what follows an offer is known to be ours.
const ownType = "application/x-quantix-kvm-"

const maxServing = 32 // programs that are sent content at the same time

// protocol is one of the two.
type protocol struct{ manager, device, source, offer *wayland.Interface }

// dataControl describes a protocol by what its names begin with.
func dataControl(prefix string, version uint32) protocol {
	offer := &wayland.Interface{Name: prefix + "_offer_v1", Version: version, Events: []wayland.EventType{
		{Name: "offer", Args: "s"},
	}}
	return protocol{
		manager: &wayland.Interface{Name: prefix + "_manager_v1", Version: version},
		offer:   offer,
		source: &wayland.Interface{Name: prefix + "_source_v1", Version: version, Events: []wayland.EventType{
			{Name: "send", Args: "sh"}, {Name: "cancelled"},
		}},
		device: &wayland.Interface{Name: prefix + "_device_v1", Version: version, Events: []wayland.EventType{
			{Name: "data_offer", Args: "n", New: offer}, {Name: "selection", Args: "o"}, {Name: "finished"},
			{Name: "primary_selection", Args: "o"},
		}},
	}
}

// waylandClipboard is a connection to a compositor, and what it owns there.
type waylandClipboard struct {
	conn            *wayland.Conn
	kinds           protocol
	manager, device *wayland.Object
	primary         bool   // the compositor has a primary selection, too
	own             string // begins the types by which its own offers are known
	done            chan struct{}
	stop            context.CancelFunc
	serving         chan struct{}
	writing         chan struct{} // holds a value while nobody sets

	mu      sync.Mutex
	offers  map[*wayland.Object][]string // the types of each
	current [2]*wayland.Object           // what is offered: in the clipboard, in the primary selection
	set     chan struct{}                // closed and made anew when one of them changes
	serial  int
	changed func()
}

func openWayland(ctx context.Context, getenv func(string) string) (Backend, error) {
	path, err := wayland.SocketPath(getenv)
	if err != nil {
		return nil, err
	}
	conn, err := wayland.Dial(ctx, path)
	if err != nil {
		return nil, err
	}
	w := &waylandClipboard{
		conn: conn, done: make(chan struct{}), serving: make(chan struct{}, maxServing), writing: make(chan struct{}, 1),
		offers: map[*wayland.Object][]string{}, set: make(chan struct{}), own: ownType + rand.Text() + "-",
	}
	w.writing <- struct{}{}
	if err := w.setUp(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	ctx, w.stop = context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(w.done)
		conn.DispatchUntil(ctx, func() bool { return false }) //nolint:errcheck // conn.Err has it
		conn.Close()
	}()
	return w, nil
}

func (w *waylandClipboard) setUp(ctx context.Context) (err error) {
	for _, p := range []protocol{dataControl("ext_data_control", 1), dataControl("zwlr_data_control", 2)} {
		if w.manager, err = w.conn.Bind(p.manager, nil); err == nil {
			w.kinds = p
			break
		}
		if !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	if err != nil {
		return fault.Unsupported(
			"%s gives no program access to its clipboard: it has neither ext-data-control-v1 nor wlr-data-control-v1", w.conn.Compositor())
	}
	w.primary = w.manager.Version >= 2 || strings.HasPrefix(w.kinds.manager.Name, "ext")
	seat, err := w.conn.Bind(wayland.Seat, nil)
	if err != nil {
		return err
	}
	w.device = w.manager.New(w.kinds.device, w.deviceEvent)
	if err := w.manager.Request(managerGetDevice, w.device, seat); err != nil {
		return err
	}
	return w.conn.Roundtrip(ctx) // what is offered now is sent at once
}

// Done is closed when the connection has ended.
func (w *waylandClipboard) Done() <-chan struct{} { return w.done }

// Close ends the connection, and what it owns with it.
func (w *waylandClipboard) Close() error {
	w.stop()
	<-w.done
	return nil
}

// Watch has the function called by the events of the device.
func (w *waylandClipboard) Watch(changed func()) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.changed = changed
	return nil
}

func (w *waylandClipboard) deviceEvent(e *wayland.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch e.Opcode {
	case deviceDataOffer:
		offer := e.Of(0)
		w.offers[offer] = nil
		offer.Handle = func(e *wayland.Event) {
			w.mu.Lock()
			defer w.mu.Unlock()
			if names := w.offers[e.Object]; len(names) < maxTypes {
				w.offers[e.Object] = append(names, e.String(0))
			}
		}
	case deviceSelection:
		w.setCurrent(0, e.Of(0))
		if offer := w.current[0]; w.changed != nil && offer != nil && !slices.ContainsFunc(w.offers[offer], w.isOwn) {
			w.changed()
		}
	case devicePrimary:
		w.setCurrent(1, e.Of(0))
	case deviceFinished: // the seat is gone
		w.conn.Close()
	}
}

// setCurrent takes an offer in the place of the former one, which nobody needs any more.
func (w *waylandClipboard) setCurrent(i int, offer *wayland.Object) {
	if old := w.current[i]; old != nil && old != offer {
		delete(w.offers, old)
		old.Destroy(offerDestroy) //nolint:errcheck // a broken connection is seen by the loop
	}
	w.current[i] = offer
	close(w.set)
	w.set = make(chan struct{})
}

func (w *waylandClipboard) isOwn(name string) bool { return strings.HasPrefix(name, w.own) }

// isMark reports whether a type is of a clipboard like this one, in whatever process.
func isMark(name string) bool { return strings.HasPrefix(name, ownType) }

// index returns which selection is meant.
func (w *waylandClipboard) index(primary bool) (int, error) {
	switch {
	case !primary:
		return 0, nil
	case !w.primary:
		return 0, fault.Unsupported("%s gives no program access to its primary selection", w.conn.Compositor())
	}
	return 1, nil
}

// Offered returns what the compositor sent last.
func (w *waylandClipboard) Offered(_ context.Context, primary bool) ([]Kind, []string, error) {
	at, err := w.index(primary)
	if err != nil {
		return nil, nil, err
	}
	if err := w.conn.Err(); err != nil {
		return nil, nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	names := slices.DeleteFunc(slices.Clone(w.offers[w.current[at]]), isMark)
	return kindsOf(names), names, nil
}

// Read has the owner write into a pipe. The types are those of the offer that there is now.
func (w *waylandClipboard) Read(ctx context.Context, primary bool, kind Kind, _ []string, limit int) ([]byte, error) {
	at, err := w.index(primary)
	if err != nil {
		return nil, err
	}
	ours, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer ours.Close()
	w.mu.Lock() // the offer is not destroyed until the request is sent
	name := typeOf(kind, w.offers[w.current[at]])
	if name == "" {
		err = errNotOffered(kind)
	} else {
		err = w.current[at].Request(offerReceive, name, theirs)
	}
	w.mu.Unlock()
	theirs.Close()
	if err != nil {
		return nil, err
	}
	data, err := readAll(ctx, ours, limit)
	if err != nil {
		return nil, err
	}
	return decode(kind, name, data)
}

// readAll reads to the end, unless that is beyond the limit or the writer is silent.
func readAll(ctx context.Context, from *os.File, limit int) ([]byte, error) {
	unhook := context.AfterFunc(ctx, func() { from.SetReadDeadline(time.Unix(1, 0)) })
	defer unhook()
	if raw, err := from.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { unix.FcntlInt(fd, unix.F_SETPIPE_SZ, 1<<20) }) //nolint:errcheck // it is only faster then
	}
	data := make([]byte, 0, 64<<10)
	for {
		if len(data) == cap(data) {
			data = slices.Grow(data, min(len(data), max(limit-len(data), 0)+1))
		}
		from.SetReadDeadline(time.Now().Add(Silence))
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		n, err := from.Read(data[len(data):cap(data)])
		data = data[:len(data)+n]
		switch {
		case len(data) > limit:
			return nil, errTooLarge(limit)
		case err == io.EOF:
			return data, nil
		case err != nil && ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil, errSilent()
		case err != nil:
			return nil, err
		}
	}
}

// Write offers contents by a source, and waits until the compositor has confirmed that they are what is offered.
func (w *waylandClipboard) Write(ctx context.Context, primary bool, contents []Content) error {
	at, err := w.index(primary)
	if err != nil {
		return err
	}
	select {
	case <-w.writing:
		defer func() { w.writing <- struct{}{} }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	list := encodings(contents)
	source := w.manager.New(w.kinds.source, func(e *wayland.Event) { w.sourceEvent(e, list) })
	if err := w.manager.Request(managerCreateSource, source); err != nil {
		return err
	}
	w.mu.Lock()
	w.serial++
	own := w.own + strconv.Itoa(w.serial)
	w.mu.Unlock()
	for _, e := range list {
		if err := source.Request(sourceOffer, e.name); err != nil {
			return err
		}
	}
	if err := source.Request(sourceOffer, own); err != nil {
		return err
	}
	request := uint16(deviceSetSelection)
	if primary {
		request = deviceSetPrimary
	}
	if err := w.device.Request(request, source); err != nil {
		return err
	}
	return w.waitFor(ctx, at, own)
}

// waitFor waits until an offer with a type is the current one.
func (w *waylandClipboard) waitFor(ctx context.Context, at int, name string) error {
	timer := time.NewTimer(Silence)
	defer timer.Stop()
	for {
		w.mu.Lock()
		is, set := slices.Contains(w.offers[w.current[at]], name), w.set
		w.mu.Unlock()
		if is {
			return nil
		}
		select {
		case <-set:
		case <-w.done:
			return w.conn.Err()
		case <-timer.C:
			return fault.Wrapf(context.DeadlineExceeded, "%s does not take the content (waited for %v)", w.conn.Compositor(), Silence)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (w *waylandClipboard) sourceEvent(e *wayland.Event, list []encoding) {
	if e.Opcode == sourceCancelled {
		e.Object.Destroy(sourceDestroy) //nolint:errcheck // a broken connection is seen by the loop
		return
	}
	name, to := e.String(0), e.File(1)
	at := slices.IndexFunc(list, func(x encoding) bool { return x.name == name })
	if at < 0 {
		to.Close()
		return
	}
	select {
	case w.serving <- struct{}{}:
	default:
		to.Close()
		return
	}
	go func() {
		defer func() { <-w.serving }()
		defer to.Close()
		for data := list[at].make(); len(data) > 0; { // piece by piece, so that a reader that takes nothing is left
			to.SetWriteDeadline(time.Now().Add(idleSend))
			n, err := to.Write(data[:min(len(data), 64<<10)])
			if data = data[n:]; err != nil {
				return
			}
		}
	}()
}
