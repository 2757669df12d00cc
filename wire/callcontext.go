package wire

import "context"

// maxIdleContexts bounds the contexts that wait for another call, of each kind.
const maxIdleContexts = 8

// takeContext gives a call its context: for one of which there are many, that of a former one that was not cancelled, where
// there is one.
func (c *Conn) takeContext(parent context.Context, s *servedCall) {
	if s.again {
		select {
		case r := <-c.idleContexts(s):
			s.running.ctx, s.running.cancel = r.ctx, r.cancel
			return
		default:
		}
	}
	s.running.ctx, s.running.cancel = context.WithCancelCause(parent)
}

// callContext is the context of a call.
type callContext struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
}

func (c *Conn) idleContexts(s *servedCall) chan callContext {
	if s.mutates {
		return c.lasting
	}
	return c.leaving
}

// giveContext ends the use of a context by a call that is over.
func (c *Conn) giveContext(s *servedCall) {
	if s.again && s.running.ctx.Err() == nil {
		select {
		case c.idleContexts(s) <- callContext{s.running.ctx, s.running.cancel}:
			if c.over.Load() {
				c.dropContexts()
			}
			return
		default:
		}
	}
	s.running.cancel(nil)
}

// dropContexts ends the contexts that wait, which the agent would hold.
func (c *Conn) dropContexts() {
	for {
		select {
		case r := <-c.lasting:
			r.cancel(nil)
		case r := <-c.leaving:
			r.cancel(nil)
		default:
			return
		}
	}
}
