package port

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func socket(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "p-") // short: a socket's path has at most 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

func open(t *testing.T, spec string) Port {
	t.Helper()
	ports, err := Open(spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ports[0].Close() })
	return ports[0]
}

func TestSocketIsPrivateAndTakenAway(t *testing.T) {
	path := socket(t)
	p := open(t, "unix:"+path)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatal(info, err)
	}
	if _, err := Open("unix:" + path); !errors.Is(err, fs.ErrExist) {
		t.Error("a second agent took the socket:", err)
	}
	if p.Name() != "unix:"+path || p.Close() != nil {
		t.Error(p.Name())
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// A socket that a dead process left is taken over; anything else is left alone.
func TestWhatIsThereAlready(t *testing.T) {
	path := socket(t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	open(t, "unix:"+path)
	file := filepath.Join(filepath.Dir(path), "f")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open("unix:" + file); !errors.Is(err, fs.ErrExist) {
		t.Error(err)
	}
	if content, _ := os.ReadFile(file); string(content) != "precious" {
		t.Error("the file is gone")
	}
}

func TestSessionsAndTheirEnd(t *testing.T) {
	path := socket(t)
	p := open(t, "unix:"+path)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for range 50 {
		far, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		near, err := p.Accept(ctx)
		if err != nil {
			t.Fatal(err)
		}
		far.Write([]byte("x"))
		b := make([]byte, 2)
		if n, err := near.Read(b); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		far.Close()
		if _, err := near.Read(b); err != io.EOF {
			t.Fatal(err)
		}
		near.Close()
		near.Close()
	}
	stopped := make(chan error, 1)
	go func() { _, err := p.Accept(ctx); stopped <- err }()
	cancel()
	select {
	case err := <-stopped:
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("Accept goes on after the end of its context")
	}
}

// The agent connects to somebody else's socket as soon as it is there, and again after each session.
func TestConnecting(t *testing.T) {
	path := socket(t)
	p := open(t, "unix-connect:"+path)
	sessions := make(chan io.ReadWriteCloser)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		for {
			s, err := p.Accept(ctx)
			if err != nil {
				return
			}
			sessions <- s
		}
	}()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 3 {
		far, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		near := <-sessions
		far.Close()
		if _, err := near.Read(make([]byte, 1)); err != io.EOF {
			t.Error(err)
		}
		near.Close()
	}
}

func TestDevicesThatAreNone(t *testing.T) {
	for _, spec := range []string{filepath.Join(t.TempDir(), "none"), t.TempDir(), "/dev/null/x"} {
		if _, err := Open(spec); err == nil {
			t.Errorf("%s was opened", spec)
		}
	}
	if ports, err := Open("auto"); err == nil {
		for _, p := range ports {
			p.Close()
		}
	} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
		t.Error(err)
	}
}
