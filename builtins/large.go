package builtins

import "context"

// largeCall is how many bytes of arguments, of a file or of an answer, a script's call holds without asking for more.
const largeCall = 256 << 10

type largeKey struct{}

// WithLarge returns a context for the calls of a script: take is asked before one holds more than some 100 KiB. It waits until
// there is as much of what all scripts together may hold for such calls, which is given back when the call is answered. A
// script that a call runs, as the test of another one, has the share of that call, and waits for it no longer than its own
// context lasts, which take is given.
func WithLarge(ctx context.Context, take func(ctx context.Context, size int64) error) context.Context {
	if ctx.Value(largeKey{}) != nil {
		return ctx
	}
	return context.WithValue(ctx, largeKey{}, take)
}

// Large waits until this call may hold size bytes, which it may at once if they are few, or if no script calls. It comes
// before what may hang, and nobody waits for another call behind it.
func Large(ctx context.Context, size int64) error {
	take, ok := ctx.Value(largeKey{}).(func(context.Context, int64) error)
	if !ok || size <= largeCall {
		return nil
	}
	return take(ctx, size)
}
