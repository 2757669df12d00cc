package host

import (
	"context"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func (r *Room) sweep(context.Context) error { return nil }

func (r *Room) mount(context.Context, *builtins.Call, *pb.MountArgs) (*pb.Changed, error) {
	return nil, fault.Unsupported("nothing is mounted by an fstab on Windows")
}

func (r *Room) unmount(context.Context, *builtins.Call, *pb.UnmountArgs) (*pb.Changed, error) {
	return nil, fault.Unsupported("nothing is mounted by an fstab on Windows")
}

func (r *Room) undoMount(context.Context, *builtins.Call, *pb.MountUndo) (*pb.Changed, error) {
	return nil, fault.Unsupported("nothing is mounted by an fstab on Windows")
}
