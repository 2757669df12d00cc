package quiesce

import (
	"context"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// trim trims file systems one after the other: disks have enough to do with one. One that fails does not keep others from it.
func (r *Room) trim(ctx context.Context, _ *builtins.Call, in *pb.TrimRequest) (*pb.TrimResponse, error) {
	if err := r.served(); err != nil {
		return nil, err
	}
	found, err := r.look(ctx, in.MountPoints, false)
	if err != nil {
		return nil, err
	}
	reply := &pb.TrimResponse{}
	var faults []error
	fail := func(point, source, kind string, err error) {
		reply.Filesystems = append(reply.Filesystems, &pb.TrimmedFilesystem{
			MountPoint: point, Device: source, Filesystem: kind, Error: err.Error(),
		})
		if len(in.MountPoints) > 0 || !errors.Is(err, errors.ErrUnsupported) { // of all, what has nothing to trim is no failure
			faults = append(faults, fault.On(point, err))
		}
	}
	for i, s := range found.systems {
		n, err := r.trimOne(ctx, s, in.MinimumBytes)
		switch {
		case err == nil:
			reply.Filesystems = append(reply.Filesystems, &pb.TrimmedFilesystem{
				MountPoint: s.Point, Device: s.source, Filesystem: s.kind, TrimmedBytes: n,
			})
		case context.Cause(ctx) != nil:
			closeAll(found.systems[i+1:])
			return nil, fault.On(s.Point, err)
		default:
			fail(s.Point, s.source, s.kind, err)
		}
	}
	for _, l := range found.failed {
		fail(l.mount.Point, l.mount.Source, l.mount.Type, l.why)
	}
	if len(in.MountPoints) > 0 {
		for _, l := range found.others {
			fail(l.mount.Point, l.mount.Source, l.mount.Type, trimCannot(l))
		}
	}
	if len(faults) > 0 {
		return nil, &failure{errors.Join(faults...), reply}
	}
	return reply, nil
}

// trimCannot returns why something that was not chosen cannot be trimmed.
func trimCannot(l left) error {
	if errors.Is(l.why, errors.ErrUnsupported) {
		return fault.Unsupported("%s cannot be trimmed", l.mount.Type)
	}
	return l.why
}

// trimOne trims one file system and closes it. It waits within ctx: a trim that goes on then does no harm.
func (r *Room) trimOne(ctx context.Context, s *system, minimum uint64) (uint64, error) {
	type outcome struct {
		n   uint64
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		defer s.target.Close()
		n, err := s.target.Trim(minimum)
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) {
			err = fault.Unsupported("its disk, or %s, cannot be trimmed", s.kind)
		}
		done <- outcome{n, err}
	}()
	select {
	case o := <-done:
		return o.n, o.err
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}
