package builtins

import (
	"github.com/quantix-kvm/guest-agent/builtins/internal/diff"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// SetDiff makes a change that of a file from one content to another, as a change list shows it. Nil is a file that is not
// there.
func SetDiff(change *pb.Change, old, new []byte) {
	change.Diff, change.DiffTruncated = diff.Unified(change.Target, old, new)
}
