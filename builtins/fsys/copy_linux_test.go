package fsys_test

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// The size of a file of /proc or /sys is no bound of what a copy of it writes.
func TestCopyOfAFileWithoutASizeIsBoundedAndCancelled(t *testing.T) {
	copied := func(ctx context.Context, from string) (int64, error) {
		source, err := os.Open(from)
		must(t, err)
		defer source.Close()
		to, err := os.Create(t.TempDir() + "/copy")
		must(t, err)
		defer to.Close()
		err = fsys.CopyFile(ctx, to, source)
		info, e := to.Stat()
		must(t, e)
		return info.Size(), err
	}
	if n, err := copied(t.Context(), "/proc/self/pagemap"); !errors.Is(err, fault.ErrTooLarge) || n > 17<<20 {
		t.Errorf("an endless file: %d bytes, %v", n, err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := copied(ended, "/proc/self/pagemap"); !errors.Is(err, context.Canceled) || n > 0 {
		t.Errorf("cancelled: %d bytes, %v", n, err)
	}
	for _, path := range []string{"/proc/self/status", "/sys/kernel/mm/transparent_hugepage/enabled"} {
		if _, err := os.Stat(path); err != nil {
			continue
		}
		if n, err := copied(t.Context(), path); n == 0 || err != nil {
			t.Errorf("%s: %d bytes, %v", path, n, err)
		}
	}
}
