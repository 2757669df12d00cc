package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/quantix-kvm/guest-agent/cmd/internal/rig/vmtest/frame"
)

// put writes one piece of a file. The last piece makes the file durable and gives it its name, so that a test may cut the
// power as soon as it has the reply.
func put(m frame.Message, body []byte) error {
	part := m.Path + ".vmtest-part"
	flags := os.O_WRONLY | os.O_CREATE
	if m.Offset == 0 {
		flags |= os.O_TRUNC
		if err := os.MkdirAll(filepath.Dir(m.Path), 0o755); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(part, flags, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(body, m.Offset)
	if err == nil && m.Last {
		err = errors.Join(f.Chmod(os.FileMode(m.Mode)), f.Sync())
	}
	if err = errors.Join(err, f.Close()); err != nil || !m.Last {
		return err
	}
	if err := os.Rename(part, m.Path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(m.Path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// get reads one piece of a file; Last is set when nothing follows it.
func get(m frame.Message) (frame.Message, []byte, error) {
	f, err := os.Open(m.Path)
	if err != nil {
		return frame.Message{}, nil, err
	}
	defer f.Close()
	if _, err := f.Seek(m.Offset, io.SeekStart); err != nil {
		return frame.Message{}, nil, err
	}
	// Read to the end rather than by Stat's size, which is 0 for the files of /proc.
	body, err := io.ReadAll(io.LimitReader(f, frame.MaxBody))
	if err != nil {
		return frame.Message{}, nil, err
	}
	return frame.Message{Last: len(body) < frame.MaxBody}, body, nil
}
