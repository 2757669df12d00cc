// Package pkg installs, updates and removes packages by the package manager of the guest: apt, dnf, zypper, apk or pacman.
//
//	database ──► is it so already? ──► nothing to do
//	                │ no
//	                ├─ dry run: the manager's own simulation ──► what would change
//	                └─ run: simulation (apt) ► journal: irreversible ► manager, waiting for its lock ► database again
//	                                                                                └──► what did change, and is it what was wanted?
//
// Scripts call it as the room package, which is no name that a package of Go can have. What it did nothing takes back: a
// rollback names it.
//
// Not here: which packages are installed (internal/packages reads that, for the inventory too), and where packages come from:
// that is configuration, and files.
package pkg

import (
	"context"
	"strings"
	"time"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/builtins/internal/packages"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text/lazyregexp"
)

const (
	room = "package"
	kind = "package" // of the objects in Access: names without versions

	maxNames       = 1000
	maxName        = 128 // bytes of a name, and of a version
	defaultTimeout = 300 * time.Second
)

// A name is what every manager takes for one and none for an option, a pattern or a request to remove. dpkg's has an
// architecture after a colon.
var (
	packageName    = lazyregexp.New(`^[A-Za-z0-9]([A-Za-z0-9+._@-]*[A-Za-z0-9+._@])?(:[a-z0-9][a-z0-9-]*)?$`)
	packageVersion = lazyregexp.New(`^[A-Za-z0-9][A-Za-z0-9+._:~^-]*$`)
)

func isName(text string) bool    { return len(text) <= maxName && packageName().MatchString(text) }
func isVersion(text string) bool { return len(text) <= maxName && packageVersion().MatchString(text) }

// Room holds the operations. It is safe for concurrent use.
type Room struct{ guest *guest.Guest }

// New makes the room.
func New(g *guest.Guest) *Room { return &Room{guest: g} }

// Room is what the table, the executor and the agent know of the room. The rows that change packages name the package manager
// as a helper: rules on commands hold for it, and a script that needs the room, or one package, needs nothing more.
func (r *Room) Room() builtins.Room {
	return builtins.Room{Name: room, Scope: kind, Ops: []builtins.Op{
		{
			Name: "package.installed", Usage: "(name) installed", Summary: "whether a package of that name is installed",
			Access: builtins.Of(oneAccess), Handler: builtins.Handle(r.installed),
		},
		{
			Name: "package.version", Usage: "(name) version", Summary: "the version of an installed package",
			Access: builtins.Of(oneAccess), Handler: builtins.Handle(r.version),
		},
		{
			Name: "package.install", Usage: "(names) changed",
			Summary: "have packages installed, which nothing takes back",
			Mutates: true, Partial: true, Predictable: true,
			Access:  builtins.Of(r.installAccess),
			Handler: builtins.Handle(r.install),
		},
		{
			Name: "package.remove", Usage: "(names) changed", Summary: "have packages not installed, which nothing takes back",
			Mutates: true, Partial: true, Predictable: true,
			Access:  builtins.Of(r.removeAccess),
			Handler: builtins.Handle(r.remove),
		},
		{
			Name: "package.update", Usage: "([names]) changed",
			Summary: "bring packages, or all, to the newest version, which nothing takes back",
			Mutates: true, Partial: true, Predictable: true,
			Access:  builtins.Of(r.updateAccess),
			Handler: builtins.Handle(r.update),
		},
	}}
}

func oneAccess(in *pb.PackageArgs) builtins.Access { return access([]string{in.Name}) }

func (r *Room) installAccess(in *pb.PackageInstallArgs) builtins.Access {
	wishes, err := parse(in.Names, true)
	return r.managed(access(in.Names), err, request{
		action: install, wishes: wishes, refresh: in.Refresh, recommended: in.Recommended,
	})
}

func (r *Room) removeAccess(in *pb.PackageRemoveArgs) builtins.Access {
	wishes, err := parse(in.Names, false)
	return r.managed(access(in.Names), err, request{action: remove, wishes: wishes, purge: in.Purge})
}

// updateAccess has a name also where all packages are meant, so that a need for some packages does not cover it.
func (r *Room) updateAccess(in *pb.PackageUpdateArgs) builtins.Access {
	all := access(in.Names)
	if len(in.Names) == 0 {
		all = builtins.Access{Objects: []builtins.Object{{Kind: kind, Name: "*"}}}
	}
	wishes, err := parse(in.Names, false)
	return r.managed(all, err, request{action: update, wishes: wishes, refresh: in.Refresh == nil || *in.Refresh})
}

// managed adds the commands of the package manager that a request would run. One whose names make no sense runs none; nor does
// any where there is no manager.
func (r *Room) managed(a builtins.Access, wrong error, q request) builtins.Access {
	m, err := r.manager(&builtins.Call{})
	if wrong != nil || err != nil {
		return a
	}
	run := func(argv []string) {
		a.Helpers = append(a.Helpers, builtins.Command{Argv: argv, Paths: []string{packages.Path}})
	}
	if q.refresh {
		run(m.refresh)
	}
	run(m.command(q, false))
	return a
}

func access(names []string) (access builtins.Access) {
	for _, name := range names {
		name, _, _ = strings.Cut(name, "=")
		access.Objects = append(access.Objects, builtins.Object{Kind: kind, Name: name})
	}
	return access
}

// wish is one package that a call is about.
type wish struct {
	name    string
	version string // empty: any
}

func (w wish) String() string {
	if w.version == "" {
		return w.name
	}
	return w.name + "=" + w.version
}

// parse reads names, each once, and with versions where these make sense.
func parse(names []string, versions bool) (list []wish, err error) {
	if len(names) > maxNames {
		return nil, fault.Invalid("names has %d elements, more than %d", len(names), maxNames)
	}
	known := map[string]string{}
	for _, text := range names {
		name, version, pinned := strings.Cut(text, "=")
		switch {
		case !isName(name):
			return nil, fault.Invalid("%.80q is no name of a package", name)
		case pinned && !versions:
			return nil, fault.Invalid("%.80q: a version makes no sense here", text)
		case pinned && !isVersion(version):
			return nil, fault.On(name, fault.Invalid("%.80q is no version of a package", version))
		}
		if before, ok := known[name]; ok {
			if before != version {
				return nil, fault.On(name, fault.Invalid("it is named twice, with different versions"))
			}
			continue
		}
		known[name] = version
		list = append(list, wish{name, version})
	}
	return list, nil
}

func (r *Room) installed(ctx context.Context, call *builtins.Call, in *pb.PackageArgs) (*pb.PackageInstalled, error) {
	state, err := r.look(ctx, call, in.Name)
	if err != nil {
		return nil, err
	}
	return &pb.PackageInstalled{Installed: state.has(in.Name)}, nil
}

func (r *Room) version(ctx context.Context, call *builtins.Call, in *pb.PackageArgs) (*pb.PackageVersion, error) {
	state, err := r.look(ctx, call, in.Name)
	if err != nil {
		return nil, err
	}
	out := &pb.PackageVersion{}
	if versions := state.versions(in.Name); len(versions) > 0 {
		out.Version = &versions[0]
	}
	return out, nil
}

// look reads what is installed, for a question about one package.
func (r *Room) look(ctx context.Context, call *builtins.Call, name string) (*state, error) {
	if _, err := parse([]string{name}, false); err != nil {
		return nil, err
	}
	m, err := r.manager(call)
	if err != nil {
		return nil, err
	}
	return r.state(ctx, call, m)
}
