package image

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// entries parses a newc archive into name and content, with the mode in front of it in octal.
func entries(t *testing.T, data []byte) map[string]string {
	t.Helper()
	found := map[string]string{}
	for at := 0; ; {
		field := func(i int) int {
			n, err := strconv.ParseUint(string(data[at+6+8*i:at+14+8*i]), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			return int(n)
		}
		if magic := string(data[at : at+6]); magic != "070701" {
			t.Fatalf("entry at %d begins with %q", at, magic)
		}
		mode, size, nameSize := field(1), field(6), field(11)
		name := string(data[at+110 : at+110+nameSize-1])
		begin := (at + 110 + nameSize + 3) &^ 3
		if name == "TRAILER!!!" {
			return found
		}
		found[name] = strconv.FormatInt(int64(mode), 8) + " " + string(data[begin:begin+size])
		at = (begin + size + 3) &^ 3
	}
}

func TestInitramfs(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"init": "#!early", "modules/10-a.ko": "module", "probe": "program"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	data, err := Initramfs(filepath.Join(dir, "init"), filepath.Join(dir, "modules"),
		map[string]string{"probe": filepath.Join(dir, "probe")}, map[string]string{"a.service": "[Unit]"})
	if err != nil {
		t.Fatal(err)
	}
	got := entries(t, data)
	for name, want := range map[string]string{
		"dev": "40755 ", "newroot": "40755 ", "init": "100755 #!early", "modules/10-a.ko": "100755 module",
		"rig/probe": "100755 program", "units/a.service": "100644 [Unit]",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %q", name, got[name], want)
		}
	}
	if _, err := Initramfs(filepath.Join(dir, "none"), filepath.Join(dir, "modules"), nil, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without an init: %v", err)
	}
}

func TestHashTellsPartsApart(t *testing.T) {
	for _, other := range [][]string{{"a", "bc"}, {"abc"}, {"ab", "c", ""}} {
		if Hash("ab", "c") == Hash(other...) {
			t.Errorf("ab, c and %q have one hash", other)
		}
	}
}

func TestStepsStopAtFailure(t *testing.T) {
	// Each text is one shell run; without this a failing line in the middle would give a half-made image.
	for _, text := range []string{customize, pack} {
		if !strings.HasPrefix(strings.TrimSpace(text), "set -e\n") {
			t.Errorf("a step does not stop at its first failure: %.40q", text)
		}
	}
}

func TestFailedBuildLeavesNothing(t *testing.T) {
	cache := t.TempDir()
	reason := errors.New("no archive")
	_, err := Layer(cache, "root-x", func(tmp string) error {
		os.WriteFile(filepath.Join(tmp, "half"), []byte("x"), 0o600)
		return reason
	})
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip("no locks on this platform: layers are built on Linux")
	}
	if !errors.Is(err, reason) {
		t.Fatalf("got %v", err)
	}
	for _, name := range []string{"root-x", "building"} {
		if _, err := os.Stat(filepath.Join(cache, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there: %v", name, err)
		}
	}
}

func TestLayerIsBuiltOnce(t *testing.T) {
	cache := t.TempDir()
	const callers = 8
	builds := make(chan string, callers)
	errs := make(chan error, callers)
	for range callers {
		go func() {
			dir, err := Layer(cache, "root-x", func(tmp string) error {
				builds <- tmp
				return os.WriteFile(filepath.Join(tmp, "whole"), []byte("yes"), 0o600)
			})
			if err == nil {
				// Whoever gets a layer gets it whole.
				var data []byte
				if data, err = os.ReadFile(filepath.Join(dir, "whole")); err == nil && !bytes.Equal(data, []byte("yes")) {
					err = errors.New("half a layer")
				}
			}
			errs <- err
		}()
	}
	for range callers {
		if err := <-errs; errors.Is(err, errors.ErrUnsupported) {
			t.Skip("no locks on this platform: layers are built on Linux")
		} else if err != nil {
			t.Error(err)
		}
	}
	if len(builds) != 1 {
		t.Errorf("built %d times, want once", len(builds))
	}
}

func TestPrune(t *testing.T) {
	base := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", base) // where os.UserCacheDir looks on Linux
	cache, err := Cache()
	if err != nil || filepath.Dir(cache) != base {
		t.Skipf("the cache is %s (%v): this platform's does not move with XDG_CACHE_HOME", cache, err)
	}
	old := time.Now().Add(-48 * time.Hour)
	for _, name := range []string{"vm-old", "root-old", "vm-new", "other"} {
		dir := filepath.Join(cache, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if name != "vm-new" {
			if err := os.Chtimes(dir, old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := Prune("", 24*time.Hour); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"vm-old": false, "root-old": false, "vm-new": true, "other": true} {
		if _, err := os.Stat(filepath.Join(cache, name)); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", name, err == nil, want)
		}
	}
}
