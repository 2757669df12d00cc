package pkg

import (
	"slices"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/internal/packages"
	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// action is what is done with packages.
type action int

const (
	install action = iota
	remove
	update
)

// request is an order for a manager.
type request struct {
	action      action
	wishes      []wish // none: update all
	refresh     bool   // read the lists anew first
	recommended bool
	purge       bool
}

// pinned reports whether a version is asked for, which may be older than the one that is there.
func (q request) pinned() bool {
	return slices.ContainsFunc(q.wishes, func(w wish) bool { return w.version != "" })
}

// targets are the names, with versions after a sign.
func (q request) targets(sign string) (list []string) {
	for _, w := range q.wishes {
		if w.version != "" {
			list = append(list, w.name+sign+w.version)
		} else {
			list = append(list, w.name)
		}
	}
	return list
}

// manager is one package manager.
type manager struct {
	// name is the program's, and paths are where it may be.
	name  string
	paths []string
	// kind is the type of its packages.
	kind string
	// command returns the arguments for a request, or for its simulation.
	command func(q request, simulate bool) []string
	// refresh are those that read the lists anew, and lists are the directories where these are, unless configured otherwise.
	refresh, lists []string
	// plan reads what a simulation prints.
	plan func(out string) []step
	// good are the exit codes other than 0 that mean success, and simulated those of a simulation.
	good, simulated []int
	// reached matches a line that it prints once a script of a package, or a hook, may have run. Until then every line is its
	// own.
	reached string
	// own matches the lines after that which are certainly its own: scripts and hooks print whatever they like.
	own string
	// exact says that the simulation must name each package that is asked for: else the manager would take the name for
	// something else, such as a pattern.
	exact bool
}

const (
	// aptReached are lines of dpkg before it runs a script, and those of apt that show that dpkg or a hook was run.
	aptReached = `^(Preparing to unpack|Unpacking|Setting up|Removing|Purging configuration files for|Processing triggers|` +
		`Preconfiguring packages|Selecting previously unselected|\(Reading database)|` +
		`^(E|W): (Sub-process|Problem executing scripts|Failure running script)`
	rpmOwn = `^(Error|error|RPM: error)(:| )`
)

// managers are in the order in which they are looked for.
func managers() []manager {
	return []manager{
		{
			name: "apt-get", paths: []string{"/usr/bin/apt-get"}, kind: packages.Deb,
			command: aptCommand, refresh: aptArgs("-o", "APT::Update::Error-Mode=any", "update"), plan: aptPlan, exact: true,
			lists:   []string{"/var/lib/apt/lists"},
			reached: aptReached, own: `^(E|W|dpkg|dpkg-deb): `,
		},
		{
			name: "zypper", paths: []string{"/usr/bin/zypper"}, kind: packages.RPM,
			command: zypperCommand, refresh: []string{"zypper", "--non-interactive", "refresh"}, plan: zypperPlan,
			lists:   []string{"/var/cache/zypp/raw"},
			good:    []int{102, 103}, // restart or reboot needed
			reached: `^\(\s*\d+/\d+\)|^(Installing|Removing|Running|Executing)\b`, own: rpmOwn,
		},
		{
			name: "dnf", paths: []string{"/usr/bin/dnf"}, kind: packages.RPM,
			command: dnfCommand, refresh: []string{"dnf", "-y", "--refresh", "makecache"}, plan: dnfPlan, simulated: []int{1},
			lists:   []string{"/var/cache/dnf", "/var/cache/libdnf5"},
			reached: `^(\[\s*\d+/\d+\] )?(Running transaction|Running scriptlet\b.*|Prepare transaction\b.*)$`, own: rpmOwn,
		},
		{
			name: "apk", paths: []string{"/sbin/apk", "/usr/sbin/apk", "/usr/bin/apk"}, kind: packages.APK,
			command: apkCommand, refresh: []string{"apk", "update"}, plan: apkPlan,
			lists:   []string{"/var/cache/apk", "/etc/apk/cache"},
			reached: `^(\(\s*\d+/\d+\)|Executing) `, own: `^ERROR: `,
		},
		{
			name: "pacman", paths: []string{"/usr/bin/pacman"}, kind: packages.Pacman,
			command: pacmanCommand, refresh: []string{"pacman", "--noconfirm", "-Sy"}, plan: pacmanPlan,
			lists: []string{"/var/lib/pacman/sync"},
			reached: `^:: (Processing package changes|Running (pre|post)-transaction hooks)|` +
				`^(\(\s*\d+/\d+\) )?(installing|reinstalling|upgrading|downgrading|removing) .*\.\.\.`,
			own: `^error: `,
		},
	}
}

// manager finds the package manager of what a call acts on: one whose program is there, and whose packages are.
func (r *Room) manager(call *builtins.Call) (*manager, error) {
	files := r.guest.Of(call)
	if files == nil {
		return nil, fault.Unsupported("there is no file system to look for packages in")
	}
	known := packages.Of(r.guest, call).Known()
	for _, m := range managers() {
		if !slices.Contains(known, m.kind) {
			continue
		}
		for _, path := range m.paths {
			if at, err := files.Follow(path); err == nil {
				_, err = at.Stat()
				at.Close()
				if err == nil {
					return &m, nil
				}
			}
		}
	}
	return nil, fault.Unsupported("there is no package manager: apt, zypper, dnf, apk or pacman, with its database")
}

// aptArgs begin a command of apt: it asks nothing, and keeps configuration files that were changed.
func aptArgs(args ...string) []string {
	return append([]string{
		"apt-get", "-q", "-y", "-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold",
		"-o", "Dpkg::Use-Pty=0",
	}, args...)
}

func aptCommand(q request, simulate bool) []string {
	args := aptArgs()
	if simulate {
		args = append(args, "-s")
	}
	if !q.recommended {
		args = append(args, "--no-install-recommends")
	}
	switch q.action {
	case remove:
		args = append(args, map[bool]string{false: "remove", true: "purge"}[q.purge])
	case update:
		if len(q.wishes) == 0 {
			return append(args, "--with-new-pkgs", "upgrade")
		}
		args = append(args, "--only-upgrade", "install")
	default:
		if q.pinned() {
			args = append(args, "--allow-downgrades")
		}
		args = append(args, "install")
	}
	return append(append(args, "--"), q.targets("=")...)
}

func zypperCommand(q request, simulate bool) []string {
	args := []string{"zypper", "--non-interactive"}
	if simulate {
		args = append(args, "--xmlout")
	}
	if simulate || !q.refresh {
		args = append(args, "--no-refresh")
	}
	switch q.action {
	case remove:
		args = append(args, "remove")
	case update:
		args = append(args, "update", "--auto-agree-with-licenses")
	default:
		args = append(args, "install", "--auto-agree-with-licenses")
		if q.pinned() {
			args = append(args, "--oldpackage")
		}
	}
	if q.action != remove && !q.recommended {
		args = append(args, "--no-recommends")
	}
	if simulate {
		args = append(args, "--dry-run")
	}
	return append(append(args, "--"), q.targets("=")...)
}

// dnfCommand has nothing that dnf 4 and dnf 5 call by different names.
func dnfCommand(q request, simulate bool) []string {
	args := []string{"dnf", map[bool]string{false: "-y", true: "--assumeno"}[simulate]}
	if !q.recommended {
		args = append(args, "--setopt=install_weak_deps=False")
	}
	switch q.action {
	case remove:
		args = append(args, "--setopt=clean_requirements_on_remove=False", "remove")
	case update:
		args = append(args, "upgrade")
	default:
		args = append(args, "install")
	}
	return append(args, q.targets("-")...)
}

func apkCommand(q request, simulate bool) []string {
	args := []string{"apk", "--no-progress"}
	if simulate {
		args = append(args, "--simulate")
	}
	switch q.action {
	case remove:
		args = append(args, "del")
		if q.purge {
			args = append(args, "--purge")
		}
	case update:
		args = append(args, "upgrade")
	default:
		args = append(args, "add")
	}
	return append(args, q.targets("=")...)
}

func pacmanCommand(q request, simulate bool) []string {
	args := []string{"pacman", "--noconfirm"}
	if simulate {
		args = append(args, "--print", "--print-format", "%n %v")
	} else {
		args = append(args, "--noprogressbar")
	}
	switch {
	case q.action == remove && q.purge:
		args = append(args, "-Rcn")
	case q.action == remove:
		args = append(args, "-Rc")
	case q.action == update && len(q.wishes) == 0:
		return append(args, "-Su")
	default:
		args = append(args, "-S", "--needed")
	}
	return append(append(args, "--"), q.targets("=")...)
}
