package fault

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/windows"
)

// Errors of Windows get the codes and words that others have for the same, whoever wrapped them.
func TestErrorsOfWindows(t *testing.T) {
	for _, c := range []struct {
		err        error
		code, text string
	}{
		{windows.ERROR_DISK_FULL, "no_space", "no space left on device"},
		{windows.ERROR_WRITE_PROTECT, "read_only", "read-only file system"},
		{windows.ERROR_DIR_NOT_EMPTY, "not_empty", "directory not empty"},
		{windows.ERROR_SHARING_VIOLATION, "busy", "another process uses it"},
		{windows.ERROR_ACCESS_DENIED, "permission", "permission denied"},
		{windows.ERROR_PATH_NOT_FOUND, "not_found", "no such file or directory"},
		{windows.ERROR_CANT_RESOLVE_FILENAME, "loop", "too many levels of symbolic links"},
	} {
		if got := Code(fmt.Errorf("with words: %w", c.err)); got != c.code {
			t.Errorf("%v: code %s, want %s", c.err, got, c.code)
		}
		on := On("C:/x", &fs.PathError{Op: "open", Path: "C:/x", Err: c.err})
		if Code(on) != c.code || on.Error() != "C:/x: "+c.text || !errors.Is(on, c.err) {
			t.Errorf("%v: code %s, %q", c.err, Code(on), on)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Dir(file)); Code(err) != "not_empty" {
		t.Error(Code(err), err)
	}
}
