package journal

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// What others append is kept, also where a lease delays the rollback.
func TestAppendIsUndoneUnderALease(t *testing.T) {
	for _, hold := range []time.Duration{150 * time.Millisecond, 2 * time.Second} {
		p := newTestDirs(t)
		path := filepath.Join(p.files, "log")
		old := bytes.Repeat([]byte("a line that was there\n"), 100_000)
		if err := os.WriteFile(path, old, 0o640); err != nil {
			t.Fatal(err)
		}
		g := newGuest(t, p, nil)
		tx := g.begin(t)
		g.mustCall(t, tx, "file.append", &pb.WriteFileArgs{Path: "/log", Content: []byte("ours\n")})
		tx.Mark()
		appendTo(path, "theirs\n")
		time.AfterFunc(hold, lease(t, path))
		report := tx.Rollback(t.Context())
		if data, err := os.ReadFile(path); err != nil || !bytes.Equal(data, old) {
			t.Errorf("after a lease of %v the file is not as before: %v", hold, err)
		}
		if at := report.Conflicts(); len(at) != 1 || report.Status() != pb.ScriptStatus_SCRIPT_STATUS_ROLLED_BACK {
			t.Fatalf("after a lease of %v: %v", hold, report)
		}
		if data, err := os.ReadFile(filepath.Join(p.files, report.Conflicts()[0])); err != nil || !bytes.Contains(data, []byte("theirs\n")) {
			t.Errorf("what others wrote is %q, %v", data, err)
		}
	}
}

// A directory that cannot be used is tried again while others ask for what it has.
func TestUnusableWhileOthersAsk(t *testing.T) {
	p := newTestDirs(t)
	if err := os.MkdirAll(filepath.Join(p.state, "kept", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	g := newGuest(t, p, func(c *Config) { c.Tolerant = true; c.Prepare = func() error { return errors.New("no disk") } })
	if err := g.journal.RemoveKept(t.Context(), "x", anyPort); err == nil {
		t.Error("something was removed")
	}
	stop := make(chan struct{})
	var asking sync.WaitGroup
	for range 4 {
		asking.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_, _ = g.journal.Stored(Ref{Key: "k"})
				}
			}
		})
	}
	for range 2000 {
		_, _ = g.journal.Recover(t.Context(), nil)
	}
	close(stop)
	asking.Wait()
}
