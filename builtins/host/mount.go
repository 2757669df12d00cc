package host

import (
	"slices"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/guest"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	fstabFile = "/etc/fstab"
	mountUndo = "host.mount_undo"
)

// mounting are the rows that change what is mounted, now and at boot.
func (r *Room) mounting() []builtins.Op {
	return []builtins.Op{
		{
			Name: "host.mount", Usage: "() changed",
			Summary: "mount a file system at a directory, now and at each boot (fstab); undone together",
			Mutates: true, Predictable: true, Inverse: mountUndo,
			Access: builtins.Of(mountAccess), Handler: builtins.Handle(r.mount),
		},
		{
			Name: "host.unmount", Usage: "(target) changed",
			Summary: "unmount what is mounted at a directory, and take it out of fstab; undone together",
			Mutates: true, Predictable: true, Inverse: mountUndo,
			Access: builtins.Of(unmountAccess), Handler: builtins.Handle(r.unmount),
		},
		{
			Name: mountUndo, Usage: "(target) changed", Summary: "go back to what was mounted",
			Mutates: true, Internal: true, Access: builtins.Of(undoAccess), Handler: builtins.Handle(r.undoMount),
		},
	}
}

// mountAccess has what is mounted among what is read and changed: by the new path both may happen to it.
func mountAccess(in *pb.MountArgs) builtins.Access {
	a := builtins.Access{
		Reads: []string{fstabFile}, Writes: []string{fstabFile},
		Objects: []builtins.Object{{Kind: "mount", Name: in.Source}},
	}
	if in.Target != "" { // the operation refuses that
		a.Writes = append(a.Writes, in.Target)
	}
	if fsys.IsAbs(in.Source) {
		a.Reads, a.Writes = append(a.Reads, in.Source), append(a.Writes, in.Source)
		if isBind(in.Options) {
			a.Trees = []string{in.Source}
		}
	}
	for option := range strings.SplitSeq(in.Options, ",") {
		paths := optionPaths(option)
		a.Reads, a.Trees = append(a.Reads, paths...), append(a.Trees, paths...)
		if strings.HasPrefix(option, "upperdir=") || strings.HasPrefix(option, "workdir=") {
			a.Writes = append(a.Writes, paths...)
		}
	}
	if strings.HasPrefix(in.Fstype, "fuse") {
		a.Commands = []builtins.Command{guest.CommandAccess([]string{fuseProgram(in.Fstype, in.Source), in.Source, in.Target}, nil, "")}
	}
	return a
}

// optionPaths returns the paths in an option: the directories of an overlay, and what else is a path from the root on, such as
// that of credentials.
func optionPaths(option string) (paths []string) {
	name, value, _ := strings.Cut(option, "=")
	switch name {
	case "lowerdir", "lowerdir+", "datadir+", "upperdir", "workdir":
		for p := range strings.SplitSeq(value, ":") {
			if p != "" {
				paths = append(paths, p)
			}
		}
	default:
		if fsys.IsAbs(value) {
			paths = append(paths, value)
		}
	}
	return paths
}

// fuseProgram returns the program that mount(8) runs for a type of FUSE (mount.fuse3(8)): what follows "fuse." in the
// type, or before "#" in the source. For another type it is not empty.
func fuseProgram(fstype, source string) string {
	if program, ok := strings.CutPrefix(fstype, "fuse."); ok {
		return program
	}
	if fstype != "fuse" {
		return "mount"
	}
	program, _, _ := strings.Cut(source, "#")
	return program
}

func unmountAccess(in *pb.UnmountArgs) builtins.Access {
	return builtins.Access{Reads: []string{fstabFile}, Writes: []string{fstabFile, in.Target}}
}

func undoAccess(in *pb.MountUndo) builtins.Access {
	return builtins.Access{Writes: append([]string{in.Target}, in.Made...)}
}

// isBind reports whether options make a mount one of a directory.
func isBind(options string) bool {
	list := strings.Split(options, ",")
	return slices.Contains(list, "bind") || slices.Contains(list, "rbind")
}
