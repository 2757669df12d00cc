package client

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/quantix-kvm/guest-agent/wire/text"
)

// PullFile copies a file of the guest to a local path. Nothing is seen there before all of it has arrived; a link is
// followed, and a device or a pipe is written to. The permission bits come along, without setuid, setgid and sticky.
func (l *Link) PullFile(ctx context.Context, remote, local string, o PullOptions) (got PullResult, err error) {
	if info, err := os.Stat(local); err == nil {
		if !info.Mode().IsRegular() && !info.IsDir() {
			return l.pullInto(ctx, remote, local, o)
		}
		if local, err = filepath.EvalSymlinks(local); err != nil {
			return got, err
		}
	}
	root, err := os.OpenRoot(filepath.Dir(local))
	if err != nil {
		return got, err
	}
	defer root.Close()
	err = replaceLocal(root, filepath.Base(local), func(temp string) error {
		to, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		if got, err = l.pullNew(ctx, remote, to, o); err != nil {
			return errors.Join(err, to.Close())
		}
		return errors.Join(to.Chmod(fs.FileMode(got.Mode)&fs.ModePerm), to.Close())
	})
	return got, err
}

// pullNew pulls into a file that holds nothing else.
func (l *Link) pullNew(ctx context.Context, remote string, to *os.File, o PullOptions) (PullResult, error) {
	reset := func() error {
		_, err := to.Seek(0, io.SeekStart)
		return errors.Join(err, to.Truncate(0))
	}
	got, err := l.pullRetrying(ctx, text.EscapePath(remote), to, reset, o)
	return got, withPath(remote, err)
}

func (l *Link) pullInto(ctx context.Context, remote, local string, o PullOptions) (PullResult, error) {
	to, err := os.OpenFile(local, os.O_WRONLY, 0)
	if err != nil {
		return PullResult{}, err
	}
	got, err := l.PullTo(ctx, remote, to, o)
	return got, errors.Join(err, to.Close())
}

// PushFile is Push for a path as it is on the guest's disk, with errors that name it. After a lost connection it resumes after
// what the agent acknowledged, or from where the reader stood if the agent has dropped that. The reader must be an io.Seeker;
// any other fails.
func (l *Link) PushFile(ctx context.Context, remote string, from io.Reader, o PushOptions) (int64, error) {
	n, err := l.pushRetrying(ctx, text.EscapePath(remote), from, o)
	return n, withPath(remote, err)
}

// PullTo is Pull for a path as it is on the guest's disk, with errors that name it. After a lost connection it resumes where
// it stopped; a file that has changed by then is fault.ErrChanged, since what was written cannot be taken back.
func (l *Link) PullTo(ctx context.Context, remote string, to io.Writer, o PullOptions) (PullResult, error) {
	got, err := l.pullRetrying(ctx, text.EscapePath(remote), to, nil, o)
	return got, withPath(remote, err)
}

// replaceLocal creates something under a temporary name and renames it.
func replaceLocal(root *os.Root, name string, make func(temp string) error) error {
	var b [6]byte
	rand.Read(b[:])
	temp := filepath.Join(filepath.Dir(name), ".quantix-"+hex.EncodeToString(b[:]))
	err := make(temp)
	if err == nil {
		err = root.Rename(temp, name)
	}
	if err != nil {
		root.Remove(temp)
	}
	return err
}
