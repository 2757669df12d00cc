// Package inventory describes what the guest consists of: its hardware, and the packages that are installed.
//
//	/sys, /proc, SMBIOS tables, udev's database ──► get_hardware_info
//	internal/packages: databases ──► state, filter, sort, page ──► list_installed_software
//
// Everything of the hardware is read from the kernel; no program is started, and a file system that hangs delays nothing for
// longer than internal/facts says.
//
// Not here: reports over time (telemetry), and changing what is installed (package).
package inventory

import (
	"context"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/packages"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Room holds the operations. It is safe for concurrent use.
type Room struct {
	guest *guest.Guest
	reader
}

// New makes the room. A tree that is not booted has packages, and no hardware.
func New(g *guest.Guest) *Room { return &Room{guest: g, reader: newReader()} }

// Room is what the table, the executor and the agent know of the room.
func (r *Room) Room() builtins.Room {
	hardware, software := "", ""
	if r.guest.Live && canReadHardware {
		hardware = "hardware_info"
	}
	if r.guest.Files != nil && len(packages.Of(r.guest, &builtins.Call{}).Known()) > 0 {
		software = "software_list"
	}
	return builtins.Room{Name: "inventory", Ops: []builtins.Op{
		{
			Name: "get_hardware_info", Capability: hardware, Summary: "processors, memory, disks, adapters and system",
			Handler: builtins.Handle(r.hardware),
		},
		{
			Name: "list_installed_software", Capability: software, Summary: "the installed packages",
			Access: builtins.Of(softwareAccess), Handler: builtins.Handle(r.software),
		},
	}}
}

func (r *Room) hardware(
	ctx context.Context, _ *builtins.Call, in *pb.GetHardwareInfoRequest,
) (*pb.GetHardwareInfoResponse, error) {
	if !r.guest.Live {
		return nil, fault.Unsupported("a tree that is not booted has no hardware")
	}
	hardware, err := r.readHardware(ctx, in)
	if err != nil {
		return nil, err
	}
	return &pb.GetHardwareInfoResponse{Success: true, Hardware: hardware}, nil
}
