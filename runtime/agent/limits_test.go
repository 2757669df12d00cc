package agent

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/quantix-kvm/guest-agent/wire/port"
)

// A host that sends garbage, leaves and comes again fills the log no more than one that stays.
func TestWarningsAreLimitedPerPort(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("the agent listens on no unix socket there")
	}
	dir, err := os.MkdirTemp("", "ql-") // short: a socket's path has at most 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	lines := &countingCore{}
	ctx, stop := context.WithCancel(context.Background())
	var closed sync.WaitGroup
	a := New(Config{
		Log:   zap.New(lines),
		Ports: PortsConfig{Open: func(serves func(string) bool) ([]port.Port, error) { return port.Open("unix:"+socket, serves) }},
		Hooks: Hooks{SessionClosed: func(string, string) { closed.Done() }},
	})
	var ran sync.WaitGroup
	ran.Go(func() {
		if err := a.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	defer func() { stop(); ran.Wait() }()
	const sessions = 3 * warnings
	closed.Add(2 * sessions) // each is told twice
	for range sessions {
		conn := dialSoon(t, socket)
		if _, err := conn.Write([]byte("garbage")); err != nil {
			t.Fatal(err)
		}
		conn.Close()
	}
	closed.Wait()
	if n := lines.warnings(); n == 0 || n > warnings {
		t.Errorf("%d warnings about %d sessions of garbage; at most %d belong there", n, sessions, warnings)
	}
}

func dialSoon(t *testing.T, socket string) net.Conn {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			return conn
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// countingCore counts warnings.
type countingCore struct {
	mu sync.Mutex
	n  int
}

func (c *countingCore) warnings() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

func (c *countingCore) Enabled(zapcore.Level) bool        { return true }
func (c *countingCore) With([]zapcore.Field) zapcore.Core { return c }
func (c *countingCore) Sync() error                       { return nil }
func (c *countingCore) Check(e zapcore.Entry, to *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	return to.AddCore(e, c)
}
func (c *countingCore) Write(e zapcore.Entry, _ []zapcore.Field) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.Level == zapcore.WarnLevel {
		c.n++
	}
	return nil
}
