// Package host describes the guest to scripts, and to the host at the beginning of a session, and sets its name, its time
// zone, locale and keyboard, settings of its kernel, and what is mounted.
//
//	host.info, host.interfaces, host.routes … ─► internal/facts ◄── Ready (agent_ready), network
//	host.hostname, host.timezone, host.sysctl … ► files: kept by the transaction, then written
//	host.mount, host.unmount ─► fstab, and what is mounted now, undone together
//
// All that is set stands in files, those of /proc/sys among them, so the before-image of a file is its inverse. What is mounted
// has an inverse of its own, and so have the settings of Windows: of these there are the name, which counts from the next boot
// on, and the time zone.
//
// Not here: reports over time (telemetry).
package host

import (
	"context"
	"slices"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/edit"
	"github.com/quantix-kvm/guest-agent/builtins/internal/facts"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// Room holds the operations.
type Room struct {
	guest   *guest.Guest
	edit    *edit.Editor
	version string
	disks   facts.Disks
}

// New makes the room; version is the agent's own, and may be empty. The kernel, processors and memory in host.info are always
// those of the running machine. Names, identities and addresses are those of the guest's files where they are a tree that is
// not booted.
func New(g *guest.Guest, version string) *Room {
	return &Room{guest: g, edit: &edit.Editor{Guest: g}, version: version}
}

// Room is what the table, the executor and the agent know of the room.
func (r *Room) Room() builtins.Room {
	return builtins.Room{
		Name: "host", Ops: slices.Concat(r.looking(), r.setting(), r.mounting(), r.platformRows()),
		Sweep: r.sweep, Restored: r.restored,
	}
}

// looking are the rows that change nothing.
func (r *Room) looking() []builtins.Op {
	return []builtins.Op{
		{Name: "host.info", Usage: "()", Summary: "what guest this is", Handler: builtins.Handle(r.info)},
		{
			Name: "host.interfaces", Usage: "() interfaces", Summary: "the network interfaces",
			Handler: builtins.Handle(r.interfaces),
		},
		{
			Name: "host.routes", Usage: "() routes", Summary: "the routes, but for the kernel's own of local addresses",
			Handler: builtins.Handle(r.routes),
		},
		{
			Name: "host.dns", Usage: "()", Summary: "the name servers and domains that names are looked up by",
			Handler: builtins.Handle(r.dns),
		},
		{
			Name: "network", Summary: "interfaces, routes and name servers of the guest", Capability: "network",
			Handler: builtins.Handle(r.network),
		},
		{
			Name: "host.uptime", Usage: "() seconds", Summary: "the seconds since the guest started",
			Handler: builtins.Handle(r.uptime),
		},
		{Name: "host.memory", Usage: "()", Summary: "the memory in bytes", Handler: builtins.Handle(r.memory)},
		{
			Name: "host.disks", Usage: "() disks", Summary: "the mounted file systems in bytes",
			Handler: builtins.Handle(r.mounted),
		},
	}
}

// setting are the rows that return a setting, and change it where they are given a value.
func (r *Room) setting() []builtins.Op {
	return []builtins.Op{
		{
			Name: "host.hostname", Usage: "([new])",
			Summary: "the name of the guest; with a new one, whether that changed it",
			Mutates: true, Predictable: true, Inverse: settingUndo,
			Readonly: builtins.Of(func(in *pb.HostnameArgs) bool { return in.New == "" }),
			Access:   builtins.Of(r.hostnameAccess), Handler: builtins.Handle(r.hostname),
		},
		{
			Name: "host.timezone", Usage: "([new])", Summary: "the time zone; with a new one, whether that changed it",
			Mutates: true, Predictable: true, Inverse: settingUndo,
			Readonly: builtins.Of(func(in *pb.TimezoneArgs) bool { return in.New == "" }),
			Access:   builtins.Of(timezoneAccess), Handler: builtins.Handle(r.timezone),
		},
		{
			Name: "host.locale", Usage: "([new])", Summary: "the locale; with a new one, whether that changed it",
			Mutates: true, Predictable: true,
			Readonly: builtins.Of(func(in *pb.LocaleArgs) bool { return in.New == "" }),
			Access:   builtins.Of(localeAccess), Handler: builtins.Handle(r.locale),
		},
		{
			Name: "host.keymap", Usage: "([new])",
			Summary: "the layout of the console's keyboard; with a new one, whether that changed it",
			Mutates: true, Predictable: true,
			Readonly: builtins.Of(func(in *pb.KeymapArgs) bool { return in.New == "" }),
			Access:   builtins.Of(keymapAccess), Handler: builtins.Handle(r.keymap),
		},
		{
			Name: "host.sysctl", Usage: "(name, [value])",
			Summary: "a setting of the kernel; with a value, whether that changed it",
			Mutates: true, Predictable: true,
			Readonly: builtins.Of(func(in *pb.SysctlArgs) bool { return in.Value == nil }),
			Access:   builtins.Of(sysctlAccess), Handler: builtins.Handle(r.sysctl),
		},
	}
}

func text(s string) *pb.LuaValue {
	return &pb.LuaValue{Kind: &pb.LuaValue_String_{String_: []byte(s)}}
}

func yes(b bool) *pb.LuaValue { return &pb.LuaValue{Kind: &pb.LuaValue_Boolean{Boolean: b}} }

// Ready describes this guest to the host at the beginning of a session; version and capabilities are the caller's
// to fill in. It asks no name server, starts no process and touches no file system but /etc and the kernel's own, so it takes
// a few milliseconds. What cannot be read is "Unknown", and an identity empty. A tree that is not booted has no address.
func (r *Room) Ready(ctx context.Context) *pb.AgentReadyEvent {
	root := r.guest.Root()
	release := facts.ReadRelease(ctx, root)
	kernel, machine := facts.Kernel()
	ready := &pb.AgentReadyEvent{OsName: known(release.Name), OsVersion: known(release.Version), KernelVersion: known(kernel),
		Architecture: known(machine), Hostname: known(facts.Hostname(root)), ProductUuid: r.productUUID(), MachineId: facts.MachineID(root)}
	links, err := r.links()
	if err != nil {
		return ready
	}
	for _, addr := range facts.Addresses(links) {
		ready.IpAddresses = append(ready.IpAddresses, addr.String())
	}
	return ready
}

// productUUID is that of the running machine; a tree that is not booted has none.
func (r *Room) productUUID() string {
	if r.guest.Root() != "/" {
		return ""
	}
	return facts.ProductUUID()
}

func known(value string) string {
	if value == "" {
		return facts.Unknown
	}
	return value
}

func (r *Room) info(ctx context.Context, _ *builtins.Call, _ *pb.NoArgs) (*pb.HostInfo, error) {
	release := facts.ReadRelease(ctx, r.guest.Dir)
	kernel, machine := facts.Kernel()
	memory, err := facts.ReadMemory(ctx)
	if err != nil {
		return nil, err
	}
	system, product := systemName(release)
	return &pb.HostInfo{Hostname: facts.Hostname(r.guest.Dir), Os: system, Product: product, OsVersion: release.Version, OsId: release.ID,
		Kernel: kernel, Architecture: machine, Cpus: uint32(facts.CPUs()), MemoryBytes: memory.Total,
		MachineId: facts.MachineID(r.guest.Dir), ProductUuid: r.productUUID(), AgentVersion: r.version}, nil
}

// running returns an error below another root, which has no uptime, memory or mounts. A test of a script gets those of its own
// machine.
func (r *Room) running(what string) error {
	if r.guest.Root() == "/" || r.guest.Answer != nil {
		return nil
	}
	return fault.Unsupported("%s is that of the running machine, not of a tree", what)
}

func (r *Room) uptime(ctx context.Context, _ *builtins.Call, _ *pb.NoArgs) (*pb.Uptime, error) {
	if err := r.running("the uptime"); err != nil {
		return nil, err
	}
	up, err := facts.Uptime(ctx)
	return &pb.Uptime{Seconds: up.Seconds()}, err
}

func (r *Room) memory(ctx context.Context, _ *builtins.Call, _ *pb.NoArgs) (*pb.Memory, error) {
	if err := r.running("the memory"); err != nil {
		return nil, err
	}
	m, err := facts.ReadMemory(ctx)
	return &pb.Memory{Total: m.Total, Available: m.Available, SwapTotal: m.SwapTotal, SwapFree: m.SwapFree}, err
}

func (r *Room) mounted(ctx context.Context, _ *builtins.Call, _ *pb.NoArgs) (*pb.Disks, error) {
	if err := r.running("what is mounted"); err != nil {
		return nil, err
	}
	disks, err := r.disks.Read(ctx)
	if err != nil {
		return nil, err
	}
	out := &pb.Disks{}
	for _, d := range disks {
		out.Disks = append(out.Disks, &pb.Disk{Mount: d.Mount, Device: d.Device, Type: d.Type, Total: d.Total, Used: d.Used, Available: d.Available,
			InodesTotal: d.Inodes, InodesUsed: d.InodesUsed})
	}
	return out, nil
}

// MachineID is what /etc/machine-id says; empty where it cannot be read.
func (r *Room) MachineID() string { return facts.MachineID(r.guest.Root()) }

// BootID identifies this boot of the kernel; empty where the system does not know.
func (r *Room) BootID() string { return facts.BootID() }
