package registry

import (
	"context"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func (*Room) unsupported() error { return fault.Unsupported("only Windows has a registry") }

func (r *Room) get(context.Context, *builtins.Call, *pb.RegistryGetArgs) (*pb.LuaValue, error) {
	return nil, r.unsupported()
}

func (r *Room) set(context.Context, *builtins.Call, *pb.RegistrySetArgs) (*pb.Changed, error) {
	return nil, r.unsupported()
}

func (r *Room) remove(context.Context, *builtins.Call, *pb.RegistryRemoveArgs) (*pb.Changed, error) {
	return nil, r.unsupported()
}

func (r *Room) restore(context.Context, *builtins.Call, *pb.RegistryRestore) (*pb.Changed, error) {
	return nil, r.unsupported()
}
