package client

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// writer writes frames, one after the other and each whole: when a context ends its caller returns, and the channel never gets
// half a frame.
//
//	caller ──lock──► write ──► unlock
//	                   └─ ctx ends in the middle ──► a goroutine writes the rest, and unlocks then
type writer struct {
	channel io.Writer
	writing chan struct{} // the lock: holds a token during a write

	mu         sync.Mutex
	closed     bool           // no further write begins
	background sync.WaitGroup // goroutines that write for callers which have returned
}

func newWriter(channel io.Writer) *writer {
	return &writer{channel: channel, writing: make(chan struct{}, 1)}
}

// spawn runs f on a goroutine of its own; false: the writer is closed, and f was not run.
func (w *writer) spawn(f func()) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		w.background.Go(f)
	}
	return !w.closed
}

// close waits for what is still being written. The channel must be closed before, which ends that.
func (w *writer) close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.background.Wait()
}

// lost says of an error of the net package what it means; its own words name neither end.
func lost(err error) error {
	var op *net.OpError
	if !errors.As(err, &op) {
		return err
	}
	return fault.Wrapf(err, "the connection to the agent ended: %v", fault.Cause(op.Err))
}

// deadliner is a channel whose writes can be interrupted, as those of the net and os packages.
type deadliner interface{ SetWriteDeadline(time.Time) error }

// write writes a frame, which is the writer's from now on. Where ctx ends first its cause is the error; the frame then
// goes out later, or not at all if none of it had.
func (w *writer) write(ctx context.Context, frame []byte) error {
	select {
	case w.writing <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	channel, can := w.channel.(deadliner)
	switch {
	case ctx.Done() == nil:
		_, err := w.channel.Write(frame)
		<-w.writing
		return lost(err)
	case !can:
		return w.writeInBackground(ctx, frame)
	}
	n, err := writeInterruptible(ctx, channel, w.channel, frame)
	return w.written(ctx, frame, n, err)
}

// written ends a write that could be interrupted, of which n bytes are written. It unlocks, or has that done after the rest.
func (w *writer) written(ctx context.Context, frame []byte, n int, err error) error {
	if ctx.Err() == nil || err == nil {
		<-w.writing
		return lost(err)
	}
	if n == 0 {
		<-w.writing
		return context.Cause(ctx)
	}
	rest := func() {
		_, _ = w.channel.Write(frame[n:]) // a failure is the channel's end, which the reader reports
		<-w.writing
	}
	if !w.spawn(rest) {
		<-w.writing
	}
	return context.Cause(ctx)
}

// writeInterruptible writes until ctx ends. n is how much it wrote.
func writeInterruptible(ctx context.Context, deadline deadliner, to io.Writer, frame []byte) (n int, err error) {
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		deadline.SetWriteDeadline(time.Unix(1, 0))
		close(interrupted)
	})
	n, err = to.Write(frame)
	if !stop() {
		<-interrupted
		if clear := deadline.SetWriteDeadline(time.Time{}); err == nil {
			err = clear
		}
	}
	return n, err
}

// writeInBackground writes on a goroutine of its own, for a channel that cannot be interrupted.
func (w *writer) writeInBackground(ctx context.Context, frame []byte) error {
	written := make(chan error, 1)
	spawned := w.spawn(func() {
		_, err := w.channel.Write(frame)
		<-w.writing
		written <- err
	})
	if !spawned {
		<-w.writing
		return net.ErrClosed
	}
	select {
	case err := <-written:
		return lost(err)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// writeLater writes a frame when the channel takes it, or never if that is closed first. It waits at most for
// writeLaterTimeout.
func (w *writer) writeLater(frame []byte) {
	soon, stop := context.WithTimeout(context.Background(), writeLaterTimeout)
	defer stop()
	done := make(chan struct{})
	spawned := w.spawn(func() {
		defer close(done)
		_ = w.write(context.Background(), frame)
	})
	if !spawned {
		return
	}
	select {
	case <-done:
	case <-soon.Done():
	}
}

// writeLaterTimeout is how long writeLater waits: the caller may close the connection next, and this may be the last frame.
const writeLaterTimeout = 100 * time.Millisecond
