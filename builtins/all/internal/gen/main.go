// Gen writes the reference of what scripts can call, and what editors and linters know of it.
//
// Run it with go generate in builtins/all. A test of package reference fails where a file is out of date.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/quantix-kvm/guest-agent/builtins/all/internal/reference"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run() error {
	const top = "../.." // of builtins/all, where go generate runs it
	files, err := reference.Files(top)
	if err != nil {
		return err
	}
	for name, content := range files {
		name = filepath.Join(top, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, content, 0o644); err != nil {
			return err
		}
	}
	return nil
}
