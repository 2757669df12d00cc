package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/runtime/script"
	"github.com/quantix-kvm/guest-agent/scripts"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// library lists where scripts lie, the administrator's own first.
func library(root string, limit int) *script.Library {
	var places []script.Place
	for _, dir := range scriptDirs {
		places = append(places, script.Place{Name: dir, FS: trustedFS{fsys.DirFS(root, dir), root, dir}})
	}
	return script.NewLibrary(limit, append(places, script.Place{Name: "bundled:", FS: scripts.Bundled()})...)
}

// trustedFS is a directory of scripts, which run as root: a file, or the directory, that others could have written is refused.
type trustedFS struct {
	fs.FS
	root, dir string
}

// Open opens a file that is trusted.
func (t trustedFS) Open(name string) (fs.File, error) {
	file, err := t.FS.Open(name)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil {
		err = trusted(info)
	}
	if err == nil {
		err = t.trustedDir()
	}
	if err != nil {
		_ = file.Close() // nothing was written
		return nil, &fs.PathError{Op: "open", Path: name, Err: fault.Refuse("%v", err)}
	}
	return file, nil
}

func (t trustedFS) trustedDir() error {
	files, err := fsys.Open(t.root)
	if err != nil {
		return err
	}
	defer files.Close()
	resolved, err := files.Resolve(t.dir, true)
	if err != nil {
		return err
	}
	info, err := os.Lstat(filepath.Join(t.root, text.UnescapePath(resolved)))
	if err == nil {
		if err = trusted(info); err != nil {
			err = fmt.Errorf("%s: %w", t.dir, err)
		}
	}
	return err
}

// ReadDir lists the directory.
func (t trustedFS) ReadDir(name string) ([]fs.DirEntry, error) { return fs.ReadDir(t.FS, name) }
