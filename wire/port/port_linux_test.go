package port

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"time"

	"github.com/mdlayher/vsock"
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
	ports, err := Open(spec, noneOpen)
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
	if _, err := Open("unix:"+path, noneOpen); !errors.Is(err, fs.ErrExist) {
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
	if _, err := Open("unix:"+file, noneOpen); !errors.Is(err, fs.ErrExist) {
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
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		session, err := p.Accept(ctx)
		if err != nil {
			t.Fatal(err)
		}
		conn.Write([]byte("x"))
		b := make([]byte, 2)
		if n, err := session.Read(b); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		conn.Close()
		if _, err := session.Read(b); err != io.EOF {
			t.Fatal(err)
		}
		session.Close()
		session.Close()
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
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		session := <-sessions
		conn.Close()
		if _, err := session.Read(make([]byte, 1)); err != io.EOF {
			t.Error(err)
		}
		session.Close()
	}
}

func TestDevicesThatAreNone(t *testing.T) {
	for _, spec := range []string{filepath.Join(t.TempDir(), "none"), t.TempDir(), "/dev/null/x"} {
		if _, err := Open(spec, noneOpen); err == nil {
			t.Errorf("%s was opened", spec)
		}
	}
	if ports, err := Open("auto", noneOpen); err == nil {
		for _, p := range ports {
			p.Close()
		}
	} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
		t.Error(err)
	}
}

// noneOpen serves anything yet.
func noneOpen(string) bool { return false }

// What is served already is not opened once more.
func TestServedPortsAreLeftOut(t *testing.T) {
	spec := "unix:" + socket(t)
	if ports, err := Open(spec, func(name string) bool { return name == spec }); err != nil || len(ports) > 0 {
		t.Error(ports, err)
	}
}

// loopback skips a test where a machine cannot reach itself over vsock.
func loopback(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("/dev/vsock"); err != nil {
		t.Skip("no vsock: load the module vsock_loopback, as root")
	}
	if cid, err := vsock.ContextID(); err != nil || cid != vsock.Local {
		l, err := vsock.Listen(0, nil)
		if err != nil {
			t.Skip("no vsock:", err)
		}
		defer l.Close()
		c, err := vsock.Dial(vsock.Local, l.Addr().(*vsock.Addr).Port, nil)
		if err != nil {
			t.Skip("no loopback of vsock: load the module vsock_loopback, as root:", err)
		}
		c.Close()
	}
}

// Over vsock only who is allowed is served.
func TestVsockServesWhomItIsToldTo(t *testing.T) {
	loopback(t)
	for _, c := range []struct {
		spec string
		in   bool
	}{
		{"vsock:19443:1:unprivileged", true}, {"vsock:19443:1", false}, {"vsock:19443", false},
		{"vsock:19443:2,77:unprivileged", false},
	} {
		p := open(t, c.spec)
		if p.Name() != "vsock:19443" {
			t.Error(p.Name())
		}
		ctx, stop := context.WithTimeout(t.Context(), 10*time.Second)
		served := make(chan bool, 1)
		go func() {
			session, err := p.Accept(ctx)
			if err == nil {
				io.WriteString(session, "hello")
				session.Close()
			}
			served <- err == nil
		}()
		conn, err := vsock.Dial(vsock.Local, 19443, nil)
		if err != nil {
			t.Fatal(err)
		}
		said, _ := io.ReadAll(conn)
		conn.Close()
		stop()
		if in := string(said) == "hello"; in != c.in || <-served != c.in {
			t.Errorf("%s: served %v, want %v", c.spec, in, c.in)
		}
		p.Close()
	}
}

// A peer that is allowed connects from a port that only root can bind, unless it is said otherwise.
func TestVsockPeersArePrivileged(t *testing.T) {
	for _, c := range []struct {
		listener *vsockListener
		peer     vsock.Addr
		want     bool
	}{
		{&vsockListener{allow: []uint32{2}}, vsock.Addr{ContextID: 2, Port: 1023}, true},
		{&vsockListener{allow: []uint32{2}}, vsock.Addr{ContextID: 2, Port: 1024}, false},
		{&vsockListener{allow: []uint32{2}}, vsock.Addr{ContextID: 3, Port: 1023}, false},
		{&vsockListener{allow: []uint32{2}, unprivileged: true}, vsock.Addr{ContextID: 2, Port: 1024}, true},
		{&vsockListener{allow: []uint32{2}, unprivileged: true}, vsock.Addr{ContextID: 3, Port: 1}, false},
	} {
		if got := c.listener.allowed(&c.peer); got != c.want {
			t.Errorf("allow %v, unprivileged %v: %v allowed: %v", c.listener.allow, c.listener.unprivileged, c.peer, got)
		}
	}
}

func TestVsockSpecifications(t *testing.T) {
	for _, spec := range []string{"vsock:x", "vsock:1:", "vsock:1::unprivileged", "vsock:1:2:else", "vsock:1:2,", "vsock:99999999999"} {
		if _, err := Open(spec, noneOpen); err == nil || !strings.Contains(err.Error(), "vsock:") {
			t.Errorf("%s: %v", spec, err)
		}
	}
}
