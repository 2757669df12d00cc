package pkg

import (
	"context"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/edit"
	"github.com/quantix-kvm/guest-agent/builtins/internal/packages"
)

// policyFile is asked by packages of dpkg whether a service may be started; the exit code 101 says no.
const policyFile = "/usr/sbin/policy-rc.d"

// holdServices keeps packages that are installed into a tree from starting services in it: there is no machine for them.
// restore takes that back; so does the journal, should the agent not come to it.
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
	quiet := *j.call
	quiet.Changed = nil
	editor := &edit.Editor{Guest: j.guest}
	mode := uint32(0o755)
	if _, err := editor.Put(ctx, &quiet, edit.File{
		Op: j.op, Path: policyFile, Content: []byte("#!/bin/sh\nexit 101\n"), Attr: fsys.Attr{Mode: &mode},
	}); err != nil {
		return restore, err
	}
	return func() error {
		at, err := j.guest.Files.At(policyFile)
		if err != nil {
			return err
		}
		defer at.Close()
		return at.Remove()
	}, nil
}
