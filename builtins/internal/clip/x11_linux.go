package clip

import (
	"context"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/jezek/xgb"
	"github.com/jezek/xgb/xfixes"
	"github.com/jezek/xgb/xproto"

	"github.com/quantix-kvm/guest-agent/builtins/internal/x11"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// The clipboard of X11 is a selection: a window owns it, and sends its content to whoever asks (ICCCM 2).
//
//	Read:  ConvertSelection ─► the owner writes a property of our window ─► SelectionNotify ─► GetProperty, or INCR in pieces
//	Write: SetSelectionOwner ─► SelectionRequest of anybody ─► a property of its window, or INCR ─► SelectionNotify
//	Watch: XFixes SelectionNotify
const (
	answerWithin = 2 * time.Second // the X server, to what it answers by itself
	readPiece    = 1 << 20         // bytes of a property in one reply
	watchedMask  = xproto.EventMaskPropertyChange | xproto.EventMaskStructureNotify
)

// x11Clipboard is a connection to an X server, and what its window owns.
type x11Clipboard struct {
	conn    *x11.Conn
	window  xproto.Window // owns what is ours
	atoms   map[string]xproto.Atom
	done    chan struct{}
	maxSend int // bytes in one request

	reading chan struct{} // holds a value while nobody reads: one at a time does
	writing chan struct{} // and one at a time sets

	mu      sync.Mutex
	names   map[xproto.Atom]string
	reader  *reader // nil: the next read makes a window
	owned   map[xproto.Atom]*owned
	out     map[transfer]*sending
	stamp   chan xproto.Timestamp // of who waits for the server's time; nil: nobody does
	changed func()
}

// reader is the window to which owners send.
type reader struct {
	window xproto.Window
	events chan xgb.Event // those of the window while somebody reads; nil: nobody does
}

// owned is a selection that is ours.
type owned struct {
	since     xproto.Timestamp
	encodings []encoding
	atoms     []xproto.Atom // of the encodings
	as        []xproto.Atom // the types of their bytes
}

// Names of atoms that every read or write needs.
var atomNames = []string{
	"CLIPBOARD", "PRIMARY", "TARGETS", "MULTIPLE", "TIMESTAMP", "INCR", "ATOM", "ATOM_PAIR", "INTEGER", "SAVE_TARGETS",
	"QUANTIX_CLIPBOARD", "QUANTIX_TIME",
}

func openX11(ctx context.Context, getenv func(string) string) (Backend, error) {
	conn, err := x11.Dial(ctx, getenv)
	if err != nil {
		return nil, err
	}
	x := &x11Clipboard{
		conn: conn, done: make(chan struct{}), atoms: map[string]xproto.Atom{}, names: map[xproto.Atom]string{},
		owned: map[xproto.Atom]*owned{}, out: map[transfer]*sending{},
		reading: make(chan struct{}, 1), writing: make(chan struct{}, 1),
	}
	x.reading <- struct{}{}
	x.writing <- struct{}{}
	if err := x.ask(ctx, x.setUp); err != nil {
		conn.Close()
		return nil, fault.On(conn.String(), err)
	}
	go x.loop()
	return x, nil
}

// ask runs what waits for replies of the server. One that does not reply in time is given up, and the connection with it.
func (x *x11Clipboard) ask(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), answerWithin)
	defer cancel()
	return x.conn.Do(ctx, f)
}

func (x *x11Clipboard) setUp() error {
	setup := xproto.Setup(x.conn.Conn)
	x.maxSend = min(int(setup.MaximumRequestLength)*4-64, 256<<10)
	for _, name := range atomNames {
		if _, err := x.atom(name); err != nil {
			return err
		}
	}
	var err error
	x.window, err = x.newWindow()
	return err
}

func (x *x11Clipboard) newWindow() (xproto.Window, error) {
	window, err := xproto.NewWindowId(x.conn.Conn)
	if err != nil {
		return 0, err
	}
	screen := xproto.Setup(x.conn.Conn).DefaultScreen(x.conn.Conn)
	return window, xproto.CreateWindowChecked(x.conn.Conn, 0, window, screen.Root, 0, 0, 1, 1, 0, xproto.WindowClassInputOnly,
		screen.RootVisual, xproto.CwEventMask, []uint32{watchedMask}).Check()
}

// atom returns the atom of a name. It waits for the server the first time.
func (x *x11Clipboard) atom(name string) (xproto.Atom, error) {
	x.mu.Lock()
	atom, known := x.atoms[name]
	x.mu.Unlock()
	if known {
		return atom, nil
	}
	reply, err := xproto.InternAtom(x.conn.Conn, false, uint16(len(name)), name).Reply()
	if err != nil {
		return 0, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.atoms[name], x.names[reply.Atom] = reply.Atom, name
	return reply.Atom, nil
}

// nameOf returns the name of an atom.
func (x *x11Clipboard) nameOf(atom xproto.Atom) (string, error) {
	x.mu.Lock()
	name, known := x.names[atom]
	x.mu.Unlock()
	if known {
		return name, nil
	}
	reply, err := xproto.GetAtomName(x.conn.Conn, atom).Reply()
	if err != nil {
		return "", err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.names) > 5000 {
		clear(x.names) // of an owner that makes up names
	}
	x.names[atom] = reply.Name
	return reply.Name, nil
}

// known returns an atom of atomNames.
func (x *x11Clipboard) known(name string) xproto.Atom {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.atoms[name]
}

func (x *x11Clipboard) selection(primary bool) xproto.Atom {
	if primary {
		return x.known("PRIMARY")
	}
	return x.known("CLIPBOARD")
}

// Done is closed when the connection has ended.
func (x *x11Clipboard) Done() <-chan struct{} { return x.done }

// Close ends the connection, and what it owns with it.
func (x *x11Clipboard) Close() error {
	x.conn.Close()
	<-x.done
	return nil
}

// Watch asks the server for events of changes of the owner.
func (x *x11Clipboard) Watch(changed func()) error {
	x.mu.Lock()
	x.changed = changed
	x.mu.Unlock()
	return x.ask(context.Background(), func() error {
		if err := xfixes.Init(x.conn.Conn); err != nil {
			return fault.Unsupported("%s has no XFixes, which reports changes of the clipboard", x.conn)
		}
		if _, err := xfixes.QueryVersion(x.conn.Conn, 5, 0).Reply(); err != nil {
			return err
		}
		mask := uint32(xfixes.SelectionEventMaskSetSelectionOwner)
		return xfixes.SelectSelectionInputChecked(x.conn.Conn, x.window, x.known("CLIPBOARD"), mask).Check()
	})
}

// loop handles events until the connection ends. It waits for no reply: those come after the events.
func (x *x11Clipboard) loop() {
	defer close(x.done)
	for {
		event, fail := x.conn.WaitForEvent()
		if event == nil && fail == nil {
			return
		}
		switch event := event.(type) {
		case xproto.SelectionRequestEvent:
			x.serve(event)
		case xproto.SelectionClearEvent:
			x.lost(event)
		case xproto.SelectionNotifyEvent:
			x.toReader(event.Requestor, event)
		case xproto.PropertyNotifyEvent:
			x.property(event)
		case xproto.DestroyNotifyEvent:
			x.forget(event.Window)
		case xfixes.SelectionNotifyEvent:
			x.mu.Lock()
			changed := x.changed
			x.mu.Unlock()
			if event.Owner != x.window && event.Owner != 0 && changed != nil {
				changed()
			}
		}
	}
}

func (x *x11Clipboard) property(event xproto.PropertyNotifyEvent) {
	if event.Window == x.window && event.Atom == x.known("QUANTIX_TIME") {
		x.mu.Lock()
		stamp := x.stamp
		x.stamp = nil
		x.mu.Unlock()
		if stamp != nil {
			stamp <- event.Time
		}
		return
	}
	x.toReader(event.Window, event)
	if event.State == xproto.PropertyDelete {
		x.sendMore(transfer{event.Window, event.Atom})
	}
}

// toReader passes an event to who reads with a window.
func (x *x11Clipboard) toReader(window xproto.Window, event xgb.Event) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.reader == nil || x.reader.window != window || x.reader.events == nil {
		return
	}
	select {
	case x.reader.events <- event:
	default: // an owner that floods us: the read fails by its silence
	}
}

// lost drops what is not ours any more.
func (x *x11Clipboard) lost(event xproto.SelectionClearEvent) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if o := x.owned[event.Selection]; o != nil && int32(event.Time-o.since) >= 0 { // else it is about an earlier time
		delete(x.owned, event.Selection)
	}
}

// Write makes contents those of a selection.
func (x *x11Clipboard) Write(ctx context.Context, primary bool, contents []Content) error {
	select {
	case <-x.writing:
		defer func() { x.writing <- struct{}{} }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	o := &owned{encodings: encodings(contents)}
	err := x.ask(ctx, func() error {
		for _, e := range o.encodings {
			atom, err := x.atom(e.name)
			if err != nil {
				return err
			}
			as, err := x.atom(e.as)
			if err != nil {
				return err
			}
			o.atoms, o.as = append(o.atoms, atom), append(o.as, as)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if o.since, err = x.now(ctx); err != nil {
		return err
	}
	selection := x.selection(primary)
	x.mu.Lock()
	before := x.owned[selection]
	x.owned[selection] = o // requests may come before the reply
	x.mu.Unlock()
	err = x.ask(ctx, func() error {
		xproto.SetSelectionOwner(x.conn.Conn, x.window, selection, o.since)
		reply, err := xproto.GetSelectionOwner(x.conn.Conn, selection).Reply()
		if err == nil && reply.Owner != x.window {
			err = fault.Wrapf(fault.ErrChanged, "another program has set the clipboard at the same time")
		}
		return err
	})
	if err != nil {
		x.mu.Lock()
		defer x.mu.Unlock()
		if x.owned[selection] == o {
			delete(x.owned, selection)
			if before != nil {
				x.owned[selection] = before
			}
		}
	}
	return err
}

// now returns the server's time, by a change of a property.
func (x *x11Clipboard) now(ctx context.Context) (xproto.Timestamp, error) {
	stamp := make(chan xproto.Timestamp, 1)
	x.mu.Lock()
	x.stamp = stamp
	x.mu.Unlock()
	err := x.ask(ctx, func() error {
		return xproto.ChangePropertyChecked(x.conn.Conn, xproto.PropModeAppend, x.window, x.known("QUANTIX_TIME"), x.known("INTEGER"),
			32, 0, nil).Check()
	})
	if err != nil {
		return 0, err
	}
	select {
	case time := <-stamp:
		return time, nil
	case <-x.done:
		return 0, x.ended()
	case <-time.After(answerWithin):
		return 0, fault.Wrapf(context.DeadlineExceeded, "%s does not answer", x.conn)
	}
}

func (x *x11Clipboard) ended() error {
	return fault.Wrapf(fault.ErrBusy, "%s has ended the connection", x.conn)
}

// owner returns the window that owns a selection, 0 if there is none, and what it has if it is ours.
func (x *x11Clipboard) owner(ctx context.Context, selection xproto.Atom) (window xproto.Window, ours *owned, err error) {
	err = x.ask(ctx, func() error {
		reply, err := xproto.GetSelectionOwner(x.conn.Conn, selection).Reply()
		if err == nil {
			window = reply.Owner
		}
		return err
	})
	if err != nil || window != x.window {
		return window, nil, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return window, x.owned[selection], nil
}

// Offered asks the owner in which types it has content.
func (x *x11Clipboard) Offered(ctx context.Context, primary bool) ([]Kind, []string, error) {
	selection := x.selection(primary)
	owner, ours, err := x.owner(ctx, selection)
	if err != nil || owner == 0 {
		return nil, nil, err
	}
	var names []string
	if ours != nil {
		for _, e := range ours.encodings {
			names = append(names, e.name)
		}
		return kindsOf(names), names, nil
	}
	_, data, err := x.fetch(ctx, selection, x.known("TARGETS"), 4*maxTypes)
	if err != nil {
		return nil, nil, err
	}
	err = x.ask(ctx, func() error {
		for ; len(data) >= 4; data = data[4:] {
			name, err := x.nameOf(xproto.Atom(xgb.Get32(data)))
			if err != nil {
				return err
			}
			if !slices.Contains(atomNames, name) {
				names = append(names, name)
			}
		}
		return nil
	})
	return kindsOf(names), names, err
}

// Read reads a selection in the best type of a kind that its owner has.
func (x *x11Clipboard) Read(ctx context.Context, primary bool, kind Kind, names []string, limit int) ([]byte, error) {
	name, selection := typeOf(kind, names), x.selection(primary)
	if name == "" {
		return nil, errNotOffered(kind)
	}
	_, ours, err := x.owner(ctx, selection)
	if err != nil {
		return nil, err
	}
	if ours != nil { // it need not pass through the server
		return ours.read(kind, name, limit)
	}
	var target xproto.Atom
	if err := x.ask(ctx, func() (err error) { target, err = x.atom(name); return err }); err != nil {
		return nil, err
	}
	as, data, err := x.fetch(ctx, selection, target, limit)
	if err != nil {
		return nil, err
	}
	if as == xproto.AtomString && kind == Text { // whatever was asked for
		name = "STRING"
	}
	return decode(kind, name, data)
}

// read returns what is ours in a type.
func (o *owned) read(kind Kind, name string, limit int) ([]byte, error) {
	for _, e := range o.encodings {
		if e.name != name {
			continue
		}
		data := e.make()
		if len(data) > limit {
			return nil, errTooLarge(limit)
		}
		return decode(kind, name, data)
	}
	return nil, errNotOffered(kind)
}

// notOffered is the error of an owner that does not have what was asked for.
func notOffered() error {
	return fault.Wrapf(fs.ErrNotExist, "the program that owns the clipboard does not give its content")
}
