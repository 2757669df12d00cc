package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/agenttest"
)

// What neither a flag nor the environment says is the user's file's, in the place that XDG has for it.
func TestSettings(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", dir)
	t.Setenv("QUANTIX_SOCKET", "")
	t.Setenv("QUANTIX_VM", "")
	path := filepath.Join(dir, settingsFile)
	write := func(text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := readSettings(); err != nil || s != (settings{}) {
		t.Error(s, err)
	}
	write("# mine\n\nsocket = /run/web one.agent\ntimeout = 2m\n")
	if s, err := readSettings(); err != nil || s != (settings{socket: "/run/web one.agent", timeout: 2 * time.Minute}) {
		t.Error(s, err)
	}
	for from, want := range map[string]struct {
		app *app
		env string
	}{
		"/flag": {&app{socket: "/flag", settings: settings{socket: "/file"}}, "/env"},
		"/env":  {&app{settings: settings{vm: "web"}}, "/env"},
		"/file": {&app{settings: settings{socket: "/file"}}, ""},
	} {
		t.Setenv("QUANTIX_SOCKET", want.env)
		if got, err := want.app.findSocket("/nowhere"); err != nil || got != from {
			t.Error(from, got, err)
		}
	}
	t.Setenv("QUANTIX_SOCKET", "")
	t.Setenv("QUANTIX_VM", "web")
	if _, err := (&app{}).findSocket(t.TempDir()); err == nil || !strings.Contains(err.Error(), "virtual machine web") {
		t.Error(err)
	}
	for text, words := range map[string]string{"vm\n": ":1: \"vm\" is not key = value", "\nvmm = x\n": ":2: there is no setting vmm", "timeout = x\n": "no time"} {
		write(text)
		if _, err := readSettings(); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %v", text, err)
		}
		if code, _, stderr := ctl(t, "-s", "/nowhere", "ping"); code != exitUsage || !strings.Contains(stderr, words) {
			t.Errorf("%q: %d %q", text, code, stderr)
		}
	}
}

// The way out of a terminal is a tilde and a dot at the beginning of a line, in whatever pieces they come; every other key goes
// through.
func TestEscape(t *testing.T) {
	for _, test := range []struct {
		keys, through string
		left          bool
	}{
		{"ls\r~.more", "ls\r", true}, {"~.", "", true}, {"a~.", "a~.", false}, {"\n~~.x", "\n~.x", false}, {"~x\r~", "~x\r", false},
		{"~\r~.", "~\r", true}, {"x\n\n~.", "x\n\n", true},
	} {
		for _, size := range []int{1, 100} {
			left := false
			r := &escapeReader{from: inPieces{strings.NewReader(test.keys), size}, leave: func() { left = true }}
			var got bytes.Buffer
			if _, err := io.Copy(&got, struct{ io.Reader }{r}); err != nil || got.String() != test.through || left != test.left {
				t.Errorf("%q by %d: %q, %v, %v", test.keys, size, got.String(), left, err)
			}
		}
	}
}

// inPieces reads at most so many bytes at a time.
type inPieces struct {
	from io.Reader
	size int
}

func (r inPieces) Read(p []byte) (int, error) { return r.from.Read(p[:min(len(p), r.size)]) }

// A longer --timeout waits for a port that is not there yet.
func TestTimeoutWaitsForThePort(t *testing.T) {
	agenttest.NeedsFirstConnection(t)
	socket, open := agenttest.ListenLater(t)
	if code, _, _ := ctl(t, "-s", socket, "ping", "-c", "1"); code != exitNoAnswer {
		t.Error(code)
	}
	var port sync.WaitGroup
	defer port.Wait()
	port.Go(func() {
		time.Sleep(500 * time.Millisecond) // so that some attempts are made before
		l, err := open()
		if err != nil {
			t.Error(err)
			return
		}
		serveFake(t, l, nil)
	})
	if code, stdout, stderr := ctl(t, "-s", socket, "--timeout", "60s", "ping", "-c", "1"); code != 0 {
		t.Error(code, stdout, stderr)
	}
}

func TestOneOf(t *testing.T) {
	words := []string{"abc", "abd", "x", "xy"}
	for given, want := range map[string]string{"abc": "abc", "x": "x", "xy": "xy", "q": "q", "abd": "abd"} {
		if got, err := oneOf(given, words); err != nil || got != want {
			t.Error(given, got, err)
		}
	}
	if _, err := oneOf("ab", words); err == nil || !strings.Contains(err.Error(), "abc, abd") {
		t.Error(err)
	}
}
