package journal

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Who has the lock is the only writer until the first release, and it is had as a transaction is.
func TestLock(t *testing.T) {
	g := newGuest(t, newTestDirs(t), nil)
	release, err := g.journal.Lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	soon, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := g.journal.Begin(soon, Header{}); !errors.Is(err, fault.ErrBusy) {
		t.Errorf("a transaction began beside the lock: %v", err)
	}
	release()
	release()
	tx, err := g.journal.Begin(t.Context(), Header{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.journal.Lock(soon); !errors.Is(err, fault.ErrBusy) {
		t.Errorf("the lock was had beside a transaction: %v", err)
	}
	if err := tx.Close(t.Context(), nil); err != nil {
		t.Error(err)
	}
}
