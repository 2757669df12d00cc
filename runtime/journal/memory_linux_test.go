package journal

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// liveHeap returns how many bytes of the heap are in use.
func liveHeap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// A transaction keeps its records on disk alone: neither its steps nor its recovery fill the memory.
func TestRecordsStayOnDisk(t *testing.T) {
	const most = 3 << 20
	p := newTestDirs(t)
	for i := range 300 {
		if err := os.WriteFile(filepath.Join(p.files, fmt.Sprint(i)), make([]byte, 15<<10), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	g := newGuest(t, p, nil)
	before := liveHeap()
	tx := g.begin(t)
	for i := range 300 {
		if err := tx.Before(t.Context(), fmt.Sprintf("/%d", i)); err != nil {
			t.Fatal(err)
		}
		tx.Mark()
	}
	for range 15 {
		if err := tx.Undo(t.Context(), "undo", &pb.PathArgs{Path: strings.Repeat("x", maxInverse-100)}); err != nil {
			t.Fatal(err)
		}
		tx.Mark()
	}
	if rise := liveHeap() - before; rise > most {
		t.Errorf("a transaction of 32 MiB takes %d MiB", rise>>20)
	}
	if err := g.close(); err != nil {
		t.Fatal(err)
	}
	ran := 0
	g = newGuest(t, p, func(c *Config) {
		c.Run = func(context.Context, string, proto.Message) (bool, error) {
			if rise := liveHeap() - before; rise > most+2*maxInverse {
				t.Errorf("its recovery takes %d MiB", rise>>20)
			}
			ran++
			return false, nil
		}
	})
	list, err := g.journal.Recover(t.Context(), nil)
	if err != nil || len(list) != 1 || list[0].Err != nil || ran != 15 {
		t.Errorf("%d ran, %v, %v", ran, list, err)
	}
}

// What takes operations back is bounded, and what is over it is refused before it is written.
func TestInversesAreBounded(t *testing.T) {
	g := newGuest(t, newTestDirs(t), func(c *Config) {
		c.Run = func(context.Context, string, proto.Message) (bool, error) { return false, nil }
	})
	tx := g.begin(t)
	undo := func(n int) error { return tx.Undo(t.Context(), "undo", &pb.PathArgs{Path: strings.Repeat("x", n)}) }
	if err := undo(maxInverse); !errors.Is(err, fault.ErrTooLarge) {
		t.Errorf("one: %v", err)
	}
	var err error
	for n := 0; err == nil && n <= maxInverses/maxInverse+1; n++ {
		err = undo(maxInverse - 100)
	}
	if !errors.Is(err, fault.ErrTooLarge) {
		t.Errorf("many: %v", err)
	}
	if tx.Err() != nil {
		t.Error(tx.Err())
	}
	if report := tx.Rollback(t.Context()); report.Halted {
		t.Error(report)
	}
}
