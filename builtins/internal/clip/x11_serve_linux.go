package clip

import (
	"time"

	"github.com/jezek/xgb"
	"github.com/jezek/xgb/xproto"
)

const (
	maxSending = 32               // transfers in pieces at the same time
	idleSend   = 10 * time.Second // one whose receiver takes nothing for that long is given up
)

// transfer names what is sent in pieces: the window that asked, and the property by which it takes them.
type transfer struct {
	window   xproto.Window
	property xproto.Atom
}

// sending is what is left to be sent.
type sending struct {
	as   xproto.Atom
	data []byte
	last bool // the empty piece at the end was sent
	at   time.Time
}

// serve answers who asks for a selection that is ours.
func (x *x11Clipboard) serve(event xproto.SelectionRequestEvent) {
	property := event.Property
	if property == 0 { // an obsolete client (ICCCM 2.2)
		property = event.Target
	}
	x.mu.Lock()
	o := x.owned[event.Selection]
	x.mu.Unlock()
	notify := xproto.SelectionNotifyEvent{
		Time: event.Time, Requestor: event.Requestor, Selection: event.Selection, Target: event.Target,
	}
	if o != nil && x.convert(o, event.Requestor, event.Target, property, true) {
		notify.Property = property
	}
	xproto.SendEvent(x.conn.Conn, false, event.Requestor, xproto.EventMaskNoEvent, string(notify.Bytes()))
}

// convert writes a selection in a type into the property of a window; false: it is not to be had so.
func (x *x11Clipboard) convert(o *owned, window xproto.Window, target, property xproto.Atom, several bool) bool {
	switch target {
	case x.known("TARGETS"):
		list := append([]xproto.Atom{x.known("TARGETS"), x.known("MULTIPLE"), x.known("TIMESTAMP")}, o.atoms...)
		x.put(window, property, x.known("ATOM"), 32, words(list))
		return true
	case x.known("TIMESTAMP"):
		x.put(window, property, x.known("INTEGER"), 32, words([]xproto.Atom{xproto.Atom(o.since)}))
		return true
	case x.known("MULTIPLE"):
		if several {
			go x.convertSeveral(o, window, property)
		}
		return several
	}
	for i, atom := range o.atoms {
		if atom != target {
			continue
		}
		data := o.encodings[i].make()
		switch {
		case data == nil:
			return false
		case len(data) > x.maxSend:
			return x.beginSend(transfer{window, property}, o.as[i], data)
		}
		x.put(window, property, o.as[i], 8, data)
		return true
	}
	return false
}

// convertSeveral converts for the pairs of types and properties in a property, in which it clears the properties of those that
// are not to be had. It waits for the server, and so has a goroutine of its own.
func (x *x11Clipboard) convertSeveral(o *owned, window xproto.Window, property xproto.Atom) {
	reply, err := xproto.GetProperty(x.conn.Conn, false, window, property, xproto.GetPropertyTypeAny, 0, 2*maxTypes).Reply()
	if err != nil || reply.Format != 32 {
		return
	}
	pairs := reply.Value
	for i := 0; i+8 <= len(pairs); i += 8 {
		target, to := xproto.Atom(xgb.Get32(pairs[i:])), xproto.Atom(xgb.Get32(pairs[i+4:]))
		if to == 0 || !x.convert(o, window, target, to, false) {
			xgb.Put32(pairs[i+4:], 0)
		}
	}
	x.put(window, property, x.known("ATOM_PAIR"), 32, pairs)
}

func (x *x11Clipboard) put(window xproto.Window, property, as xproto.Atom, format byte, data []byte) {
	n := uint32(len(data)) / uint32(format/8)
	xproto.ChangeProperty(x.conn.Conn, xproto.PropModeReplace, window, property, as, format, n, data)
}

func words(list []xproto.Atom) []byte {
	b := make([]byte, 4*len(list))
	for i, atom := range list {
		xgb.Put32(b[4*i:], uint32(atom))
	}
	return b
}

// beginSend announces that content comes in pieces (ICCCM 2.7.2).
func (x *x11Clipboard) beginSend(to transfer, as xproto.Atom, data []byte) bool {
	x.mu.Lock()
	for key, s := range x.out {
		if time.Since(s.at) > idleSend {
			delete(x.out, key)
		}
	}
	full := len(x.out) >= maxSending
	if !full {
		x.out[to] = &sending{as: as, data: data, at: time.Now()}
	}
	x.mu.Unlock()
	if full {
		return false
	}
	xproto.ChangeWindowAttributes(x.conn.Conn, to.window, xproto.CwEventMask, []uint32{watchedMask})
	x.put(to.window, to.property, x.known("INCR"), 32, words([]xproto.Atom{xproto.Atom(len(data))}))
	return true
}

// sendMore sends the next piece when the one before was taken.
func (x *x11Clipboard) sendMore(to transfer) {
	x.mu.Lock()
	s := x.out[to]
	if s == nil {
		x.mu.Unlock()
		return
	}
	piece := s.data[:min(len(s.data), x.maxSend)]
	s.data, s.at = s.data[len(piece):], time.Now()
	if s.last {
		delete(x.out, to)
	}
	last := s.last
	s.last = len(piece) == 0
	x.mu.Unlock()
	if !last {
		x.put(to.window, to.property, s.as, 8, piece)
	}
}

// forget drops what a window that is gone will not take.
func (x *x11Clipboard) forget(window xproto.Window) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for to := range x.out {
		if to.window == window {
			delete(x.out, to)
		}
	}
}
