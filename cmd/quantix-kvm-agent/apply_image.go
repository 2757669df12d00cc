package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/quantix-kvm/guest-agent/cmd/internal/diskimage"
	"github.com/quantix-kvm/guest-agent/cmd/internal/human"
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
	wait := lockWait
	if !a.dryRun {
		wait = 0 // what another one does to the image is not for this one to build upon unseen
	}
	unlock, err := f.takeState(wait)
	if err != nil {
		return err
	}
	defer unlock()
	// An apply that was killed left its file systems as they were: the next one may find them so.
	mark := filepath.Join(f.state, markName)
	_, err = os.Stat(mark)
	killed := err == nil
	if a.dryRun && (killed || f.interrupted()) {
		return fmt.Errorf("%s: an earlier apply did not end: run apply once without --dry-run to take back what was unfinished", path)
	}
	dir := f.state + ".mount"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return errors.Join(err, f.forget(err))
	}
	defer os.Remove(dir) // where it is not empty it is not of an apply, or the error says what is mounted
	o := diskimage.Options{Dir: dir, ReadOnly: a.dryRun, Recover: killed}
	o.Writing = func() error { return os.WriteFile(mark, nil, 0o600) }
	image, err := diskimage.Open(ctx, path, o)
	if err != nil && killed {
		return err // the next one may find what was left, too
	}
	if err != nil {
		return errors.Join(err, unmark(mark), f.forget(err))
	}
	defer func() {
		if failed := image.Close(); failed != nil {
			err = errors.Join(err, fmt.Errorf("%s may lack what was done: %w", path, failed))
			return
		}
		err = errors.Join(err, unmark(mark), f.forget(err))
	}()
	if !a.quiet {
		for _, line := range image.LeftOut() {
			fmt.Fprintf(in.Stderr, "not in the image, and left out: %s\n", human.PrintableLine(line))
		}
	}
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
