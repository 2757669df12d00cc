package exec

import (
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins/internal/freeze"
)

// A quick probe answers for file systems that can be changed and for what is not there, and not for one that is frozen; it ends
// once that is thawed.
func TestQuickProbe(t *testing.T) {
	r, table := room(t, Config{})
	point := newFreezableDisk(t, table)
	f := &r.freezes
	f.looking.Lock()
	defer f.looking.Unlock()
	for range 3 { // on a busy machine it may not answer in time
		eventually(t, "it answers, and finds nothing frozen", func() bool {
			return f.nothingFrozen(r, []string{"/", point, "/nonexistent"})
		})
	}
	former := f.quick
	target, err := freeze.Open(point)
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	if err := target.Freeze(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	found := !f.nothingFrozen(r, []string{"/", point})
	took := time.Since(began)
	if _, err := target.Thaw(); err != nil {
		t.Fatal(err)
	}
	if !found {
		t.Error("it does not find a file system that is frozen")
	}
	if took < quickTime {
		t.Errorf("it gave up after %v", took)
	}
	if f.quick != nil {
		t.Error("one that hangs is kept")
	}
	eventually(t, "another one answers", func() bool { return f.nothingFrozen(r, []string{"/", point}) })
	if f.quick == former {
		t.Error("no other one is started")
	}
}
