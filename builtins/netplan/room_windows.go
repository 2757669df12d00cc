package netplan

import (
	"context"
	"io/fs"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

type system struct {
	unsupported string
	links       func() ([]facts.Link, error)
	renderer    func(ctx context.Context) (string, error)
}

func running(*guest.Guest) system { return system{unsupported: "Windows has no netplan"} }

func (system) prepare(context.Context) {}

func (system) close() error { return nil }

func (r *Room) apply(context.Context, *builtins.Call, *pb.NetplanApplyArgs) (*pb.NetplanApplied, error) {
	return nil, r.served()
}

func (r *Room) settled(context.Context, *builtins.Call, *pb.NetplanSettledArgs) (*pb.Nothing, error) {
	return nil, r.served()
}

func (r *Room) status(context.Context, *builtins.Call, *pb.NoArgs) (*pb.NetplanStatus, error) {
	return nil, r.served()
}

func (r *Room) undo(context.Context, *builtins.Call, *pb.NetplanUndo) (*pb.Changed, error) {
	return nil, r.served()
}

func (r *Room) forIfup([]*document) (map[string]*generated, error) { return nil, r.served() }

func ownerOf(fs.FileInfo) (uid, gid uint32) { return 0, 0 }
