package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestGeneratedFilesAreCurrent(t *testing.T) {
	if err := run("../..", true); err != nil {
		t.Error(err)
	}
}

// A new .proto file is found by itself, also one that sorts before what it imports; one that is gone takes its Go code along;
// and check fails on both.
func TestFilesComeAndGo(t *testing.T) {
	dir := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		text = "syntax = \"proto3\";\npackage gen.test;\noption go_package = \"example.com/test\";\n" + text
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	wantStale := func(name string) {
		t.Helper()
		if err := run(dir, true); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("check: %v, want an error about %s", err, name)
		}
		if err := run(dir, false); err != nil {
			t.Fatal(err)
		}
		if err := run(dir, true); err != nil {
			t.Errorf("check after the generation: %v", err)
		}
	}
	put("shared.proto", "message Shared { string text = 1; }")
	put("a.proto", "import \"shared.proto\";\nmessage A { Shared shared = 1; }")
	wantStale("a.pb.go")
	put("z.proto", "import \"shared.proto\";\nmessage Z { repeated Shared shared = 1; }")
	wantStale("z.pb.go")
	for _, name := range []string{"a.pb.go", "z.pb.go"} {
		code, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !strings.Contains(string(code), "*Shared") {
			t.Errorf("%s does not use the shared message (%v)", name, err)
		}
	}
	put("a.proto", "message A { string changed = 1; }")
	wantStale("a.pb.go")
	if err := os.Remove(filepath.Join(dir, "z.proto")); err != nil {
		t.Fatal(err)
	}
	wantStale("z.pb.go")
	if _, err := os.Stat(filepath.Join(dir, "z.pb.go")); !os.IsNotExist(err) {
		t.Errorf("z.pb.go is still there: %v", err)
	}
}
