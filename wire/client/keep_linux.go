package client

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// What Tree.All keeps on this system.
const hasOwners, hasXattrs = true, true

// isCopied reports whether a copy keeps an extended attribute. See CopiedAttribute of the protocol.
func isCopied(name string) bool {
	switch name {
	case "security.capability", "system.posix_acl_access", "system.posix_acl_default":
		return true
	}
	return strings.HasPrefix(name, "user.")
}

// localKept describes what is at a local path, but for its setuid, setgid and sticky.
func localKept(names *accounts, full string, info fs.FileInfo) (k kept, err error) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return k, nil
	}
	k.uid, k.gid = stat.Uid, stat.Gid
	k.owner, k.group = names.user(stat.Uid), names.group(stat.Gid)
	if info.Mode().IsRegular() && stat.Nlink > 1 {
		k.object = fmt.Sprintf("%x-%x", stat.Dev, stat.Ino)
	}
	k.xattrs, err = localXattrs(full)
	return k, err
}

// localXattrs reads the attributes that a copy keeps, sorted by name.
func localXattrs(full string) ([]*pb.CopiedAttribute, error) {
	return copiedOf(
		func(b []byte) (int, error) { return unix.Llistxattr(full, b) },
		func(name string, b []byte) (int, error) { return unix.Lgetxattr(full, name, b) },
	)
}

func copiedOf(list func([]byte) (int, error), get func(string, []byte) (int, error)) (copied []*pb.CopiedAttribute, err error) {
	names, err := sized(list)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for name := range strings.SplitSeq(string(names), "\x00") {
		if !isCopied(name) {
			continue
		}
		value, err := sized(func(b []byte) (int, error) { return get(name, b) })
		if errors.Is(err, unix.ENODATA) {
			continue // gone between the two calls
		}
		if err != nil {
			return nil, fmt.Errorf("attribute %s: %w", name, err)
		}
		copied = append(copied, &pb.CopiedAttribute{Name: name, Value: value})
	}
	slices.SortFunc(copied, func(a, b *pb.CopiedAttribute) int { return strings.Compare(a.Name, b.Name) })
	return copied, nil
}

// sized calls a function that says how big a buffer it needs, until the buffer is big enough.
func sized(read func([]byte) (int, error)) ([]byte, error) {
	for {
		n, err := read(nil)
		if err != nil || n == 0 {
			return nil, err
		}
		buffer := make([]byte, n)
		if n, err = read(buffer); !errors.Is(err, unix.ERANGE) {
			return buffer[:max(n, 0)], err
		}
	}
}

// setOwner gives what is at a name the owner that it has in the guest, where this process may do that: as root.
func setOwner(names *accounts, root *os.Root, name string, k kept) error {
	if os.Geteuid() != 0 {
		return nil
	}
	return root.Lchown(name, int(names.uid(k.owner, k.uid)), int(names.gid(k.group, k.gid)))
}

// setXattrs gives an open file or directory the attributes that it has in the guest. File capabilities need root.
func setXattrs(file *os.File, want []*pb.CopiedAttribute) error {
	fd := int(file.Fd())
	have, err := copiedOf(
		func(b []byte) (int, error) { return unix.Flistxattr(fd, b) },
		func(name string, b []byte) (int, error) { return unix.Fgetxattr(fd, name, b) },
	)
	if err != nil || sameXattrs(have, want) {
		return err
	}
	for _, x := range have {
		if !slices.ContainsFunc(want, func(w *pb.CopiedAttribute) bool { return w.Name == x.Name }) {
			if err := unix.Fremovexattr(fd, x.Name); err != nil {
				return fmt.Errorf("attribute %s: %w", x.Name, err)
			}
		}
	}
	for _, x := range want {
		if !isCopied(x.Name) || os.Geteuid() != 0 && strings.HasPrefix(x.Name, "security.") {
			continue
		}
		if err := unix.Fsetxattr(fd, x.Name, x.Value, 0); err != nil {
			return fmt.Errorf("attribute %s: %w", x.Name, err)
		}
	}
	return nil
}

// accounts are the users and groups of this machine as one copy knows them, each looked up once.
type accounts struct {
	mu                    sync.Mutex
	users, groups         map[uint32]string
	userNames, groupNames map[string]*uint32 // nil: there is none of this name
}

func cached[K comparable, V any](mu *sync.Mutex, known *map[K]V, key K, look func() V) V {
	mu.Lock()
	defer mu.Unlock()
	if value, ok := (*known)[key]; ok {
		return value
	}
	if *known == nil {
		*known = map[K]V{}
	}
	value := look()
	(*known)[key] = value
	return value
}

func (a *accounts) user(uid uint32) string {
	return cached(&a.mu, &a.users, uid, func() string {
		if u, err := user.LookupId(strconv.Itoa(int(uid))); err == nil {
			return u.Username
		}
		return ""
	})
}

func (a *accounts) group(gid uint32) string {
	return cached(&a.mu, &a.groups, gid, func() string {
		if g, err := user.LookupGroupId(strconv.Itoa(int(gid))); err == nil {
			return g.Name
		}
		return ""
	})
}

// uid returns the number of a user here; otherwise is that of one who has no name here.
func (a *accounts) uid(name string, otherwise uint32) uint32 {
	id := cached(&a.mu, &a.userNames, name, func() *uint32 {
		u, err := user.Lookup(name)
		if err != nil {
			return nil
		}
		return number(u.Uid)
	})
	return *cmp.Or(id, &otherwise)
}

func (a *accounts) gid(name string, otherwise uint32) uint32 {
	id := cached(&a.mu, &a.groupNames, name, func() *uint32 {
		g, err := user.LookupGroup(name)
		if err != nil {
			return nil
		}
		return number(g.Gid)
	})
	return *cmp.Or(id, &otherwise)
}

func number(text string) *uint32 {
	id, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return nil
	}
	return new(uint32(id))
}

// setLinkTime sets when a link was modified; a time that is not known stays.
func setLinkTime(root *os.Root, name string, t time.Time) error {
	if t.IsZero() {
		return nil
	}
	when, err := unix.TimeToTimespec(t)
	if err != nil {
		return err
	}
	dir, err := root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, when}
	return unix.UtimesNanoAt(int(dir.Fd()), path.Base(name), times, unix.AT_SYMLINK_NOFOLLOW)
}
