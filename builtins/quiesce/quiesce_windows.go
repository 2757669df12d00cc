package quiesce

import (
	"context"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// state is empty: nothing is frozen on Windows yet.
type state struct{}

func (*Room) init() {}

func (*Room) start() {}

func (*Room) release() error { return nil }

// served returns why a request is not served here: a shadow copy without the writers of VSS would be no quiesced one.
func (*Room) served() error {
	return fault.Unsupported("not supported on Windows yet")
}

// Status returns nil: nothing is frozen.
func (state) Status() []*pb.FrozenStatus { return nil }

// Notices returns nil: nothing was thawed.
func (state) Notices() []*pb.ErrorEvent { return nil }

func (r *Room) quiesce(context.Context, *builtins.Call, *pb.QuiesceFilesystemsRequest) (*pb.QuiesceFilesystemsResponse, error) {
	return nil, r.served()
}

func (r *Room) thaw(context.Context, *builtins.Call, *pb.ThawFilesystemsRequest) (*pb.ThawFilesystemsResponse, error) {
	return nil, r.served()
}

func (r *Room) trim(context.Context, *builtins.Call, *pb.TrimRequest) (*pb.TrimResponse, error) {
	return nil, r.served()
}
