package wait

import (
	"context"

	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// conditions are what can be waited for here.
func (r *Room) conditions() string {
	switch {
	case !r.guest.Live:
		return "file"
	case !systemdIsInit():
		return "address,file"
	}
	return "address,ready,unit,file"
}

func (r *Room) address(ctx context.Context, in *pb.WaitAddress) (*pb.WaitResponse, error) {
	want, err := parseWanted(in)
	if err != nil {
		return nil, err
	}
	if !r.guest.Live {
		return nil, fault.Unsupported("waiting for an address is not supported: a tree that is not booted has none")
	}
	watching, stop := context.WithCancel(ctx)
	defer stop()
	changed, err := facts.WatchLinks(watching)
	if err != nil {
		return nil, fault.On("netlink", err)
	}
	for {
		links, err := facts.Links()
		if err != nil {
			return nil, err
		}
		if found := want.in(links); found != nil {
			return found, nil
		}
		select {
		case _, ok := <-changed:
			if !ok && ctx.Err() == nil {
				return nil, fault.Wrapf(fault.ErrInternal, "the netlink socket was closed")
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
