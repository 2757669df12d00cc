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

// The rollback of a write does not hold the names of a directory in which others made any number of them.
func TestNamesBesideAWriteAreNotHeld(t *testing.T) {
	const n, most = 20_000, 1 << 20 // bytes: all of the names have more than four times as many
	p := newMemoryDirs(t)
	swept, before := 0, int64(0)
	g := newGuest(t, p, func(c *Config) {
		c.Step = func(step string) error {
			if step == "restore.sweep" {
				if rise := liveHeap() - before; rise > most {
					t.Errorf("%d KiB are held", rise>>10)
				}
				swept++
			}
			return nil
		}
	})
	tx := g.begin(t)
	g.mustCall(t, tx, "file.write", &pb.WriteFileArgs{Path: "/etc/new", Content: []byte("ours")})
	tx.Mark()
	at := func(name string) string { return filepath.Join(p.files, "etc", name) }
	err := errors.Join(os.WriteFile(at("first"), nil, 0o644), os.Mkdir(at(".quantix-kvm-0.tmp"), 0o755))
	for i := range n {
		err = errors.Join(err, os.Link(at("first"), at(strings.Repeat("n", 200)+fmt.Sprint(i))))
	}
	if err != nil {
		t.Fatal(err)
	}
	before = liveHeap()
	if report := tx.Rollback(t.Context()); report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK || swept != 1 {
		t.Errorf("%+v, swept %d", report, swept)
	}
}

// A declared tree in which a command made more than is kept of one is durable all the same, with the file system that it is on.
func TestATreeThatGrewIsMadeDurable(t *testing.T) {
	p := newMemoryDirs(t)
	all, files := 0, 0
	g := newGuest(t, p, func(c *Config) {
		c.Step = func(step string) error {
			switch step {
			case "commit.syncall":
				all++
			case "commit.syncfile":
				files++
			}
			return nil
		}
	})
	tx := g.begin(t)
	if _, err := tx.BeforeTouch(t.Context(), "/etc/app.d"); err != nil {
		t.Fatal(err)
	}
	var err error
	for i := range maxObjects + 10 {
		err = errors.Join(err, os.Mkdir(filepath.Join(p.files, "etc/app.d", fmt.Sprint(i)), 0o755))
	}
	if err = errors.Join(err, tx.Commit(t.Context(), committedReply())); err != nil {
		t.Fatal(err)
	}
	if all != 1 || files > maxObjects {
		t.Errorf("%d syncs of a file system, %d of files", all, files)
	}
}
