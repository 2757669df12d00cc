package journal

import (
	"bytes"
	"path"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

func now() *timestamppb.Timestamp { return timestamppb.New(time.Now()) }

// toState converts a state to its stored form.
func toState(m fsys.Meta) *pb.JournalState {
	s := &pb.JournalState{
		Kind: string(m.Kind), Mode: m.Mode, Uid: m.UID, Gid: m.GID, Size: m.Size, Mtime: toTime(m.Mtime),
		Target: []byte(m.Target), Rdev: m.Rdev, Ino: m.Ino, Links: m.Links,
	}
	s.Born = bornTime(m)
	for name, value := range m.Xattrs {
		s.Xattrs = append(s.Xattrs, &pb.JournalXattr{Name: []byte(name), Value: value})
	}
	slices.SortFunc(s.Xattrs, func(a, b *pb.JournalXattr) int { return bytes.Compare(a.Name, b.Name) })
	return s
}

// fromState is the inverse of toState.
func fromState(s *pb.JournalState) fsys.Meta {
	m := fsys.Meta{
		Kind: fsys.Kind(s.GetKind()), Mode: s.GetMode(), UID: s.GetUid(), GID: s.GetGid(), Size: s.GetSize(),
		Mtime: fromTime(s.GetMtime()), Target: string(s.GetTarget()), Rdev: s.GetRdev(), Ino: s.GetIno(), Links: s.GetLinks(),
		Born: fromTime(s.GetBorn()),
	}
	if len(s.GetXattrs()) > 0 {
		m.Xattrs = map[string][]byte{}
	}
	for _, x := range s.GetXattrs() {
		m.Xattrs[string(x.Name)] = x.Value
	}
	return m
}

func toTime(t fsys.Time) *pb.JournalTime { return &pb.JournalTime{Seconds: t.Sec, Nanos: t.Nsec} }

func fromTime(t *pb.JournalTime) fsys.Time {
	return fsys.Time{Sec: t.GetSeconds(), Nsec: t.GetNanos()}
}

// firstDifference names the first attribute that is not as it was; "" if all are. It does not compare content.
func firstDifference(was, is fsys.Meta) string {
	switch {
	case was.Kind != is.Kind:
		return "kind"
	case was.Mode != is.Mode && was.Kind != fsys.Symlink:
		return "mode"
	case was.UID != is.UID || was.GID != is.GID:
		return "owner"
	case was.Target != is.Target:
		return "target"
	case was.Rdev != is.Rdev:
		return "device number"
	case was.Mtime != is.Mtime:
		return "time"
	case len(was.Xattrs) != len(is.Xattrs):
		return "attributes"
	}
	for name, value := range was.Xattrs {
		if have, ok := is.Xattrs[name]; !ok || !bytes.Equal(have, value) {
			return "attribute " + name
		}
	}
	return ""
}

// unchanged reports whether an object is still in the state after the step: nothing of others' would be lost.
func unchanged(after *pb.JournalState, is fsys.Meta) bool {
	was := fromState(after)
	if was.Kind != is.Kind {
		return false
	}
	switch is.Kind {
	case fsys.File:
		return after.Mtime == nil || was.Size == is.Size && was.Mtime == is.Mtime
	case fsys.Symlink:
		return was.Target == is.Target
	}
	return was.Rdev == is.Rdev
}

// untouched reports whether a step did not change an object. It returns false for a directory, whose time changes with later
// steps in it, and for a kernel setting, whose size and times do not depend on its content.
func untouched(was, after *pb.JournalState) bool {
	return after != nil && was.Mtime != nil && after.Kind != string(fsys.Directory) && after.Size == was.Size &&
		fromState(was).SameInode(fromState(after)) && firstDifference(fromState(was), fromState(after)) == ""
}

// parent returns the directory of a resolved path; "" for the root.
func parent(p string) string {
	if fsys.IsRoot(p) {
		return ""
	}
	return fsys.Parent(p)
}

// childPath joins a resolved directory and a name, which it escapes.
func childPath(dir, name string) string { return joinEscaped(dir, text.EscapePath(name)) }

// txFilePath returns the path, in Journal.state, of a file in an open transaction's directory.
func txFilePath(id, name string) string { return path.Join("/open", id, "u", name) }
