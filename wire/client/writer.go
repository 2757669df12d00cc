package client

import (
	"context"
	"io"
	"net"
	"sync"
	"time"
)

// writer writes frames, one after the other and each whole: a context that ends gives the caller back, never half a frame
// to the channel.
//
//	caller ──turn──► write ──► done
//	                   └─ ctx ends in the middle ──► the rest is written by a goroutine, which keeps the turn
type writer struct {
	channel io.Writer
	turn    chan struct{} // holds a token while somebody writes

	mu     sync.Mutex
	closed bool           // nothing is begun any more
	rests  sync.WaitGroup // goroutines that write what nobody waits for
}

func newWriter(channel io.Writer) *writer {
	return &writer{channel: channel, turn: make(chan struct{}, 1)}
}

// behind runs f on a goroutine of its own. False: the writer is closed, and f was not run.
func (w *writer) behind(f func()) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		w.rests.Go(f)
	}
	return !w.closed
}

// close waits for what is still being written. The channel must be closed before, which ends that.
func (w *writer) close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.rests.Wait()
}

// deadliner is a channel whose writes can be interrupted, as those of the net and os packages.
type deadliner interface{ SetWriteDeadline(time.Time) error }

// write writes a frame, which is the writer's from now on. Where ctx ends first its cause is the error; the frame then
// goes out later, or not at all if none of it had.
func (w *writer) write(ctx context.Context, frame []byte) error {
	select {
	case w.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	channel, can := w.channel.(deadliner)
	switch {
	case ctx.Done() == nil:
		_, err := w.channel.Write(frame)
		<-w.turn
		return err
	case !can:
		return w.aside(ctx, frame)
	}
	n, err := interruptible(ctx, channel, w.channel, frame)
	if ctx.Err() == nil || err == nil {
		<-w.turn
		return err
	}
	if n == 0 {
		<-w.turn
		return context.Cause(ctx)
	}
	rest := func() {
		_, _ = w.channel.Write(frame[n:]) // a failure is the channel's end, which the reader tells
		<-w.turn
	}
	if !w.behind(rest) {
		<-w.turn
	}
	return context.Cause(ctx)
}

// interruptible writes until ctx ends. n is how much it wrote.
func interruptible(ctx context.Context, deadline deadliner, to io.Writer, frame []byte) (n int, err error) {
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

// aside writes on a goroutine of its own, for a channel that cannot be interrupted.
func (w *writer) aside(ctx context.Context, frame []byte) error {
	written := make(chan error, 1)
	begun := w.behind(func() {
		_, err := w.channel.Write(frame)
		<-w.turn
		written <- err
	})
	if !begun {
		<-w.turn
		return net.ErrClosed
	}
	select {
	case err := <-written:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// later writes a frame when the channel takes it, or never if that is closed first. It does not wait for long.
func (w *writer) later(frame []byte) {
	soon, stop := context.WithTimeout(context.Background(), laterWithin)
	defer stop()
	done := make(chan struct{})
	begun := w.behind(func() {
		defer close(done)
		_ = w.write(context.Background(), frame)
	})
	if !begun {
		return
	}
	select {
	case <-done:
	case <-soon.Done():
	}
}

// laterWithin is how long a caller stays for what may be its last frame, before it closes the connection perhaps.
const laterWithin = 100 * time.Millisecond
