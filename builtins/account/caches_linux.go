package account

import (
	"context"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/proc"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// inverse is the operation that takes back what before-images do not: that caches know a user, the owner of a large file,
// and the place of a home directory.
const inverse = "account.take_back"

// caches are the daemons that keep what they have read of the files, by what shows that they run, and what makes them forget.
var caches = []struct {
	socket   string
	commands [][]string
}{
	{"/run/nscd/socket", [][]string{{"nscd", "--invalidate=passwd"}, {"nscd", "--invalidate=group"}}},
	{"/var/lib/sss/pipes/nss", [][]string{{"sss_cache", "--users", "--groups"}}},
}

// toFlush are the commands for the caches that this guest has.
func (r *Room) toFlush() (commands [][]string) {
	if !r.guest.Live || r.guest.Answer != nil || r.guest.Runner == nil {
		return nil
	}
	for _, c := range caches {
		if _, there, err := isThere(r.guest.Files, c.socket); err == nil && there {
			commands = append(commands, c.commands...)
		}
	}
	return commands
}

// announceFlush has a rollback flush the caches. It is the first that is announced, so it is the last that is done.
func (w *writing) announceFlush(ctx context.Context) error {
	if w.call.Tx == nil || len(w.toFlush()) == 0 {
		return nil
	}
	return w.call.Tx.Undo(ctx, inverse, &pb.JournalObject{})
}

// finish flushes the caches of nscd and sssd, and sets the labels of a home directory that was made. Where a cache cannot be
// flushed it serves the former entries until these expire.
func (w *writing) finish(ctx context.Context) error {
	if w.call.DryRun != nil {
		return nil
	}
	w.flush(ctx)
	if w.plan.home != nil {
		w.relabel(ctx, w.call, w.plan.home.path)
	}
	return nil
}

// selinux is there where the kernel has labels.
const selinux = "/sys/fs/selinux/enforce"

// relabel sets the SELinux labels of what was made to those of the guest's policy: those of a home directory are not those of
// the directory that it is in. What cannot be labelled keeps the label that it was made with.
func (r *Room) relabel(ctx context.Context, call *builtins.Call, path string) {
	if call.DryRun != nil || !r.guest.Live || r.guest.Answer != nil || r.guest.Runner == nil {
		return
	}
	if _, there, err := isThere(r.guest.Files, selinux); err == nil && there {
		_, _ = r.guest.Runner.Run(ctx, proc.Spec{Argv: []string{"restorecon", "-R", path}, Tied: true, Timeout: nssTimeout})
	}
}

func (r *Room) flush(ctx context.Context) {
	for _, argv := range r.toFlush() {
		_, _ = r.guest.Runner.Run(ctx, proc.Spec{Argv: argv, Tied: true, Timeout: nssTimeout})
	}
}

// takeBack moves a home directory back, restores the attributes of an object that has a path, and has the caches forget what
// they know where it has none.
func (r *Room) takeBack(ctx context.Context, call *builtins.Call, in *pb.JournalObject) (*pb.Changed, error) {
	if in.MovedTo != "" {
		return r.edit.MoveBack(ctx, call, in)
	}
	if in.Path != "" {
		return r.edit.RestoreAttr(ctx, call, in)
	}
	r.flush(ctx)
	return &pb.Changed{Changed: true}, nil
}
