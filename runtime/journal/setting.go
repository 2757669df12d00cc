package journal

import (
	"bytes"
	"errors"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// restoreKernelSetting restores a setting in /proc or /sys, which has a content and no lasting attributes. What others set
// since stays, and so does what another boot has set.
func (r *restorer) restoreKernelSetting(after *pb.JournalState) error {
	otherBoot := r.pass.tx.begin.BootId != r.pass.tx.journal.config.BootID()
	if otherBoot && after.GetContent() == nil {
		return nil
	}
	if r.was.Kind == fsys.Absent && r.is.Kind != fsys.Absent {
		return r.do("restore.remove", r.at.Remove)
	}
	if r.was.Kind != r.is.Kind || r.was.Kind == fsys.Directory && r.is.Mode != r.was.Mode {
		return fault.Wrapf(fault.ErrChanged, "is a %s but was a %s", r.is.Kind, r.was.Kind)
	}
	if r.was.Kind != fsys.File {
		return nil
	}
	if equal, err := r.contentEqual(); equal || err != nil {
		return err
	}
	if left := after.GetContent(); left != nil {
		now, err := r.at.ReadFile(maxSetting)
		if err != nil {
			return err
		}
		if !bytes.Equal(now, left) {
			if !otherBoot {
				r.conflict = r.object.Path
			}
			return nil
		}
	}
	return r.do("restore.rewrite", func() error {
		file, err := r.at.OpenInPlace()
		if err != nil {
			return err
		}
		_, err = file.Write(r.object.Content)
		return errors.Join(fault.Cause(err), fault.Cause(file.Close()))
	})
}

// maxSetting bounds the settings of the kernel that a rollback distinguishes from what others set meanwhile, in bytes.
const maxSetting = 4 << 10
