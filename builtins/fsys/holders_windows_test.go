package fsys

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/windows"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// The processes that hold a file open are named where the restart manager knows them. Wine's knows none, so it is asked, and
// its answer is given here.
func TestHoldersAreNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	name, _ := windows.UTF16PtrFromString(path)
	h, err := windows.CreateFile(name, windows.GENERIC_READ, windows.FILE_SHARE_READ, nil, windows.OPEN_EXISTING, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer windows.CloseHandle(h)
	holders, err := askRestartManager(path)
	if err != nil {
		t.Error("the restart manager:", err)
	}
	wine := windows.NewLazySystemDLL("ntdll.dll").NewProc("wine_get_version").Find() == nil
	if self := uint32(os.Getpid()); !wine && (len(holders) != 1 || holders[0].pid != self) {
		t.Errorf("the holders are %v, and not process %d", holders, self)
	}
	var asked []string
	holdersOf = func(path string) ([]holder, error) {
		asked = append(asked, filepath.Base(path))
		return []holder{{7, "Editor", ""}, {8, "Host Process", "Spooler"}}, nil
	}
	t.Cleanup(func() { holdersOf = askRestartManager })
	const names = "it is open in Editor (pid 7), Host Process, service Spooler (pid 8)"
	root, err := Open("")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	at, err := root.At(path)
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	dir := filepath.Dir(path)
	other := filepath.Join(dir, "other")
	if err := os.WriteFile(other, []byte("two"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what string
		act  func() error
	}{
		{"replace", func() error { return moveFile(other, path, true) }},
		{"remove", at.Remove},
		{"open", func() error { _, err := openFile(dir, "file", true); return err }},
		{"tree", func() error { return removeTree(t.Context(), filepath.Dir(dir), filepath.Base(dir), nil) }}, // it removes the other one
	} {
		asked = nil
		if err := c.act(); !errors.Is(err, fault.ErrBusy) || !strings.Contains(err.Error(), names) || !slices.Contains(asked, "file") {
			t.Errorf("%s: %v, asked for %v", c.what, err, asked)
		}
	}
	holdersOf = func(string) ([]holder, error) { return nil, errors.ErrUnsupported }
	if err := at.Remove(); !errors.Is(err, fault.ErrBusy) || !strings.Contains(err.Error(), "another process uses it") {
		t.Error("where nobody knows:", err)
	}
	if got, _ := os.ReadFile(path); string(got) != "one" {
		t.Errorf("it is %q", got)
	}
}
