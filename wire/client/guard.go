package client

import (
	"context"
	"time"
)

// guard is writer.write for many frames of one context, which it is given once.
type guard struct {
	w         *writer
	ctx       context.Context
	deadline  deadliner // nil: the channel cannot be interrupted
	stop      func() bool
	ended     bool // ctx has ended; guarded by the lock of the writer
	inside    bool // in a write; guarded likewise
	interrupt bool // that write was interrupted; guarded likewise
}

// guard returns a guard until ctx ends. end must be called.
func (w *writer) guard(ctx context.Context) *guard {
	g := &guard{w: w, ctx: ctx}
	g.deadline, _ = w.channel.(deadliner)
	g.stop = context.AfterFunc(ctx, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if g.ended = true; g.inside && g.deadline != nil {
			g.interrupt = true
			g.deadline.SetWriteDeadline(time.Unix(1, 0))
		}
	})
	return g
}

func (g *guard) end() { g.stop() }

// enter begins a write; false: ctx has ended.
func (g *guard) enter() bool {
	g.w.mu.Lock()
	defer g.w.mu.Unlock()
	g.inside = !g.ended
	return g.inside
}

// leave ends a write, and reports whether it was interrupted.
func (g *guard) leave() bool {
	g.w.mu.Lock()
	defer g.w.mu.Unlock()
	g.inside = false
	return g.interrupt
}

// write is writer.write. The calls may not overlap.
func (g *guard) write(frame []byte) error {
	w := g.w
	if g.deadline == nil {
		return w.write(g.ctx, frame)
	}
	select {
	case w.writing <- struct{}{}:
	case <-g.ctx.Done():
		return context.Cause(g.ctx)
	}
	if !g.enter() {
		<-w.writing
		return context.Cause(g.ctx)
	}
	n, err := w.channel.Write(frame)
	if g.leave() {
		if clear := g.deadline.SetWriteDeadline(time.Time{}); err == nil {
			err = clear
		}
	}
	return w.written(g.ctx, frame, n, err)
}
