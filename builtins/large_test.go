package builtins_test

import (
	"context"
	"errors"
	"testing"

	"github.com/quantix-kvm/guest-agent/builtins"
)

// A script that a call runs waits for its share no longer than it may run itself.
func TestLargeCallOfANestedScript(t *testing.T) {
	wait := func(ctx context.Context, _ int64) error {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	outer := builtins.WithLarge(t.Context(), wait)
	ended := errors.New("its time is over")
	inner, cancel := context.WithCancelCause(outer)
	cancel(ended)
	inner = builtins.WithLarge(inner, func(context.Context, int64) error { return nil })
	if err := builtins.Large(inner, 1<<20); !errors.Is(err, ended) {
		t.Error(err)
	}
}
