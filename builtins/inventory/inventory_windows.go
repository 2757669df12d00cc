package inventory

import (
	"context"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const canReadHardware = false

// reader knows nothing.
type reader struct{}

func newReader() reader { return reader{} }

func (r *Room) readHardware(context.Context, *pb.GetHardwareInfoRequest) (*pb.HardwareInfo, error) {
	return nil, fault.Unsupported("GetHardwareInfoRequest is not supported on Windows")
}

// OEMStrings returns nothing: the tables are not read here.
func OEMStrings() []string { return nil }
