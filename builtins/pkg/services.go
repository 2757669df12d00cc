package pkg

import (
	"bytes"
	"context"
	"errors"
	"io/fs"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/edit"
	"github.com/quantix-kvm/guest-agent/builtins/internal/packages"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// policyFile is asked by packages of dpkg whether a service may be started; the exit code 101 says no.
const policyFile = "/usr/sbin/policy-rc.d"

// holdServices keeps packages that are installed into a tree from starting services in it: there is no machine for them.
// restore takes that back, unless a package has put its own there meanwhile; so does the journal, should the agent not come to
// it.
func (j *job) holdServices(ctx context.Context) (restore func() error, err error) {
	restore = func() error { return nil }
	if j.guest.Live || j.kind != packages.Deb || j.guest.Answer != nil {
		return restore, nil
	}
	at, err := j.guest.Files.At(policyFile)
	if err != nil {
		return restore, err
	}
	defer at.Close()
	if meta, err := at.Stat(); err == nil && meta.Kind != fsys.Absent {
		return restore, nil // the tree has a policy of its own
	}
	content := []byte("#!/bin/sh\nexit 101\n")
	quiet := *j.call
	quiet.Changed = nil
	editor := &edit.Editor{Guest: j.guest}
	mode := uint32(0o755)
	if _, err := editor.Put(ctx, &quiet, edit.File{
		Op: j.op, Path: policyFile, Content: content, Attr: fsys.Attr{Mode: &mode},
	}); err != nil {
		return restore, err
	}
	mine, err := at.Stat()
	if err != nil {
		return restore, err
	}
	return func() error {
		at, err := j.guest.Files.At(policyFile)
		if err != nil {
			return err
		}
		defer at.Close()
		meta, err := at.Stat()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || meta.Kind != fsys.File || !meta.Same(mine) || meta.Born != mine.Born { // an inode is used again
			return err
		}
		have, err := at.ReadFile(int64(len(content)))
		switch {
		case errors.Is(err, fault.ErrTooLarge) || err == nil && !bytes.Equal(have, content):
			return nil
		case err != nil:
			return err
		}
		return at.Remove()
	}, nil
}
