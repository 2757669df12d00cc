package file

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/quantix-kvm/guest-agent/builtins"
	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/builtins/internal/edit"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// maxTreeEntries is how many paths one request of a tree has: MaxElements of the protocol would be the next bound.
const maxTreeEntries = 1000

// maxStaged is how many files of a tree are on their way to their names at a time. Each needs open files.
const maxStaged = 64

// The kinds of a TreeEntry that are none of an object.
const (
	kindHardLink   = "link"
	kindAttributes = "attributes"
)

// treePlace is where a staged file goes: a directory, and a name in it in lower case, for systems that make no difference.
type treePlace struct {
	dev, ino uint64
	name     string
}

// treeWriter makes the entries of one request:
//
//	file ► staged ─┐ up to maxStaged
//	file ► staged ─┴─► all in their places, durable ► results
//	any other ► those before it first ► made at once; its directory is synced at the end
type treeWriter struct {
	r        *Room
	call     *builtins.Call
	accounts *fsys.Accounts
	entries  []*pb.TreeEntry
	results  []*pb.TreeResult // of each entry

	staged []fsys.Placement
	of     []int               // whose entries these are
	names  map[treePlace]bool  // where they go
	swept  map[[2]uint64]bool  // directories that were swept
	dirs   map[string]*fsys.At // in which names changed that are not durable yet, by path
	wait   map[string][]int    // the entries of each
}

func (r *Room) writeFiles(ctx context.Context, call *builtins.Call, in *pb.WriteFilesRequest) (*pb.WriteFilesResponse, error) {
	if err := checkTreeSize(len(in.Entries)); err != nil {
		return nil, err
	}
	accounts, err := r.guest.Files.Accounts()
	if err != nil {
		return nil, err
	}
	w := &treeWriter{
		r: r, call: call, accounts: accounts, entries: in.Entries, results: make([]*pb.TreeResult, len(in.Entries)),
		swept: map[[2]uint64]bool{}, names: map[treePlace]bool{}, dirs: map[string]*fsys.At{}, wait: map[string][]int{},
	}
	for i := range w.results {
		w.results[i] = &pb.TreeResult{}
	}
	for i, entry := range in.Entries {
		if err := context.Cause(ctx); err != nil { // what was made stays, and the reply has the outcome of each
			for left := range w.results[i:] {
				w.failed(i+left, err)
			}
			break
		}
		if entry.Kind != string(fsys.File) || len(w.staged) == maxStaged {
			w.place()
		}
		w.failed(i, w.make(ctx, i, entry))
	}
	w.place()
	w.sync()
	return &pb.WriteFilesResponse{Success: true, Results: w.results}, nil
}

func checkTreeSize(n int) error {
	if n > maxTreeEntries {
		return fault.Wrapf(fault.ErrTooLarge, "%d paths, and %d are the most of one request", n, maxTreeEntries)
	}
	return nil
}

// failed notes why an entry was not made; nil: it was.
func (w *treeWriter) failed(i int, err error) {
	if err != nil && w.results[i].Error == nil {
		w.results[i].Error = detailOn(w.entries[i].Path, "write_files", err)
	}
}

// detailOn is the detail of an error about a path of many.
func detailOn(path, op string, err error) *pb.ErrorDetail {
	detail := fault.Detail(fault.On(path, err))
	if detail.Op == "" {
		detail.Op, detail.Message = op, op+" "+detail.Message
	}
	return detail
}

// make makes one entry. A file is only staged.
func (w *treeWriter) make(ctx context.Context, i int, entry *pb.TreeEntry) error {
	attr, err := w.attr(entry)
	if err != nil {
		return err
	}
	switch entry.Kind {
	case string(fsys.File):
		return w.file(ctx, i, entry, attr)
	case string(fsys.Directory):
		return w.directory(ctx, i, entry, attr)
	case string(fsys.Symlink):
		return w.symlink(ctx, i, entry, attr)
	case kindHardLink:
		return w.link(i, entry)
	case kindAttributes:
		return w.attributes(entry, attr, "")
	}
	return fault.Invalid("the kind %q is none of file, directory, symlink, link and attributes", entry.Kind)
}

// attr is what an entry says of attributes.
func (w *treeWriter) attr(entry *pb.TreeEntry) (attr fsys.Attr, err error) {
	if attr.UID, err = w.id(entry.Owner, entry.Uid, w.accounts.UID); err != nil {
		return attr, err
	}
	if attr.GID, err = w.id(entry.Group, entry.Gid, w.accounts.GID); err != nil {
		return attr, err
	}
	if entry.Mode != nil && *entry.Mode > 0o7777 {
		return attr, fault.Invalid("mode %o has more than permission bits", *entry.Mode)
	}
	for _, id := range []*uint32{attr.UID, attr.GID} {
		if id != nil && *id == math.MaxUint32 {
			return attr, fault.Invalid("%d is the number of no user and no group", *id)
		}
	}
	attr.Mode, attr.Separate, attr.KeepSpecial = entry.Mode, entry.Separate, true
	if t := entry.ModifiedAt; t != nil {
		if err := t.CheckValid(); err != nil {
			return attr, fault.Invalid("the time of modification: %v", err)
		}
		attr.Mtime = &fsys.Time{Sec: t.Seconds, Nsec: uint32(t.Nanos)}
	}
	if entry.SetXattrs {
		attr.Copied = map[string][]byte{}
		for _, x := range entry.Xattrs {
			if !fsys.IsCopied(x.Name) {
				return attr, fault.Invalid("%s is no attribute that a copy keeps", x.Name)
			}
			attr.Copied[x.Name] = x.Value
		}
	}
	return attr, nil
}

// id is the number of a user or group: of the name, else the one that is given besides.
func (w *treeWriter) id(name string, number *uint32, of func(string) (uint32, error)) (*uint32, error) {
	if name == "" {
		return number, nil
	}
	id, err := of(name)
	if errors.Is(err, fsys.ErrNoAccount) && number != nil {
		return number, nil
	}
	if err != nil {
		return nil, err
	}
	return &id, nil
}

// file stages a file, or puts it in its place at once where it does not take a name of its own.
func (w *treeWriter) file(ctx context.Context, i int, entry *pb.TreeEntry, attr fsys.Attr) (err error) {
	if entry.Crc32C != nil && *entry.Crc32C != w.r.crc(entry.Data) {
		return fault.Wrapf(fault.ErrCorrupt, "it was damaged on its way: its CRC-32C is %08x", w.r.crc(entry.Data))
	}
	c, err := w.r.begin(w.call, "write_files", entry.Path, followLinks)
	if err != nil {
		return err
	}
	defer func() { c.Close() }()
	dir, err := c.At.StatDir()
	if err != nil {
		return err
	}
	place := treePlace{dir.Dev, dir.Ino, strings.ToLower(c.At.Name)}
	if w.names[place] { // the second of two takes over what the first one has
		w.place()
		again, err := w.r.begin(w.call, "write_files", entry.Path, followLinks)
		if err != nil {
			return err
		}
		c.Close()
		c = again
	}
	if entry.Separate {
		c.separate()
	}
	is := [2]uint64{dir.Dev, dir.Ino}
	c.swept, w.swept[is] = w.swept[is], true
	sink, err := w.r.sinkFor(c, entry.Path, false, attr)
	if err != nil {
		return err
	}
	if _, err := sink.Write(entry.Data); err != nil {
		return errors.Join(err, sink.discard())
	}
	staged, ok := sink.(*stagedSink)
	if !ok || c.inPlace() {
		return sink.finish(ctx, w.call, attr)
	}
	w.staged, w.of = append(w.staged, fsys.Placement{Staged: staged.staged, Attr: attr}), append(w.of, i)
	w.names[place] = true
	return nil
}

// place puts what is staged in its place.
func (w *treeWriter) place() {
	var list []fsys.Placement
	var of []int
	for n, p := range w.staged {
		i := w.of[n]
		if err := w.r.leadsTo(w.call, w.entries[i].Path, p.Staged); err != nil {
			w.failed(i, errors.Join(err, p.Staged.Discard()))
			continue
		}
		list, of = append(list, p), append(of, i)
	}
	for n, err := range fsys.CommitAll(list) {
		w.failed(of[n], err)
	}
	w.staged, w.of = nil, nil
	clear(w.names)
}

func (w *treeWriter) directory(ctx context.Context, i int, entry *pb.TreeEntry, attr fsys.Attr) error {
	if entry.Mode != nil && *entry.Mode&0o4000 != 0 {
		return fault.Invalid("mode %o is not for a directory", *entry.Mode)
	}
	c, err := w.r.begin(w.call, "write_files", entry.Path, edit.Options{Follow: true})
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.trustedDir(attr); err != nil {
		return err
	}
	switch c.Old.Kind {
	case fsys.Absent:
	case fsys.Directory:
		return c.At.SetAttrOf(c.Old, attr)
	default:
		return fs.ErrExist
	}
	if err := c.Prepare(ctx); err != nil {
		return err
	}
	if err := c.At.Mkdir(attr); err != nil {
		return err
	}
	return w.changed(i, c.At.Path)
}

func (w *treeWriter) symlink(ctx context.Context, i int, entry *pb.TreeEntry, attr fsys.Attr) error {
	_, err := w.r.edit.Symlink(ctx, w.call, edit.Link{
		Op: "write_files", Path: entry.Path, Target: text.UnescapePath(entry.Target),
	})
	if err != nil {
		return err
	}
	attr.Mode, attr.Copied = nil, nil // which no link has
	return w.attributes(entry, attr, fsys.Symlink)
}

func (w *treeWriter) link(i int, entry *pb.TreeEntry) error {
	of, err := w.r.begin(w.call, "write_files", entry.Target, edit.Options{})
	if err != nil {
		return err
	}
	defer of.Close()
	c, err := w.r.begin(w.call, "write_files", entry.Path, edit.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	if of.Old.Kind != fsys.File {
		return fault.On(entry.Target, fault.Invalid("only a file gets another name"))
	}
	if trusted, err := of.At.Trusted(of.Old, nil); err != nil || !trusted {
		other := fault.Refuse("%s belongs to user %d, and others can write to the directory", entry.Target, of.Old.UID)
		return errors.Join(err, other)
	}
	changed, err := of.At.LinkOver(c.At)
	if err != nil || !changed {
		return err
	}
	return w.changed(i, c.At.Path)
}

// attributes changes nothing but attributes, which the next sync of the file system makes durable. Made is what the entry made
// before; empty: what is there already is meant.
func (w *treeWriter) attributes(entry *pb.TreeEntry, attr fsys.Attr, made fsys.Kind) error {
	c, err := w.r.begin(w.call, "write_files", entry.Path, edit.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	if made != "" && c.Old.Kind != made {
		return fault.Wrapf(fault.ErrChanged, "something else took its name meanwhile")
	}
	if c.Absent() {
		return fs.ErrNotExist
	}
	if trusted, err := c.At.Trusted(c.Old, attr.UID); err != nil || !trusted {
		return errors.Join(err, fault.Refuse("it belongs to user %d, and others can write to the directory", c.Old.UID))
	}
	return c.At.SetAttrOf(c.Old, attr)
}

// changed notes that the name of an entry is to be made durable.
func (w *treeWriter) changed(i int, path string) error {
	dir := fsys.Parent(path)
	if w.dirs[dir] == nil {
		at, err := w.r.guest.Of(w.call).Exact(path)
		if err != nil {
			return err
		}
		w.dirs[dir] = at
	}
	w.wait[dir] = append(w.wait[dir], i)
	return nil
}

// sync makes names durable.
func (w *treeWriter) sync() {
	for dir, at := range w.dirs {
		err := errors.Join(at.SyncDir(), at.Close())
		for _, i := range w.wait[dir] {
			w.failed(i, err)
		}
	}
}

func (r *Room) statFiles(ctx context.Context, call *builtins.Call, in *pb.StatFilesRequest) (*pb.StatFilesResponse, error) {
	if err := checkTreeSize(len(in.Paths)); err != nil {
		return nil, err
	}
	accounts, err := r.guest.Files.Accounts()
	if err != nil {
		return nil, err
	}
	out, size := &pb.StatFilesResponse{Success: true}, 0
	for _, path := range in.Paths {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		status, err := r.status(ctx, call, path, in, accounts)
		switch code := fault.Code(err); {
		case context.Cause(ctx) != nil:
			return nil, context.Cause(ctx)
		case code == "not_found" || code == "not_directory":
			status = &pb.FileStatus{Kind: string(fsys.Absent)}
		case err != nil:
			status = &pb.FileStatus{Error: detailOn(path, "stat_files", err)}
		}
		if size += proto.Size(status) + 8; size > maxListing {
			return nil, fault.Wrapf(fault.ErrTooLarge, "more than one reply holds; ask for fewer paths")
		}
		out.Files = append(out.Files, status)
	}
	return out, nil
}

// status describes what is at one path.
func (r *Room) status(
	ctx context.Context, call *builtins.Call, path string, in *pb.StatFilesRequest, accounts *fsys.Accounts,
) (*pb.FileStatus, error) {
	at, err := r.guest.Of(call).At(path)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	look := at.Stat
	if in.Xattrs {
		look = at.Capture
	}
	meta, err := look()
	if err != nil {
		return nil, err
	}
	s := &pb.FileStatus{
		Kind: string(meta.Kind), Mode: meta.Mode, ModifiedAt: stamp(meta.Mtime), SymlinkTarget: text.EscapePath(meta.Target),
		Uid: meta.UID, Gid: meta.GID, Owner: accounts.UserName(meta.UID), Group: accounts.GroupName(meta.GID),
	}
	for name, value := range meta.Xattrs {
		if fsys.IsCopied(name) {
			s.Xattrs = append(s.Xattrs, &pb.CopiedAttribute{Name: name, Value: value})
		}
	}
	slices.SortFunc(s.Xattrs, func(a, b *pb.CopiedAttribute) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) })
	if meta.Kind != fsys.File {
		return s, nil
	}
	s.SizeBytes = uint64(meta.Size)
	if meta.Links > 1 {
		s.Object = objectOf(meta)
	}
	if in.Sha256 {
		s.Sha256, err = digestAt(ctx, at)
	}
	return s, err
}

func digestAt(ctx context.Context, at *fsys.At) ([]byte, error) {
	file, err := at.Open()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	sum, err := digestOf(ctx, file)
	if err != nil {
		return nil, err
	}
	return hex.DecodeString(sum)
}

// objectOf names a file, whatever it is called.
func objectOf(meta fsys.Meta) string { return fmt.Sprintf("%x-%x", meta.Dev, meta.Ino) }
