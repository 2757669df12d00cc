package journal

import (
	"bytes"
	"path"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// version is of the records.
const version = 1

func now() *timestamppb.Timestamp { return timestamppb.New(time.Now()) }

// toState puts a state into its stored form.
func toState(m fsys.Meta) *pb.JournalState {
	s := &pb.JournalState{
		Kind: string(m.Kind), Mode: m.Mode, Uid: m.UID, Gid: m.GID, Size: m.Size, Mtime: toTime(m.Mtime),
		Target: []byte(m.Target), Rdev: m.Rdev, Ino: m.Ino, Links: m.Links,
	}
	for name, value := range m.Xattrs {
		s.Xattrs = append(s.Xattrs, &pb.JournalXattr{Name: []byte(name), Value: value})
	}
	slices.SortFunc(s.Xattrs, func(a, b *pb.JournalXattr) int { return bytes.Compare(a.Name, b.Name) })
	return s
}

// fromState is toState's way back.
func fromState(s *pb.JournalState) fsys.Meta {
	m := fsys.Meta{
		Kind: fsys.Kind(s.GetKind()), Mode: s.GetMode(), UID: s.GetUid(), GID: s.GetGid(), Size: s.GetSize(),
		Mtime: fromTime(s.GetMtime()), Target: string(s.GetTarget()), Rdev: s.GetRdev(), Ino: s.GetIno(), Links: s.GetLinks(),
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

// difference names what of a state is not as it was; "" if all is. Content is not looked at.
func difference(was, is fsys.Meta) string {
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

// unchanged says whether an object is still what a step left: nobody put anything else there that could be lost.
func unchanged(left *pb.JournalState, is fsys.Meta) bool {
	was := fromState(left)
	if was.Kind != is.Kind {
		return false
	}
	switch is.Kind {
	case fsys.File:
		return left.Mtime == nil || was.Size == is.Size && was.Mtime == is.Mtime
	case fsys.Symlink:
		return was.Target == is.Target
	}
	return was.Rdev == is.Rdev
}

// idle says whether a step left an object as it was. Of a directory it never does: what is in it changes its time later.
// Nor does it of a setting of the kernel, whose size and times are the same whatever its content is.
func idle(was, left *pb.JournalState) bool {
	return left != nil && was.Mtime != nil && left.Kind != string(fsys.Directory) && left.Ino == was.Ino && left.Size == was.Size &&
		difference(fromState(was), fromState(left)) == ""
}

// parent is the directory of a resolved path; "" for the root.
func parent(p string) string {
	if i := strings.LastIndexAny(p, `/\`); i > 0 {
		return p[:i]
	}
	if len(p) > 1 {
		return "/"
	}
	return ""
}

// below is a path in a resolved directory.
func below(dir, name string) string {
	if strings.HasSuffix(dir, "/") {
		return dir + fsys.Escape(name)
	}
	return dir + "/" + fsys.Escape(name)
}

// inState is the path, for the journal's own root, of a file in an open transaction's directory.
func inState(id, name string) string { return path.Join("/open", id, "u", name) }
