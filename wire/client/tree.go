package client

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// Tree has the options for copying a tree. All are optional.
type Tree struct {
	Push     PushOptions // Mode, Owner, Group, Parents and SHA256, for every file; Mode 0: each file's own
	SHA256   bool        // compare every pulled file with the guest's digest of it afterwards
	Progress Progress    // of all files together
	// Failed is called for what could not be copied; the copy goes on where it returns nil. Nil: the first failure ends it.
	Failed func(path string, err error) error
}

// CopyStats counts what was copied.
type CopyStats struct {
	Files, Directories, Links int
	Bytes                     int64
}

// errSpecialFile is the cause of an error about a device, a pipe or a socket.
var errSpecialFile = fault.Unsupported("neither a file, a directory nor a link")

// item is one thing to copy. Its name is relative to both trees and has slashes; "." is the root itself.
type item struct {
	name   string
	dir    bool
	target string // of a link
	link   bool
	mode   fs.FileMode
	size   int64
	mtime  time.Time
}

// treeCopy is one copy that is under way.
type treeCopy struct {
	l         *Link
	tree      Tree
	copied    CopyStats
	doneBytes int64 // bytes of the files that are done
	total     int64
}

// PushTree copies a local directory to a path of the guest, which becomes its copy: content, permission bits of files and
// new directories, and symbolic links as they are. Owners are the agent's unless Push says otherwise; times are those of the
// copy, since no message carries them. What is in the guest already and not here stays. Links are made by a script, all of
// them at the end; an agent without scripts leaves them out as failures.
func (l *Link) PushTree(ctx context.Context, local, remote string, tree Tree) (CopyStats, error) {
	p := treeCopy{l: l, tree: tree}
	items, err := p.walk(local)
	if err != nil {
		return p.copied, err
	}
	var links []item
	for _, it := range items {
		if it.link {
			links = append(links, it)
			continue
		}
		err := p.pushOne(ctx, local, remote, it)
		if err = p.handleFailure(ctx, filepath.Join(local, filepath.FromSlash(it.name)), err); err != nil {
			return p.copied, err
		}
	}
	return p.copied, p.pushLinks(ctx, remote, links)
}

// handleFailure decides whether a failure ends the copy.
func (p *treeCopy) handleFailure(ctx context.Context, path string, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case p.tree.Failed == nil || Gone(err):
		return err
	}
	return p.tree.Failed(path, err)
}

// walk lists a local tree, directories before what is in them.
func (p *treeCopy) walk(local string) (items []item, err error) {
	root, err := filepath.EvalSymlinks(local)
	if err != nil {
		return nil, err
	}
	err = filepath.WalkDir(root, func(full string, _ fs.DirEntry, err error) error {
		if err != nil {
			return p.handleFailure(context.Background(), full, err)
		}
		it, err := localItem(root, full)
		if err != nil {
			return p.handleFailure(context.Background(), full, err)
		}
		p.total += it.size
		items = append(items, it)
		return nil
	})
	return items, err
}

func localItem(root, full string) (it item, err error) {
	info, err := os.Lstat(full)
	if err != nil {
		return it, err
	}
	rel, err := filepath.Rel(root, full)
	if err != nil {
		return it, err
	}
	it = item{name: filepath.ToSlash(rel), mode: info.Mode().Perm()}
	switch info.Mode().Type() {
	case fs.ModeDir:
		it.dir = true
	case fs.ModeSymlink:
		it.link = true
		it.target, err = os.Readlink(full)
	case 0:
		it.size = info.Size()
	default:
		err = fault.On(full, errSpecialFile)
	}
	return it, err
}

func (p *treeCopy) pushOne(ctx context.Context, local, remote string, it item) error {
	target := guestJoin(remote, it.name)
	if it.dir {
		err := p.l.Do(ctx, func(ctx context.Context, c *Client) error {
			return c.Mkdir(ctx, target, uint32(it.mode), p.tree.Push.Parents && it.name == ".")
		})
		count(&p.copied.Directories, err)
		return err
	}
	from, err := os.Open(filepath.Join(local, filepath.FromSlash(it.name)))
	if err != nil {
		return err
	}
	defer from.Close()
	o := p.tree.Push
	o.Mode, o.Size, o.Progress = cmp.Or(o.Mode, uint32(it.mode)), it.size, p.progress
	n, err := p.l.PushFile(ctx, target, from, o)
	p.done(n, err)
	return err
}

func count(n *int, err error) {
	if err == nil {
		*n++
	}
}

func (p *treeCopy) progress(done, _ int64) {
	if p.tree.Progress != nil {
		p.tree.Progress(p.doneBytes+done, max(p.total, p.doneBytes+done))
	}
}

func (p *treeCopy) done(n int64, err error) {
	count(&p.copied.Files, err)
	p.copied.Bytes += n
	p.doneBytes += n
}

// linkScript makes links, all or none.
const linkScript = "for _, l in ipairs(params.links) do file.symlink(l.target, l.path) end"

// linkBatch bounds the elements of one message.
const linkBatch = 500

func (p *treeCopy) pushLinks(ctx context.Context, remote string, links []item) error {
	for len(links) > 0 {
		batch := links[:min(len(links), linkBatch)]
		links = links[len(batch):]
		err := p.makeLinks(ctx, remote, batch)
		if err == nil {
			p.copied.Links += len(batch)
			continue
		}
		for _, l := range batch {
			if err := p.handleFailure(ctx, guestJoin(remote, l.name), fmt.Errorf("links were not made: %w", err)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *treeCopy) makeLinks(ctx context.Context, remote string, links []item) error {
	list := make([]any, len(links))
	for i, l := range links {
		list[i] = map[string]any{"target": text.EscapePath(l.target), "path": text.EscapePath(guestJoin(remote, l.name))}
	}
	params, err := structpb.NewStruct(map[string]any{"links": list})
	if err != nil {
		return err
	}
	return p.l.Do(ctx, func(ctx context.Context, c *Client) error {
		reply, err := Call[*pb.RunScriptResponse](ctx, c, &pb.RunScriptRequest{Source: []byte(linkScript), Params: params})
		return replyError(reply.GetError(), err)
	})
}

// PullTree copies a directory of the guest to a local path, which becomes its copy: content, permission bits (without setuid,
// setgid and sticky), modification times, and symbolic links as they are. Owners are the caller's. Nothing is written
// outside the local directory, whatever names and links the guest sends.
func (l *Link) PullTree(ctx context.Context, remote, local string, tree Tree) (CopyStats, error) {
	p := treeCopy{l: l, tree: tree}
	items, err := p.list(ctx, remote)
	if err != nil {
		return p.copied, err
	}
	make := os.Mkdir
	if tree.Push.Parents {
		make = os.MkdirAll
	}
	if err := make(local, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return p.copied, err
	}
	root, err := os.OpenRoot(local)
	if err != nil {
		return p.copied, err
	}
	defer root.Close()
	for _, it := range items {
		err := p.pullOne(ctx, remote, root, it)
		if err = p.handleFailure(ctx, guestJoin(remote, it.name), err); err != nil {
			return p.copied, err
		}
	}
	return p.copied, p.setDirMetadata(ctx, root, items)
}

// list lists a tree of the guest, directories before what is in them. A link that remote is itself is followed.
func (p *treeCopy) list(ctx context.Context, remote string) ([]item, error) {
	items := []item{{name: ".", dir: true}}
	for i := 0; i < len(items); i++ {
		if !items[i].dir {
			continue
		}
		at := items[i].name
		var found []item
		err := p.l.Do(ctx, func(ctx context.Context, c *Client) (err error) {
			found, err = p.listOne(ctx, c, remote, at)
			return err
		})
		for _, it := range found {
			p.total += it.size
		}
		items = append(items, found...)
		if i == 0 && err != nil {
			return nil, err
		}
		if err = p.handleFailure(ctx, guestJoin(remote, at), err); err != nil {
			return nil, err
		}
	}
	return items, nil
}

// listOne lists one directory of a tree of the guest.
func (p *treeCopy) listOne(ctx context.Context, c *Client, remote, at string) (found []item, err error) {
	err = c.List(ctx, guestJoin(remote, at), true, func(e *pb.DirectoryEntry) error {
		it, err := guestItem(at, e)
		if err != nil {
			return p.handleFailure(ctx, guestJoin(remote, at), err)
		}
		found = append(found, it)
		return nil
	})
	return found, err
}

// guestItem takes an entry as the guest describes it, which may lie.
func guestItem(at string, e *pb.DirectoryEntry) (item, error) {
	name := text.UnescapePath(e.Name)
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") || !filepath.IsLocal(name) {
		return item{}, fault.Wrapf(fault.ErrCorrupt, "invalid name in a directory listing of the guest: %q", e.Name)
	}
	it := item{
		name: path.Join(at, name), dir: e.IsDirectory, link: e.IsSymlink, target: text.UnescapePath(e.SymlinkTarget),
		mode: fs.FileMode(e.Mode) & fs.ModePerm, mtime: e.ModifiedAt.AsTime(),
	}
	if !it.dir && !it.link {
		it.size = int64(e.SizeBytes)
	}
	return it, nil
}

func (p *treeCopy) pullOne(ctx context.Context, remote string, root *os.Root, it item) (err error) {
	switch {
	case it.name == ".":
		p.copied.Directories++
		return nil
	case it.dir:
		if err = root.Mkdir(it.name, 0o700); errors.Is(err, fs.ErrExist) && isRealDir(root, it.name) {
			err = root.Chmod(it.name, 0o700) // setDirMetadata sets its own
		}
		count(&p.copied.Directories, err)
		return err
	case it.link:
		err = replaceLocal(root, it.name, func(temp string) error { return root.Symlink(it.target, temp) })
		count(&p.copied.Links, err)
		return err
	}
	return replaceLocal(root, it.name, func(temp string) error {
		to, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		target := guestJoin(remote, it.name)
		got, err := p.l.pullNew(ctx, target, to, PullOptions{Progress: p.progress, SHA256: p.tree.SHA256})
		p.done(got.Size, err)
		if err != nil {
			return errors.Join(err, to.Close())
		}
		return errors.Join(to.Chmod(it.mode), to.Close(), chtimes(root, temp, it.mtime))
	})
}

func chtimes(root *os.Root, name string, t time.Time) error {
	if t.IsZero() || t.Unix() == 0 {
		return nil // not known
	}
	return root.Chtimes(name, t, t)
}

func isRealDir(root *os.Root, name string) bool {
	info, err := root.Lstat(name)
	return err == nil && info.IsDir()
}

// setDirMetadata sets the modes and times of directories, after all that was done in them, the innermost first.
func (p *treeCopy) setDirMetadata(ctx context.Context, root *os.Root, items []item) error {
	for i := len(items) - 1; i > 0; i-- {
		it := items[i]
		if !it.dir || !isRealDir(root, it.name) {
			continue
		}
		err := errors.Join(root.Chmod(it.name, it.mode), chtimes(root, it.name, it.mtime))
		if err = p.handleFailure(ctx, it.name, err); err != nil {
			return err
		}
	}
	return nil
}

// PullFile copies a file of the guest to a local path. Nothing is seen there before all of it has arrived; a link is
// followed, and a device or a pipe is written to. The permission bits come along, without setuid, setgid and sticky.
func (l *Link) PullFile(ctx context.Context, remote, local string, o PullOptions) (got PullResult, err error) {
	if info, err := os.Stat(local); err == nil {
		if !info.Mode().IsRegular() && !info.IsDir() {
			return l.pullInto(ctx, remote, local, o)
		}
		if local, err = filepath.EvalSymlinks(local); err != nil {
			return got, err
		}
	}
	root, err := os.OpenRoot(filepath.Dir(local))
	if err != nil {
		return got, err
	}
	defer root.Close()
	err = replaceLocal(root, filepath.Base(local), func(temp string) error {
		to, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		if got, err = l.pullNew(ctx, remote, to, o); err != nil {
			return errors.Join(err, to.Close())
		}
		return errors.Join(to.Chmod(fs.FileMode(got.Mode)&fs.ModePerm), to.Close())
	})
	return got, err
}

// pullNew pulls into a file that holds nothing else.
func (l *Link) pullNew(ctx context.Context, remote string, to *os.File, o PullOptions) (PullResult, error) {
	reset := func() error {
		_, err := to.Seek(0, io.SeekStart)
		return errors.Join(err, to.Truncate(0))
	}
	got, err := l.pullRetrying(ctx, text.EscapePath(remote), to, reset, o)
	return got, withPath(remote, err)
}

func (l *Link) pullInto(ctx context.Context, remote, local string, o PullOptions) (PullResult, error) {
	to, err := os.OpenFile(local, os.O_WRONLY, 0)
	if err != nil {
		return PullResult{}, err
	}
	got, err := l.PullTo(ctx, remote, to, o)
	return got, errors.Join(err, to.Close())
}

// PushFile is Push for a path as it is on the guest's disk, with errors that name it. After a lost connection it resumes behind
// what the agent acknowledged, or from where the reader stood if the agent has dropped that. The reader must be an io.Seeker;
// any other fails.
func (l *Link) PushFile(ctx context.Context, remote string, from io.Reader, o PushOptions) (int64, error) {
	n, err := l.pushRetrying(ctx, text.EscapePath(remote), from, o)
	return n, withPath(remote, err)
}

// PullTo is Pull for a path as it is on the guest's disk, with errors that name it. After a lost connection it resumes where
// it stopped; a file that has changed by then is fault.ErrChanged, since what was written cannot be taken back.
func (l *Link) PullTo(ctx context.Context, remote string, to io.Writer, o PullOptions) (PullResult, error) {
	got, err := l.pullRetrying(ctx, text.EscapePath(remote), to, nil, o)
	return got, withPath(remote, err)
}

// replaceLocal creates something under a temporary name and renames it.
func replaceLocal(root *os.Root, name string, make func(temp string) error) error {
	var b [6]byte
	rand.Read(b[:])
	temp := filepath.Join(filepath.Dir(name), ".quantix-"+hex.EncodeToString(b[:]))
	err := make(temp)
	if err == nil {
		err = root.Rename(temp, name)
	}
	if err != nil {
		root.Remove(temp)
	}
	return err
}

// guestJoin puts a name below a path of the guest.
func guestJoin(base, name string) string {
	if name == "." {
		return base
	}
	return strings.TrimSuffix(base, "/") + "/" + name
}
