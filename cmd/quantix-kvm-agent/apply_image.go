package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/quantix-kvm/guest-agent/cmd/internal/diskimage"
	"github.com/quantix-kvm/guest-agent/cmd/internal/scriptreport"
)

// applyImage runs scripts on the tree of the image a.image.
func applyImage(
	ctx context.Context, in scriptreport.Input, out io.Writer, f flags, a applyFlags, arguments []string,
) (err error) {
	if f.root != rootDir {
		return errors.New("give --root or --image, not both")
	}
	path, err := filepath.Abs(a.image)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		return err
	}
	if f.state, err = f.stateOf(path); err != nil {
		return err
	}
	if err := diskimage.OwnNamespace(); err != nil {
		return err
	}
	dir := f.state + ".mount"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	// An apply that was killed left its file systems as they were: the next one may find them so.
	mark := filepath.Join(f.state, "mounted")
	_, err = os.Stat(mark)
	killed := err == nil
	o := diskimage.Options{Dir: dir, ReadOnly: a.dryRun && !killed && !f.unfinished(), Recover: killed}
	o.Writing = func() error {
		return errors.Join(os.MkdirAll(f.state, 0o700), os.WriteFile(mark, nil, 0o600))
	}
	image, err := diskimage.Open(ctx, path, o)
	if errors.Is(err, diskimage.ErrInUse) {
		return err // the directories are those of who uses it
	}
	if err != nil && killed {
		return err // the next one may find what was left, too
	}
	if err != nil {
		return errors.Join(err, unmark(mark), os.Remove(dir), f.forget(&exitError{err, 1}))
	}
	defer func() {
		if failed := image.Close(); failed != nil {
			err = errors.Join(err, fmt.Errorf("%s may lack what was done: %w", path, failed))
			return
		}
		err = errors.Join(err, unmark(mark), os.Remove(dir), f.forget(err))
	}()
	f.root = image.Root()
	return applyTree(ctx, in, out, f, a, arguments, image.Mounts())
}

// unmark removes the mark that file systems are mounted.
func unmark(mark string) error {
	if err := os.Remove(mark); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
