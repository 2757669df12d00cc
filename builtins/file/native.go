package file

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/edit"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// maxListing is the most bytes of a listing: a frame of the protocol holds 16 MiB, with its envelope.
const maxListing = 15 << 20

// maxPage is the most entries of a listing: they take some 20 MiB of memory.
const maxPage = 50_000

var errListing = fault.Wrapf(fault.ErrTooLarge, "more entries than one reply holds; ask for pages with max_entries")

func (r *Room) listDirectory(
	ctx context.Context, call *builtins.Call, in *pb.ListDirectoryRequest,
) (*pb.ListDirectoryResponse, error) {
	dir, err := openDir(r.guest.Of(call), in.Path)
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	defer dir.Close()
	page := page{token: in.ContinuationToken, max: maxPage}
	if in.MaxEntries > 0 {
		page.max = int(min(in.MaxEntries, maxPage))
	}
	total := 0
	failed := dir.Each(func(name string) error {
		if in.IncludeHidden || name[0] != '.' {
			page.add(text.EscapePath(name))
			total++
		}
		return context.Cause(ctx)
	})
	accounts, err := r.guest.Files.Accounts()
	failed = errors.Join(failed, err)
	out := &pb.ListDirectoryResponse{Success: true, TotalEntries: uint32(total)}
	page.cut()
	if page.more {
		out.ContinuationToken = page.names[len(page.names)-1]
	}
	err = describe(ctx, out, dir, in.Path, page.names, accounts)
	if err == nil && page.more && in.MaxEntries == 0 {
		err = errListing
	}
	failed = errors.Join(failed, err)
	if failed != nil {
		out.Error = fault.On(in.Path, failed).Error()
	}
	return out, context.Cause(ctx)
}

// page is a part of a directory in the order of its names: the first ones after a token, at most max of them. Of a directory
// of any size it holds few more.
type page struct {
	token string
	max   int
	names []string
	more  bool // there are names after them
}

func (p *page) add(name string) {
	if p.token != "" && name <= p.token {
		return
	}
	if p.names = append(p.names, name); len(p.names) > 2*p.max+1000 {
		p.cut()
	}
}

// cut sorts the names, and drops those that are after the page.
func (p *page) cut() {
	slices.Sort(p.names)
	if len(p.names) > p.max {
		p.names, p.more = slices.Clone(p.names[:p.max]), true
	}
}

// describe adds the entries of a page to a listing. Names that are gone meanwhile are left out; the error is about
// others that could not be looked at, and of a page that is too long for one message, which then ends early.
func describe(ctx context.Context, out *pb.ListDirectoryResponse, dir *fsys.Dir, at string, page []string, accounts *fsys.Accounts) error {
	size, bad, first := 0, 0, error(nil)
	for i, name := range page {
		if i%1000 == 0 && context.Cause(ctx) != nil {
			return context.Cause(ctx)
		}
		meta, err := dir.Stat(text.UnescapePath(name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			if bad++; first == nil {
				first = fmt.Errorf("%s: %w", name, err)
			}
			continue
		}
		e := entry(name, child(at, name), meta, accounts)
		if size += proto.Size(e) + 8; size > maxListing {
			out.ContinuationToken = page[i-1]
			return errListing
		}
		out.Entries = append(out.Entries, e)
	}
	if bad > 0 {
		return fmt.Errorf("%d entries are left out: %w", bad, first)
	}
	return nil
}

// entry describes an object to the host. Directories have size 0, as the host's listings always had it.
func entry(name, path string, meta fsys.Meta, accounts *fsys.Accounts) *pb.DirectoryEntry {
	e := &pb.DirectoryEntry{
		Name: name, Path: path,
		IsDirectory: meta.Kind == fsys.Directory, IsSymlink: meta.Kind == fsys.Symlink,
		Mode:          typeAndMode(meta),
		ModifiedAt:    stamp(meta.Mtime),
		Owner:         accounts.UserName(meta.UID),
		Group:         accounts.GroupName(meta.GID),
		SymlinkTarget: text.EscapePath(meta.Target),
	}
	if meta.Kind != fsys.Directory {
		e.SizeBytes = uint64(meta.Size)
	}
	if meta.Born != (fsys.Time{}) {
		e.CreatedAt = stamp(meta.Born)
	}
	return e
}

func stamp(t fsys.Time) *timestamppb.Timestamp {
	return &timestamppb.Timestamp{Seconds: t.Sec, Nanos: int32(t.Nsec)}
}

func (r *Room) fileStat(_ context.Context, call *builtins.Call, in *pb.FileStatRequest) (*pb.FileStatResponse, error) {
	at, err := r.guest.Of(call).At(in.Path)
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	defer at.Close()
	meta, err := at.Stat()
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	accounts, err := r.guest.Files.Accounts()
	if err != nil {
		return nil, err
	}
	name := text.EscapePath(at.Name)
	if at.IsRoot() {
		name = "/"
	}
	return &pb.FileStatResponse{Success: true, Entry: entry(name, in.Path, meta, accounts)}, nil
}

func (r *Room) createDirectory(ctx context.Context, call *builtins.Call, in *pb.CreateDirectoryRequest) (_ *pb.CreateDirectoryResponse, err error) {
	if in.Mode > 0o7777 || in.Mode&0o4000 != 0 {
		return nil, fault.On(in.Path, fault.Invalid("mode %o is not for a directory", in.Mode))
	}
	attr := fsys.Attr{}
	if in.Mode != 0 {
		attr.Mode = &in.Mode
	}
	c, err := r.begin(call, "create_directory", in.Path, edit.Options{Follow: true, Parents: in.CreateParents})
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	defer c.End(&err)
	if err := c.trustedDir(attr); err != nil {
		return nil, err
	}
	switch c.Old.Kind {
	case fsys.Directory:
		return &pb.CreateDirectoryResponse{Success: true}, nil
	case fsys.Absent:
	default:
		return nil, fs.ErrExist
	}
	if err := c.Prepare(ctx); err != nil {
		return nil, err
	}
	if err := c.At.Mkdir(attr); err != nil {
		return nil, err
	}
	if err := c.At.SyncDir(); err != nil {
		return nil, err
	}
	return &pb.CreateDirectoryResponse{Success: true}, nil
}

func (r *Room) fileDelete(ctx context.Context, call *builtins.Call, in *pb.FileDeleteRequest) (_ *pb.FileDeleteResponse, err error) {
	c, err := r.begin(call, "file_delete", in.Path, edit.Options{Whole: true})
	if err != nil {
		return nil, fault.On(in.Path, err)
	}
	defer c.End(&err)
	if c.Absent() {
		return nil, fs.ErrNotExist
	}
	if err := c.removable(in.Recursive); err != nil {
		return nil, err
	}
	if err := c.takeAway(ctx, in.Recursive); err != nil {
		return nil, err
	}
	return &pb.FileDeleteResponse{Success: true}, nil
}
