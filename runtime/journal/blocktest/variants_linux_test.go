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

// variant is a journal that omits some syncs.
type variant struct {
	name string
	// caught are the file systems on which a violation must be found; empty: it was found on none.
	caught []string
	omission
}

type omission struct {
	step func(name string) bool
	sync func(path string) bool
}

// omissionOf returns what a variant omits, with state of its own for each run.
func omissionOf(name string) omission {
	for _, v := range variants() {
		if v.name == name {
			return v.omission
		}
	}
	return omission{}
}

// variants returns variants that omit each sync of the journal, one kind at a time. Those of the entries of new directories
// are not caught: with the first sync of a new or renamed file these file systems also make the entries that lead to it
// durable, which no standard promises. commit.syncall is not caught since the paths are synced as well.
func variants() []variant {
	return []variant{
		{name: "log.sync", caught: []string{"ext4", "xfs", "btrfs"}, omission: omitSteps("log.sync")},
		{name: "log.sync but of the last record", caught: []string{"ext4", "xfs", "btrfs"}, omission: omission{step: allButLastRecord()}},
		{name: "log.zerosync", omission: omitSteps("log.zerosync")},
		{name: "open.syncdir", omission: omitSteps("open.syncdir")},
		{name: "begin.syncdir", omission: omitSteps("begin.syncdir")},
		{name: "begin.syncparent", omission: omitSteps("begin.syncparent")},
		{name: "begin.syncdir, begin.syncparent", omission: omitSteps("begin.syncdir", "begin.syncparent")},
		{name: "pending", caught: []string{"ext4", "xfs", "btrfs"}, omission: omitSteps("pending.syncfile", "pending.syncdir", "pending.syncspool", "pending.syncall")},
		{name: "image.syncdir", omission: omitSteps("image.syncdir")},
		{name: "image.copy: the sync in it", caught: []string{"ext4", "btrfs"}, omission: omitSyncs(func(path string) bool { return strings.Contains(path, "/u/") })},
		{name: "the room's sync of a new file", caught: []string{"xfs", "btrfs"}, omission: omitSyncs(func(path string) bool { return fsys.IsTemp(filepath.Base(path)) })},
		{name: "commit.syncfile", caught: []string{"ext4", "xfs", "btrfs"}, omission: omitSteps("commit.syncfile")},
		{name: "commit.syncdir", caught: []string{"btrfs"}, omission: omitSteps("commit.syncdir")},
		{name: "commit.syncall", omission: omitSteps("commit.syncall")},
		{name: "all syncs of a commit, and of new files", caught: []string{"ext4", "xfs", "btrfs"}, omission: omission{
			step: omitSteps("commit.syncfile", "commit.syncdir", "commit.syncall").step,
			sync: func(path string) bool { return fsys.IsTemp(filepath.Base(path)) },
		}},
		{name: "restore.syncfile", caught: []string{"xfs", "btrfs"}, omission: omitSteps("restore.syncfile")},
		{name: "restore.syncdir", caught: []string{"ext4", "xfs", "btrfs"}, omission: omitSteps("restore.syncdir")},
		{name: "restore.syncfile, restore.syncdir", caught: []string{"ext4", "xfs", "btrfs"}, omission: omitSteps("restore.syncfile", "restore.syncdir")},
		{name: "save.write: the sync in it", caught: []string{"ext4", "xfs", "btrfs"}, omission: omitSyncs(func(path string) bool { return strings.Contains(path, "/done/") })},
		{name: "save.syncdir", caught: []string{"ext4", "xfs"}, omission: omitSteps("save.syncdir")},
		{name: "clean.syncdir", omission: omitSteps("clean.syncdir")},
	}
}

// Without a sync some state is wrong, on the file systems that the variant lists. A full run tries every variant on every
// file system.
func TestOmittedSyncs(t *testing.T) {
	requireTools(t)
	t.Logf("seed %d", *seed)
	table := []string{fmt.Sprintf("%-42s %-16s %8s %7s  %s", "left out", "file system", "expected", "states", "is")}
	for _, v := range variants() {
		for _, s := range fileSystems {
			expected := slices.Contains(v.caught, s.name)
			if *only != "" && *only != v.name || !*full && !expected {
				continue
			}
			t.Run(v.name+"/"+s.name, func(t *testing.T) {
				states, caught := v.findViolation(t, s)
				if expected && !caught {
					t.Errorf("not noticed in %d states", states)
				}
				table = append(table, fmt.Sprintf("%-42s %-16s %8s %7d  %s", v.name, s.name, caughtText(expected), states, caughtText(caught)))
			})
		}
	}
	t.Log("\n" + strings.Join(table, "\n"))
}

func caughtText(caught bool) string {
	if caught {
		return "caught"
	}
	return "-"
}

// findViolation looks for a wrong state, first with late and then with early write-back.
func (v variant) findViolation(t *testing.T, s fileSystem) (states int, caught bool) {
	for _, early := range []bool{false, true} {
		r := record(t, s, early, v.name)
		if r.Skipped == 0 {
			t.Fatal("nothing was left out: is the action called so?")
		}
		sum := r.checkStates(t, true, *full, subsetCount())
		states += sum.states
		if sum.violations > 0 {
			return states, true
		}
	}
	return states, false
}

func omitSteps(names ...string) omission {
	return omission{step: func(name string) bool {
		for _, n := range names {
			if n == name {
				return true
			}
		}
		return false
	}}
}

func omitSyncs(leave func(path string) bool) omission { return omission{sync: leave} }

// allButLastRecord omits the syncs of all records before the end of a transaction.
func allButLastRecord() func(string) bool {
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
