package policy

import (
	"os"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
)

// mount is one line of the kernel's list: the directory of a file system that stands at a path.
type mount struct{ device, dir, point string }

// source is a place in a file system, whatever it is mounted on.
type source struct{ device, path string }

// mounts reads the kernel's list, as proc_pid_mountinfo(5) has it.
func mounts() ([]mount, error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var list []mount
	for line := range strings.Lines(string(text)) {
		if f := fsys.MountFields(line); len(f) > 5 {
			list = append(list, mount{f[2], fsys.UnescapeMount(f[3]), fsys.UnescapeMount(f[4])})
		}
	}
	return list, nil
}

// sources returns where a path of this machine may lie: one mount may hide another, so all that lead to it count.
func sources(list []mount, path string) (found []source) {
	for _, m := range list {
		if fsys.Within(path, m.point) {
			found = append(found, source{m.device, fsys.Join(m.dir, strings.TrimPrefix(path, strings.TrimSuffix(m.point, "/")))})
		}
	}
	return found
}

// mountedIn returns what is mounted below a path of this machine.
func mountedIn(list []mount, path string) (found []source) {
	for _, m := range list {
		if m.point != path && fsys.Within(m.point, path) {
			found = append(found, source{m.device, m.dir})
		}
	}
	return found
}

// mountCovers reports whether a place is, by some mount, what stands at another or below it; with tree, also whether it is
// above.
func (g *Guest) mountCovers(rules, places []string, tree bool) (bool, error) {
	list, err := mounts()
	if err != nil {
		return false, err
	}
	for _, rule := range rules {
		rule = fsys.Join(g.dir(), rule)
		denied := append(sources(list, rule), mountedIn(list, rule)...)
		for _, place := range places {
			place = fsys.Join(g.dir(), place)
			own := sources(list, place)
			if tree {
				own = append(own, mountedIn(list, place)...)
			}
			for _, d := range denied {
				for _, s := range own {
					if s.device == d.device && (fsys.Within(s.path, d.path) || tree && fsys.Within(d.path, s.path)) {
						return true, nil
					}
				}
			}
		}
	}
	return false, nil
}

func (g *Guest) dir() string {
	if g.Dir == "" {
		return "/"
	}
	return g.Dir
}
