package clip

import (
	"context"
	"errors"
	"time"

	"github.com/jezek/xgb"
	"github.com/jezek/xgb/xproto"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// fetch asks the owner of a selection for it in a type, and returns what it sends, and of which type it says that to be.
func (x *x11Clipboard) fetch(
	ctx context.Context, selection, target xproto.Atom, limit int,
) (as xproto.Atom, data []byte, err error) {
	select {
	case <-x.reading:
		defer func() { x.reading <- struct{}{} }()
	case <-ctx.Done():
		return 0, nil, context.Cause(ctx)
	}
	r, err := x.beginRead(ctx)
	if err != nil {
		return 0, nil, err
	}
	defer func() { x.endRead(r, err == nil) }()
	at := x.known("QUANTIX_CLIPBOARD")
	xproto.DeleteProperty(x.conn.Conn, r.window, at)
	xproto.ConvertSelection(x.conn.Conn, r.window, selection, target, at, xproto.TimeCurrentTime)
	property := xproto.Atom(0)
	for answered := false; !answered; {
		event, err := x.next(ctx, r)
		if err != nil {
			return 0, nil, err
		}
		if notify, ok := event.(xproto.SelectionNotifyEvent); ok && notify.Selection == selection && notify.Target == target {
			property, answered = notify.Property, true
		}
	}
	if property == 0 {
		return 0, nil, notOffered()
	}
	return x.take(ctx, r, property, limit)
}

// beginRead returns the window to read with, whose events come from now on.
func (x *x11Clipboard) beginRead(ctx context.Context) (*reader, error) {
	x.mu.Lock()
	r := x.reader
	x.mu.Unlock()
	if r == nil {
		r = &reader{}
		if err := x.ask(ctx, func() (err error) { r.window, err = x.newWindow(); return err }); err != nil {
			return nil, err
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.reader, r.events = r, make(chan xgb.Event, 256)
	return r, nil
}

// endRead drops a window to which an owner may send more.
func (x *x11Clipboard) endRead(r *reader, whole bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	r.events = nil
	if !whole {
		x.reader = nil
		xproto.DestroyWindow(x.conn.Conn, r.window)
	}
}

// maxRefused is how much of content that is too large is taken, in bytes.
const maxRefused = 64 << 20

// refuse takes the rest of content that is too large, without reading it, and returns the error that says so. Many programs
// serve nobody any more when somebody has begun to take their content and does not go on.
func (x *x11Clipboard) refuse(ctx context.Context, r *reader, property xproto.Atom, limit, taken int) error {
	for taken <= maxRefused {
		xproto.DeleteProperty(x.conn.Conn, r.window, property)
		for came := false; !came; {
			event, err := x.next(ctx, r)
			if err != nil {
				return errTooLarge(limit)
			}
			notify, ok := event.(xproto.PropertyNotifyEvent)
			came = ok && notify.Atom == property && notify.State == xproto.PropertyNewValue
		}
		_, size, err := x.look(ctx, r, property)
		if err != nil || size == 0 {
			xproto.DeleteProperty(x.conn.Conn, r.window, property)
			return errTooLarge(limit)
		}
		taken += int(size)
	}
	return errTooLarge(limit)
}

// next waits for an event.
func (x *x11Clipboard) next(ctx context.Context, r *reader) (xgb.Event, error) {
	timer := time.NewTimer(Silence)
	defer timer.Stop()
	select {
	case event := <-r.events:
		return event, nil
	case <-timer.C:
		return nil, errSilent()
	case <-x.done:
		return nil, x.ended()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// take reads the property that an owner has written: its content, or what announces that it comes in pieces.
func (x *x11Clipboard) take(
	ctx context.Context, r *reader, property xproto.Atom, limit int,
) (as xproto.Atom, data []byte, err error) {
	as, data, err = x.content(ctx, r, property, nil, limit)
	if err == nil && as == x.known("INCR") {
		size := 0 // at least that much comes, it says
		if len(data) >= 4 {
			size = int(min(xgb.Get32(data), uint32(limit)))
		}
		return x.takePieces(ctx, r, property, make([]byte, 0, size), limit)
	}
	return as, data, err
}

// look returns type and size of a property.
func (x *x11Clipboard) look(ctx context.Context, r *reader, property xproto.Atom) (as xproto.Atom, size uint32, err error) {
	err = x.ask(ctx, func() error {
		reply, err := xproto.GetProperty(x.conn.Conn, false, r.window, property, xproto.GetPropertyTypeAny, 0, 0).Reply()
		if err == nil {
			as, size = reply.Type, reply.BytesAfter
		}
		return err
	})
	return as, size, err
}

// content appends the content of a property to data, which may have limit bytes then, and deletes the property. Where it has
// more than that, the property stays.
func (x *x11Clipboard) content(
	ctx context.Context, r *reader, property xproto.Atom, data []byte, limit int,
) (as xproto.Atom, all []byte, err error) {
	for at, more := uint32(0), true; more; {
		err := x.ask(ctx, func() error { // the server deletes the property with the reply that has the last of it
			reply, err := xproto.GetProperty(x.conn.Conn, true, r.window, property, xproto.GetPropertyTypeAny, at, readPiece/4).Reply()
			if err != nil {
				return err
			}
			size := int(reply.ValueLen) * int(reply.Format) / 8
			if size > len(reply.Value) {
				return fault.Invalid("the X server sent %d bytes in place of %d", len(reply.Value), size)
			}
			if len(data)+size+int(reply.BytesAfter) > limit {
				return tooLarge{errTooLarge(limit), size + int(reply.BytesAfter)}
			}
			if data == nil {
				data = make([]byte, 0, size+int(reply.BytesAfter))
			}
			data = append(data, reply.Value[:size]...)
			at += uint32(size) / 4
			as, more = reply.Type, reply.BytesAfter > 0 && size > 0
			return nil
		})
		if err != nil {
			return 0, nil, err
		}
	}
	return as, data, nil
}

// tooLarge is the error about a property of size bytes, which are too many.
type tooLarge struct {
	error
	size int
}

func (e tooLarge) Unwrap() error { return e.error }

// takePieces appends to data what comes as INCR: each piece when the one before was deleted, and an empty one at the end (ICCCM
// 2.7.2).
func (x *x11Clipboard) takePieces(
	ctx context.Context, r *reader, property xproto.Atom, data []byte, limit int,
) (as xproto.Atom, all []byte, err error) {
	for {
		event, err := x.next(ctx, r)
		if err != nil {
			return 0, nil, err
		}
		notify, ok := event.(xproto.PropertyNotifyEvent)
		if !ok || notify.Atom != property || notify.State != xproto.PropertyNewValue {
			continue
		}
		before := len(data)
		as, data, err = x.content(ctx, r, property, data, limit)
		if large := (tooLarge{}); errors.As(err, &large) {
			return 0, nil, x.refuse(ctx, r, property, limit, before+large.size)
		}
		if err != nil {
			return 0, nil, err
		}
		if len(data) == before {
			return as, data, nil
		}
	}
}
