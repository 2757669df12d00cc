package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
)

// lockFormat is the version of the file of apply --lock.
const lockFormat = 1

// lockFile is the file of apply --lock: what has an influence on what becomes of a tree.
type lockFile struct {
	Format  int          `json:"format"`
	Scripts []lockScript `json:"scripts"`

	path string
	text []byte // nil: there is nothing to write
}

// lockScript is one script. Of secrets only the names are there.
type lockScript struct {
	Script      string            `json:"script"`
	SHA256      string            `json:"sha256"`
	Params      map[string]any    `json:"params,omitempty"`
	Secrets     []string          `json:"secrets,omitempty"`
	Modules     map[string]string `json:"modules,omitempty"`
	Attachments map[string]string `json:"attachments,omitempty"`
}

// openLock says what a lock file would hold. Where there is one that holds anything else, that is the error.
func openLock(path string, list []*wanted) (*lockFile, error) {
	l := &lockFile{Format: lockFormat, path: path}
	if path == "" {
		return l, nil
	}
	for _, w := range list {
		l.Scripts = append(l.Scripts, w.lock())
	}
	text, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return nil, err
	}
	text = append(text, '\n')
	there, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		l.text = text
		return l, nil
	case err != nil:
		return nil, err
	case bytes.Equal(there, text):
		return l, nil
	}
	var old lockFile
	if err := json.Unmarshal(there, &old); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if old.Format != lockFormat {
		return nil, fmt.Errorf("%s: its format is %d, and this agent knows %d", path, old.Format, lockFormat)
	}
	return nil, fmt.Errorf("%s says otherwise: %s; remove it to lock anew", path, old.difference(l))
}

func (w *wanted) lock() lockScript {
	s := lockScript{Script: w.name, SHA256: w.digest(), Params: w.request.Params.AsMap(), Secrets: slices.Sorted(maps.Keys(w.request.Secrets))}
	note := func(to *map[string]string, name string, data []byte) {
		if *to == nil {
			*to = map[string]string{}
		}
		sum := sha256.Sum256(data)
		(*to)[name] = hex.EncodeToString(sum[:])
	}
	for name, source := range w.request.Modules {
		note(&s.Modules, name, source)
	}
	for _, a := range w.request.Attachments {
		note(&s.Attachments, a.Name, a.Data)
	}
	return s
}

// difference says in words where two lock files first differ.
func (l *lockFile) difference(now *lockFile) string {
	for i, was := range l.Scripts {
		if i >= len(now.Scripts) {
			return "script " + was.Script + " is not asked for"
		}
		is := now.Scripts[i]
		switch {
		case was.Script != is.Script:
			return fmt.Sprintf("script %d is %s, and was %s", i+1, is.Script, was.Script)
		case was.SHA256 != is.SHA256:
			return fmt.Sprintf("script %s has another content, SHA-256 %s and not %s", is.Script, is.SHA256, was.SHA256)
		case !reflect.DeepEqual(was, is):
			return "script " + is.Script + " has other parameters, secrets, modules or attachments"
		}
	}
	if len(now.Scripts) > len(l.Scripts) {
		return "script " + now.Scripts[len(l.Scripts)].Script + " is not in it"
	}
	return "it was written in another way"
}

// check reports whether the file could be written, before anything is changed.
func (l *lockFile) check() error {
	if l.text == nil {
		return nil
	}
	temp, err := os.CreateTemp(filepath.Dir(l.path), filepath.Base(l.path)+".*")
	if err != nil {
		return fmt.Errorf("--lock: %w", err)
	}
	return errors.Join(temp.Close(), os.Remove(temp.Name()))
}

// write writes the file where there is none yet.
func (l *lockFile) write() error {
	if l.text == nil {
		return nil
	}
	temp, err := os.CreateTemp(filepath.Dir(l.path), filepath.Base(l.path)+".*")
	if err != nil {
		return err
	}
	_, err = temp.Write(l.text)
	err = errors.Join(err, temp.Chmod(0o644), temp.Sync(), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), l.path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp.Name()))
	}
	return nil
}
