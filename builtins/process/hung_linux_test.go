package process

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A process whose command line cannot be read holds up the list once, for a while, and is listed without it. The real one
// waits for a lock or a host; here it is a pipe that nobody writes to.
func TestAProcessThatHangs(t *testing.T) {
	dir, self := t.TempDir(), strconv.Itoa(os.Getpid())
	stat, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	pipe := filepath.Join(dir, self, "cmdline")
	if err := errors.Join(os.Mkdir(filepath.Join(dir, self), 0o755), os.WriteFile(filepath.Join(dir, self, "stat"), stat, 0o644),
		unix.Mkfifo(pipe, 0o600)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // all that still wait for it
		if w, err := os.OpenFile(pipe, os.O_WRONLY|unix.O_NONBLOCK, 0); err == nil {
			w.Close()
		}
	})
	r, by := newRoom(t), func(a, b *entry) int { return a.pid - b.pid }
	limited, cancel := context.WithTimeout(context.Background(), minSpan+hungAfter/4)
	defer cancel()
	if _, err := r.readFrom(limited, dir, &pb.ListProcessesRequest{}, by); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("cancelled in the middle: %v", err)
	}
	for i, most := range []time.Duration{20 * hungAfter, hungAfter} {
		began := time.Now()
		list, err := r.readFrom(context.Background(), dir, &pb.ListProcessesRequest{}, by)
		if took := time.Since(began); err != nil || len(list) != 1 || list[0].CommandLine != "" || list[0].Name == "" || took > most {
			t.Errorf("list %d after %v: %v %v", i, took, list, err)
		}
	}
	r.hung.starts[os.Getpid()]++ // it was another process that hung
	if r.hung.has(&entry{pid: os.Getpid(), start: 1}) {
		t.Error("a process is taken for the one that had its pid before")
	}
}
