//go:build blocktest

package blocktest

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
)

// variant is the journal with something left out. Both funcs say of one action or sync whether it is; nil: none.
type variant struct {
	name string
	// caught are the file systems that must notice; none: nobody has seen it matter.
	caught []string
	leaves
}

type leaves struct {
	step func(name string) bool
	sync func(path string) bool
}

// variantNamed gives what a variant leaves out, new for each run.
func variantNamed(name string) leaves {
	for _, v := range variants() {
		if v.name == name {
			return v.leaves
		}
	}
	return leaves{}
}

// variants leave out each sync of the journal's, one kind at a time. Those of new directories' names have not been caught:
// these file systems make durable, with the first sync of a new or renamed file, also the names that lead to it, which no
// standard promises. commit.syncall has not since the paths are synced as well.
func variants() []variant {
	return []variant{
		{name: "log.sync", caught: []string{"ext4", "xfs", "btrfs"}, leaves: steps("log.sync")},
		{name: "log.sync but of the last record", caught: []string{"ext4", "xfs", "btrfs"}, leaves: leaves{step: earlyRecords()}},
		{name: "log.zerosync", leaves: steps("log.zerosync")},
		{name: "open.syncdir", leaves: steps("open.syncdir")},
		{name: "begin.syncdir", leaves: steps("begin.syncdir")},
		{name: "begin.syncparent", leaves: steps("begin.syncparent")},
		{name: "begin.syncdir, begin.syncparent", leaves: steps("begin.syncdir", "begin.syncparent")},
		{name: "settle", caught: []string{"ext4", "xfs", "btrfs"}, leaves: steps("settle.syncfile", "settle.syncdir", "settle.syncspool", "settle.syncall")},
		{name: "image.syncdir", leaves: steps("image.syncdir")},
		{name: "image.copy: the sync in it", caught: []string{"ext4", "btrfs"}, leaves: syncs(func(path string) bool { return strings.Contains(path, "/u/") })},
		{name: "the room's sync of a new file", caught: []string{"xfs", "btrfs"}, leaves: syncs(func(path string) bool { return fsys.IsTemp(filepath.Base(path)) })},
		{name: "commit.syncfile", caught: []string{"ext4", "xfs", "btrfs"}, leaves: steps("commit.syncfile")},
		{name: "commit.syncdir", caught: []string{"btrfs"}, leaves: steps("commit.syncdir")},
		{name: "commit.syncall", leaves: steps("commit.syncall")},
		{name: "all syncs of a commit, and of new files", caught: []string{"ext4", "xfs", "btrfs"}, leaves: leaves{
			step: steps("commit.syncfile", "commit.syncdir", "commit.syncall").step,
			sync: func(path string) bool { return fsys.IsTemp(filepath.Base(path)) },
		}},
		{name: "restore.syncfile", caught: []string{"xfs", "btrfs"}, leaves: steps("restore.syncfile")},
		{name: "restore.syncdir", caught: []string{"ext4", "xfs", "btrfs"}, leaves: steps("restore.syncdir")},
		{name: "restore.syncfile, restore.syncdir", caught: []string{"ext4", "xfs", "btrfs"}, leaves: steps("restore.syncfile", "restore.syncdir")},
		{name: "save.write: the sync in it", caught: []string{"ext4", "xfs", "btrfs"}, leaves: syncs(func(path string) bool { return strings.Contains(path, "/done/") })},
		{name: "save.syncdir", caught: []string{"ext4", "xfs"}, leaves: steps("save.syncdir")},
		{name: "clean.syncdir", caught: []string{"ext4", "xfs", "btrfs"}, leaves: steps("clean.syncdir")},
	}
}

// Each sync is there for a reason: without it some state is wrong on some file system. Of which syncs that could be shown,
// and where, is what the variants say; a full run tries all of them on each file system.
func TestLeftOut(t *testing.T) {
	needMachine(t)
	t.Logf("seed %d", *seed)
	table := []string{fmt.Sprintf("%-42s %-16s %8s %7s  %s", "left out", "file system", "expected", "states", "is")}
	for _, v := range variants() {
		for _, s := range systems {
			expected := slices.Contains(v.caught, s.name)
			if *only != "" && *only != v.name || !*full && !expected {
				continue
			}
			t.Run(v.name+"/"+s.name, func(t *testing.T) {
				states, caught := v.try(t, s)
				if expected && !caught {
					t.Errorf("not noticed in %d states", states)
				}
				table = append(table, fmt.Sprintf("%-42s %-16s %8s %7d  %s", v.name, s.name, is(expected), states, is(caught)))
			})
		}
	}
	t.Log("\n" + strings.Join(table, "\n"))
}

func is(caught bool) string {
	if caught {
		return "caught"
	}
	return "-"
}

// try looks for a wrong state, whether the kernel writes back late or early.
func (v variant) try(t *testing.T, s system) (states int, caught bool) {
	for _, hasty := range []bool{false, true} {
		r := record(t, s, hasty, v.name)
		if r.LeftOut == 0 {
			t.Fatal("nothing was left out: is the action called so?")
		}
		sum := r.try(t, true, *full, subsetsEach())
		states += sum.states
		if sum.violations > 0 {
			return states, true
		}
	}
	return states, false
}

func steps(names ...string) leaves {
	return leaves{step: func(name string) bool {
		for _, n := range names {
			if n == name {
				return true
			}
		}
		return false
	}}
}

func syncs(leave func(path string) bool) leaves { return leaves{sync: leave} }

// earlyRecords leaves out the syncs of all records but of those behind a commit's or a rollback's.
func earlyRecords() func(string) bool {
	ending := false
	return func(name string) bool {
		switch {
		case strings.HasPrefix(name, "begin."):
			ending = false
		case strings.HasPrefix(name, "commit."), strings.HasPrefix(name, "restore."):
			ending = true
		}
		return name == "log.sync" && !ending
	}
}
