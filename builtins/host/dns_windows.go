package host

import (
	"context"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// dns returns who is asked for names: the servers of all links that are up.
func (r *Room) dns(context.Context, *builtins.Call, *pb.NoArgs) (*pb.NetDns, error) {
	if !r.guest.Live {
		return nil, fault.Unsupported("a tree that is not booted asks nobody for names")
	}
	servers, search, err := facts.DNS()
	if err != nil {
		return nil, err
	}
	return &pb.NetDns{Manager: "windows", Servers: servers, Search: search}, nil
}
