// Package host tells scripts, and the host at the beginning of a session, what guest this is, and sets its name, its time
// zone and settings of its kernel.
//
//	host.info, host.interfaces, host.disks … ──► internal/facts ◄── Ready (agent_ready)
//	host.hostname, host.timezone, host.sysctl ─► files: kept by the transaction, then written
//
// All that is set stands in files, those of /proc/sys among them, so the before-image of a file is its inverse.
//
// Not here: reports over time (telemetry), and mounts.
package host

import (
	"context"
	"runtime"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Config says how the room works. The zero value works.
type Config struct {
	// Root is the directory whose system is told of (os-release, host name, machine id); empty: "/". Kernel, memory,
	// links and disks are always those of the running machine.
	Root string
	// Version is the agent's own; it may be empty.
	Version string
	// Files is where what is set is written; nil: nothing can be set. It is the caller's.
	Files *fsys.Root
}

// Room holds the operations.
type Room struct {
	config Config
	disks  facts.Disks
	live   bool // the files are those of the running machine
}

// New makes the room.
func New(config Config) *Room {
	return &Room{config: config, live: config.Root == "" || config.Root == "/"}
}

// Ops are the rows of the room.
func (r *Room) Ops() []builtins.Op {
	return []builtins.Op{
		builtins.Script("host.info", "", "", "what guest this is", r.info),
		builtins.Script("host.hostname", "[new]", "", "the name of the guest; with a new one, whether that changed it", r.hostname).
			Mutating().Plans().Unless(func(in proto.Message) bool { return in.(*pb.HostnameArgs).New == "" }),
		builtins.Script("host.timezone", "[new]", "", "the time zone; with a new one, whether that changed it", r.timezone).
			Mutating().Plans().Unless(func(in proto.Message) bool { return in.(*pb.TimezoneArgs).New == "" }),
		builtins.Script("host.sysctl", "name [value]", "", "a setting of the kernel; with a value, whether that changed it", r.sysctl).
			Mutating().Plans().Unless(func(in proto.Message) bool { return in.(*pb.SysctlArgs).Value == nil }),
		builtins.Script("host.interfaces", "", "interfaces", "the network interfaces", r.interfaces),
		builtins.Script("host.uptime", "", "seconds", "the seconds since the guest started", r.uptime),
		builtins.Script("host.memory", "", "", "the memory in bytes", r.memory),
		builtins.Script("host.disks", "", "disks", "the mounted file systems in bytes", r.mounted),
	}
}

// Ready is what the host is told of this guest at the beginning of a session; version and capabilities are the caller's
// to fill in. It asks no name server, starts no process and touches no file system but /etc and the kernel's own, so it takes
// a few milliseconds. What cannot be read is "Unknown", and an identity empty.
func (r *Room) Ready(ctx context.Context) *pb.AgentReadyEvent {
	release := facts.ReadRelease(ctx, "/")
	kernel, machine := facts.Kernel()
	ready := &pb.AgentReadyEvent{OsName: known(release.Name), OsVersion: known(release.Version), KernelVersion: known(kernel),
		Architecture: known(machine), Hostname: known(facts.Hostname("/")), ProductUuid: facts.ProductUUID(), MachineId: facts.MachineID("/")}
	links, err := facts.Links()
	if err != nil {
		return ready
	}
	for _, addr := range facts.Addresses(links) {
		ready.IpAddresses = append(ready.IpAddresses, addr.String())
	}
	return ready
}

func known(value string) string {
	if value == "" {
		return facts.Unknown
	}
	return value
}

func (r *Room) info(ctx context.Context, _ *builtins.Call, _ *pb.NoArgs) (*pb.HostInfo, error) {
	release := facts.ReadRelease(ctx, r.config.Root)
	kernel, machine := facts.Kernel()
	memory, err := facts.ReadMemory(ctx)
	if err != nil {
		return nil, err
	}
	return &pb.HostInfo{Hostname: facts.Hostname(r.config.Root), Os: release.Name, OsVersion: release.Version, OsId: release.ID,
		Kernel: kernel, Architecture: machine, Cpus: uint32(runtime.NumCPU()), MemoryBytes: memory.Total,
		MachineId: facts.MachineID(r.config.Root), ProductUuid: facts.ProductUUID(), AgentVersion: r.config.Version}, nil
}

func (r *Room) interfaces(context.Context, *builtins.Call, *pb.NoArgs) (*pb.Interfaces, error) {
	links, err := facts.Links()
	if err != nil {
		return nil, err
	}
	out := &pb.Interfaces{}
	for _, l := range links {
		link := &pb.NetInterface{Name: l.Name, Mac: l.MAC, Mtu: l.MTU, Up: l.Up, Loopback: l.Loopback}
		for _, prefix := range l.Prefixes {
			link.Addresses = append(link.Addresses, prefix.String())
		}
		out.Interfaces = append(out.Interfaces, link)
	}
	return out, nil
}

func (r *Room) uptime(ctx context.Context, _ *builtins.Call, _ *pb.NoArgs) (*pb.Uptime, error) {
	up, err := facts.Uptime(ctx)
	return &pb.Uptime{Seconds: up.Seconds()}, err
}

func (r *Room) memory(ctx context.Context, _ *builtins.Call, _ *pb.NoArgs) (*pb.Memory, error) {
	m, err := facts.ReadMemory(ctx)
	return &pb.Memory{Total: m.Total, Available: m.Available, SwapTotal: m.SwapTotal, SwapFree: m.SwapFree}, err
}

func (r *Room) mounted(ctx context.Context, _ *builtins.Call, _ *pb.NoArgs) (*pb.Disks, error) {
	disks, err := r.disks.Read(ctx)
	if err != nil {
		return nil, err
	}
	out := &pb.Disks{}
	for _, d := range disks {
		out.Disks = append(out.Disks, &pb.Disk{Mount: d.Mount, Device: d.Device, Type: d.Type, Total: d.Total, Used: d.Used, Available: d.Available})
	}
	return out, nil
}
