package host

import (
	"context"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

func resolved(context.Context) (*pb.NetDns, error) {
	return nil, fault.Unsupported("there is no systemd-resolved on Windows")
}
