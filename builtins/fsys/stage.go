package fsys

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Staged is a file that is about to take a place. It stands beside it under a temporary name, readable by its owner
// alone from its first byte on, until Commit renames it.
type Staged struct {
	// File takes the content. It is Staged's to close.
	File *os.File

	at   *At
	name string
}

// Stage begins a file for this place. The place stays the caller's; Commit, Restore or Discard ends the staging.
func (a *At) Stage() (*Staged, error) {
	if a.IsRoot() {
		return nil, notRegular(Directory)
	}
	if err := a.notSlash(); err != nil {
		return nil, err
	}
	if a.spot != nil {
		file, err := a.spot.stage()
		return &Staged{File: file, at: a}, err
	}
	dir, err := dupHandle(a.dir)
	if err != nil {
		return nil, err
	}
	at := &At{Path: a.Path, Name: a.Name, Public: a.Public, dir: dir, root: a.root}
	name, file, err := createTemp(dir)
	if err != nil {
		_ = at.Close()
		return nil, err
	}
	return &Staged{File: file, at: at, name: name}, nil
}

// createTemp makes a file and locks it, which tells Sweep that its agent lives. In between a Sweep may take it for a
// dead agent's; then it is made once more.
func createTemp(dir handle) (string, *os.File, error) {
	for {
		name := tempName()
		file, err := createAt(dir, name)
		if err != nil {
			return "", nil, err
		}
		if lockFile(file) == nil {
			if meta, err := statFile(file); err != nil || meta.Links > 0 {
				return name, file, err
			}
		}
		_ = file.Close()
		if err := removeTemp(dir, name); err != nil {
			return "", nil, err
		}
	}
}

// removeTemp removes a temporary file that may be gone already.
func removeTemp(dir handle, name string) error {
	if err := unlinkAt(dir, name, false); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// CanReplace says why the place of the file cannot be taken: a directory, a fifo or a device is there, a file with
// several names, a mount, or a link that another user may have planted; or the path names a directory.
func (a *At) CanReplace() error {
	if err := a.notSlash(); err != nil {
		return err
	}
	old, err := a.Capture()
	if err != nil {
		return err
	}
	return a.replaceable(old)
}

// Commit puts the file in its place: owner, mode, ACLs, label and other extended attributes of the file that it
// replaces, unless attr says otherwise, and mode 0644 if it replaces none; durable content; then the name, and the name
// durable too if syncDir is set. File capabilities and integrity hashes are not kept: they spoke of the old content. On an
// error before the rename nothing has changed. The staging is over either way.
func (s *Staged) Commit(attr Attr, syncDir bool) error {
	if s.at.spot != nil {
		return s.pretend(func(meta *Meta, old Meta) error {
			return errors.Join(s.at.replaceable(old), dressed(meta, old, attr))
		})
	}
	return s.finish(syncDir, func(old Meta) error {
		if err := s.at.replaceable(old); err != nil {
			return err
		}
		return dress(s.File, old, attr)
	})
}

// Restore puts the file in its place with exactly the state of meta, whatever kind of file is there. The rest is as with
// Commit.
func (s *Staged) Restore(meta Meta, syncDir bool) error {
	if s.at.spot != nil {
		return s.pretend(func(made *Meta, old Meta) error {
			if old.Kind == Directory {
				return notRegular(Directory)
			}
			return made.become(meta)
		})
	}
	return s.finish(syncDir, func(old Meta) error {
		if old.Kind == Directory {
			return notRegular(Directory)
		}
		return applyFile(s.File, meta)
	})
}

// pretend puts the file in its place in a plan.
func (s *Staged) pretend(dress func(made *Meta, old Meta) error) error {
	old, err := s.at.Capture()
	if err != nil {
		return errors.Join(err, s.Discard())
	}
	return s.at.spot.finish(s.at.Name, s.File, func(made *Meta) error { return dress(made, old) })
}

func (s *Staged) finish(syncDir bool, prepare func(old Meta) error) (err error) {
	renamed := false
	defer func() {
		if !renamed {
			err = errors.Join(err, removeTemp(s.at.dir, s.name))
		}
		_ = s.at.Close()
	}()
	old, err := s.at.Capture()
	if err == nil {
		err = prepare(old)
	}
	if err != nil {
		_ = s.File.Close()
		return err
	}
	release, err := holdLock(s.File) // to the rename: an unlocked file may be swept
	if err != nil {
		return errors.Join(err, fault.Cause(s.File.Close()))
	}
	defer release()
	if err := syncAndClose(s.File); err != nil {
		return err
	}
	if err := renameAt(s.at.dir, s.name, s.at.dir, s.at.Name, true); err != nil {
		return err
	}
	renamed = true
	if syncDir {
		return s.at.SyncDir()
	}
	return nil
}

// Discard removes the file.
func (s *Staged) Discard() error {
	if s.at.spot != nil {
		return fault.Cause(s.File.Close())
	}
	err := errors.Join(fault.Cause(s.File.Close()), removeTemp(s.at.dir, s.name))
	return errors.Join(err, s.at.Close())
}

// Sweep removes staged files that a dead agent left in the directory of the place, and gives how many there were.
func (a *At) Sweep() (int, error) {
	h, file, err := openDir(a.dir, ".")
	if err != nil {
		return 0, err
	}
	dir := &Dir{file: file, handle: h}
	defer dir.Close()
	names, err := dir.Names()
	swept := 0
	for _, name := range names {
		if !IsTemp(name) {
			continue
		}
		gone, e := sweep(a.dir, name)
		if e != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", name, e))
		}
		if gone {
			swept++
		}
	}
	return swept, err
}

// sweep removes a staged file that nobody holds locked.
func sweep(dir handle, name string) (bool, error) {
	meta, err := statAt(dir, name)
	if err != nil || meta.Kind != File {
		return false, nil
	}
	file, err := openFile(dir, name, true)
	if errors.Is(err, fs.ErrPermission) { // it has its last mode already, which may forbid its owner to write
		file, err = openFile(dir, name, false)
	}
	if err != nil {
		return false, err
	}
	defer file.Close()
	if lockFile(file) != nil {
		return false, nil
	}
	return true, removeTemp(dir, name)
}

func tempName() string {
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails: the runtime ends the process instead
	return tempPrefix + hex.EncodeToString(random[:]) + tempSuffix
}
