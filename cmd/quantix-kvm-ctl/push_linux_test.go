package main

import (
	"context"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPipesAreWaitedFor: a pipe that nobody writes to does not keep the command from being interrupted.
func TestPipesAreWaitedFor(t *testing.T) {
	silent, path := t.TempDir()+"/silent", t.TempDir()+"/pipe"
	if err := errors.Join(unix.Mkfifo(silent, 0o600), unix.Mkfifo(path, 0o600)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if file, err := openLocal(ctx, silent); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(file, err)
	}
	go func() { _ = os.WriteFile(path, []byte("content"), 0) }()
	file, err := openLocal(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if got, err := io.ReadAll(file); string(got) != "content" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}
