package quiesce

import (
	"errors"
	"testing"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// What is unused is told to a disk, and what cannot be trimmed is named.
func TestTrim(t *testing.T) {
	r := newRoom(t, Config{})
	a := disk(t, "a")
	out, err := r.trim(t.Context(), &builtins.Call{}, &pb.TrimRequest{MountPoints: []string{a}})
	if err != nil || len(out.Filesystems) != 1 || out.Filesystems[0].TrimmedBytes < 1<<20 {
		t.Error(out, err)
	}
	memory := t.TempDir()
	run(t, "mount", "-t", "tmpfs", "none", memory)
	defer run(t, "umount", memory)
	_, err = r.trim(t.Context(), &builtins.Call{}, &pb.TrimRequest{MountPoints: []string{memory, a}})
	reply := failedTrim(err).(*pb.TrimResponse)
	if !errors.Is(err, errors.ErrUnsupported) || reply.Error == "" || len(reply.Filesystems) != 2 || reply.Filesystems[0].Error != "" || reply.Filesystems[1].Error == "" {
		t.Error(reply, err)
	}
}
