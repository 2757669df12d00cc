package fsys

import (
	"errors"
	"io/fs"

	"github.com/quantix-kvm/guest-agent/wire/text"
)

// DirFS returns the directory dir of the file system below root, for reading regular files and listing directories.
// Each path is resolved as by Root.Follow: links stay below root.
func DirFS(root, dir string) fs.FS { return dirFS{root, dir} }

type dirFS struct{ root, dir string }

var _ fs.ReadDirFS = dirFS{}

// Open opens a regular file.
func (d dirFS) Open(name string) (fs.File, error) {
	at, err := d.at(name)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	defer at.Close()
	file, err := at.Open()
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return file, nil
}

// maxEntries bounds the names that a listing holds.
const maxEntries = 10_000

// ReadDir lists a directory, in no order. Where there are more than 10,000 names the error is fault.ErrTooLarge.
func (d dirFS) ReadDir(name string) ([]fs.DirEntry, error) {
	list, err := d.list(name)
	if err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: err}
	}
	return list, nil
}

func (d dirFS) at(name string) (*At, error) {
	if !fs.ValidPath(name) {
		return nil, fs.ErrInvalid
	}
	root, err := Open(d.root)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return root.Follow(Join(d.dir, text.EscapePath(name)))
}

func (d dirFS) list(name string) (list []fs.DirEntry, err error) {
	at, err := d.at(name)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	dir, err := at.OpenDir()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Names(maxEntries)
	for _, name := range names {
		if meta, err := dir.Stat(name); err == nil { // else it is gone
			list = append(list, dirEntry{name, meta})
		}
	}
	return list, err
}

// dirEntry is an entry of a directory.
type dirEntry struct {
	name string
	meta Meta
}

func (e dirEntry) Name() string               { return e.name }
func (e dirEntry) IsDir() bool                { return e.meta.Kind == Directory }
func (e dirEntry) Info() (fs.FileInfo, error) { return nil, errors.ErrUnsupported }

func (e dirEntry) Type() fs.FileMode {
	switch e.meta.Kind {
	case File:
		return 0
	case Directory:
		return fs.ModeDir
	case Symlink:
		return fs.ModeSymlink
	}
	return fs.ModeIrregular
}
