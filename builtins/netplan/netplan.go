// Package netplan configures the network of the guest, in such a way that it does not cut the guest off.
//
//	netplan.set, remove ─┐                      ┌─ own checks: keys that stand twice, conflicts, gateways, interfaces
//	configure_network ───┴► all files together ─┴─ netplan's generator, in a directory of its own ─► /etc/netplan/NAME.yaml
//	                                                                                                         │
//	netplan.apply ─► what the generator makes of the files ─► what of it differs from /run ─► renderer ─► looked at: links,
//	                                                          nothing: nothing is called      (D-Bus)     gateway, probes
//
// What is wrong with a file is said before it is written. What is wrong with a network is seen after it was applied: then the
// renderer gets back what it had, and the files follow, with the transaction.
//
// Not here: what the network is (host, telemetry); netplan try, whose state is lost with the power.
package netplan

import (
	"slices"
	"sync"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/edit"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	undoRow    = "netplan.undo"
	settledRow = "netplan.settled"
	// hostFile is what configure_network writes: hosts and installers know it by this name.
	hostFile = "99-limiquantix"
	// defaultFile is what a configuration is checked as that has no name.
	defaultFile = "90-quantix"
)

// Config says how the room works. The zero value changes files alone.
type Config struct {
	// Machine says that the agent is the one of the running machine, whose network it may change.
	Machine bool
}

// Room holds the operations. It is safe for concurrent use.
type Room struct {
	guest  *guest.Guest
	edit   *edit.Editor
	config Config
	system system

	mu       sync.Mutex
	lastHash []byte // of the files that the generator was given last
	lastMade map[string]*generated
}

// New makes the room for a guest.
func New(g *guest.Guest, config Config) *Room {
	return &Room{guest: g, edit: &edit.Editor{Guest: g, Guard: g.Guard}, config: config, system: running(g)}
}

// network is what an operation is about that changes the network, or looks at it.
var network = builtins.Object{Kind: "netplan", Name: "network"}

// Room is what the table, the executor and the agent know of the room.
func (r *Room) Room() builtins.Room {
	capability := ""
	if r.served() == nil && r.mayApply() == nil {
		capability = "configure_network"
	}
	return builtins.Room{Name: "netplan", Sweep: r.sweep, Close: r.system.close, Ops: []builtins.Op{
		{
			Name: "netplan.get", Usage: "([name])", Summary: "the text of a file of netplan, or of all by name",
			AccessIn: builtins.In(r.getAccess), Handler: builtins.Handle(r.get),
		},
		{
			Name: "netplan.validate", Usage: "(config)",
			Summary:  "check what a file would hold, together with all others; returns its text and its conflicts with them",
			AccessIn: builtins.In(r.validateAccess), Handler: builtins.Handle(r.validate),
		},
		{
			Name: "netplan.set", Usage: "(name, config) changed",
			Summary: "have a file of netplan hold YAML, or a table that becomes it; checked together with all others",
			Mutates: true, Predictable: true, Inverse: undoRow,
			AccessIn: builtins.In(r.setAccess), Handler: builtins.Handle(r.set),
		},
		{
			Name: "netplan.remove", Usage: "(name) changed", Summary: "remove a file of netplan, if the others are good without it",
			Mutates: true, Predictable: true, Inverse: undoRow,
			AccessIn: builtins.In(r.removeAccess), Handler: builtins.Handle(r.remove),
		},
		{
			Name: "netplan.apply", Usage: "()",
			Summary: "have the network be as the files say, see that it works, and go back if it does not",
			Mutates: true, Predictable: true, Inverse: undoRow,
			AccessIn: builtins.In(r.applyAccess), Handler: builtins.Handle(r.apply),
		},
		{
			Name: "netplan.status", Usage: "()",
			Summary:  "who manages the network interfaces, and whether netplan.apply would change something",
			AccessIn: builtins.In(r.statusAccess), Handler: builtins.Handle(r.status),
		},
		{
			Name: settledRow, Usage: "()", Summary: "see that no file is left whose netplan.apply failed",
			Internal: true,
			Access:   builtins.Of(func(*pb.NetplanSettledArgs) builtins.Access { return internalAccess() }),
			Handler:  builtins.Handle(r.settled),
		},
		{
			// In another boot than the one it was announced in there is nothing that the early recovery would have to do.
			Name: undoRow, Usage: "()", Summary: "go back to the network that was",
			Mutates: true, Internal: true, Early: true,
			Access: builtins.Of(func(*pb.NetplanUndo) builtins.Access { return internalAccess() }), Handler: builtins.Handle(r.undo),
		},
		{
			Name: "configure_network", Capability: capability, Summary: "write the host's file of netplan, and apply it",
			Mutates: true, Transaction: true, Inverse: undoRow,
			AccessIn: builtins.In(r.configureAccess), Handler: builtins.Handle(r.configure),
		},
	}}
}

// dirs are the directories that netplan reads, of which a later one goes before the former ones (netplan(5)).
var dirs = []string{"/lib/netplan", "/etc/netplan", "/run/netplan"}

const own = "/etc/netplan" // the one that is written

func (r *Room) getAccess(files *fsys.Root, in *pb.NetplanGetArgs) builtins.Access {
	if in.Name == "" {
		return builtins.Access{Reads: r.read(files), Trees: dirs}
	}
	name, err := fileName(in.Name)
	if err != nil {
		return builtins.Access{Objects: []builtins.Object{network}}
	}
	a := builtins.Access{}
	for _, dir := range dirs {
		a.Reads = append(a.Reads, dir+"/"+name)
	}
	return a
}

func (r *Room) validateAccess(files *fsys.Root, _ *pb.NetplanValidateArgs) builtins.Access {
	return r.readAccess(files)
}

func (r *Room) setAccess(files *fsys.Root, in *pb.NetplanSetArgs) builtins.Access {
	return r.writeAccess(files, in.Name)
}

func (r *Room) removeAccess(files *fsys.Root, in *pb.NetplanRemoveArgs) builtins.Access {
	return r.writeAccess(files, in.Name)
}

func (r *Room) writeAccess(files *fsys.Root, name string) builtins.Access {
	a := r.readAccess(files)
	if name, err := fileName(name); err == nil { // the operation refuses what is no name
		a.Writes = []string{own + "/" + name}
	}
	return a
}

func (r *Room) applyAccess(files *fsys.Root, _ *pb.NetplanApplyArgs) builtins.Access {
	return r.readAccess(files)
}

func (r *Room) statusAccess(files *fsys.Root, _ *pb.NoArgs) builtins.Access {
	return r.readAccess(files)
}

func (r *Room) configureAccess(files *fsys.Root, _ *pb.ConfigureNetworkRequest) builtins.Access {
	return r.writeAccess(files, hostFile)
}

// readAccess has all files among what is read: a refusal names the keys in them.
func (r *Room) readAccess(files *fsys.Root) builtins.Access {
	return builtins.Access{Reads: r.read(files), Trees: dirs, Objects: []builtins.Object{network}}
}

// internalAccess is that of the rows that the journal calls: what they go on with was allowed.
func internalAccess() builtins.Access {
	return builtins.Access{Reads: dirs, Trees: dirs, Objects: []builtins.Object{network}}
}

// read are the directories, and each file in them by itself: one may be a link to anywhere.
func (r *Room) read(files *fsys.Root) []string {
	if files == nil {
		files = r.guest.Files
	}
	if files == nil {
		return dirs
	}
	all, _ := filePaths(files) // what cannot be listed is not read by the operation either
	return slices.Concat(dirs, all)
}

// served returns why nothing can be done here.
func (r *Room) served() error {
	if r.system.unsupported != "" {
		return fault.Unsupported("not supported: %s", r.system.unsupported)
	}
	if r.guest.Files == nil {
		return fault.Unsupported("not supported here: there are no files")
	}
	return nil
}

// mayApply returns why the network cannot be changed.
func (r *Room) mayApply() error {
	switch {
	case !r.guest.Live: // rows that change files work all the same
		return fault.Unsupported("a tree that is not booted has no network: what its files say holds when it is booted")
	case !r.config.Machine:
		return fault.Unsupported("this agent is not the one that the machine is installed with")
	}
	return nil
}
