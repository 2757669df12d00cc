package wait

import (
	"context"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// conditions are what can be waited for here.
func (r *Room) conditions() string { return "none" }

func unsupported(what string) (*pb.WaitResponse, error) {
	return nil, fault.Unsupported("waiting for %s is not supported on Windows", what)
}

func (r *Room) address(_ context.Context, in *pb.WaitAddress) (*pb.WaitResponse, error) {
	if want, err := parseWanted(in); err != nil || want.in(nil) != nil {
		return nil, err
	}
	return unsupported("an address")
}

func (r *Room) file(_ context.Context, path string) (*pb.WaitResponse, error) {
	if found, err := r.exists(path); err != nil || found {
		return &pb.WaitResponse{}, err
	}
	return unsupported("a file")
}

func (r *Room) unit(context.Context, string) (*pb.WaitResponse, error) { return unsupported("a unit") }

func (r *Room) ready(context.Context) (*pb.WaitResponse, error) { return unsupported("ready") }
