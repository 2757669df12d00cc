package client

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// PullTree copies a directory of the guest to a local path, which becomes its copy: content, permission bits (without setuid,
// setgid and sticky, unless Tree asks for all), modification times, and symbolic links as they are. Owners are the caller's,
// unless Tree asks for all. A file that is here with the same size and time, or else with the same digest, is not fetched.
// Nothing is written outside the local directory, whatever names and links the guest sends.
func (l *Link) PullTree(ctx context.Context, remote, local string, tree Tree) (CopyStats, error) {
	if err := tree.checkExclude(); err != nil {
		return CopyStats{}, err
	}
	p := pullTree{treeCopy: treeCopy{l: l, tree: tree}, remote: remote}
	items, err := p.list(ctx)
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
	if p.root, err = os.OpenRoot(local); err != nil {
		return p.copied, err
	}
	defer p.root.Close()
	err = p.pull(ctx, items)
	return p.copied, err
}

// PullKeeping copies one file of the guest to a local path as PullTree copies those of a tree. A link is followed, here and
// there; a device or a pipe here is written to, as by PullFile, and stays as it is.
func (l *Link) PullKeeping(ctx context.Context, remote, local string, tree Tree) (CopyStats, error) {
	p := pullTree{treeCopy: treeCopy{l: l, tree: tree}, remote: remote}
	it, err := p.follow(ctx, remote)
	if err != nil {
		return p.copied, err
	}
	if info, err := os.Stat(local); err == nil {
		if !info.Mode().IsRegular() && !info.IsDir() {
			got, err := p.l.pullInto(ctx, p.place(it), local, PullOptions{Progress: p.progressOf(), SHA256: tree.SHA256})
			p.done(got.Size, err)
			return p.copied, err
		}
		if local, err = filepath.EvalSymlinks(local); err != nil {
			return p.copied, err
		}
	}
	if p.root, err = os.OpenRoot(filepath.Dir(local)); err != nil {
		return p.copied, err
	}
	defer p.root.Close()
	it.name = filepath.Base(local)
	err = p.pull(ctx, []item{it})
	return p.copied, err
}

// pullTree is a tree on its way out of the guest.
type pullTree struct {
	treeCopy
	remote string
	root   *os.Root // where it goes
}

// place is where an item is in the guest.
func (p *pullTree) place(it item) string {
	if it.source != "" {
		return it.source
	}
	return guestJoin(p.remote, it.name)
}

// maxLinks is how many links in a row are followed.
const maxLinks = 40

// follow describes the file that a path of the guest leads to.
func (p *pullTree) follow(ctx context.Context, remote string) (it item, err error) {
	for range maxLinks {
		found, err := p.stat(ctx, []string{remote}, false, p.tree.All)
		if err != nil {
			return it, err
		}
		switch s := found[0]; {
		case s.Error != nil:
			return it, fault.FromDetail(s.Error)
		case s.Kind == "absent":
			return it, fault.On(remote, fs.ErrNotExist)
		case s.Kind == "file":
			it = item{
				source: remote, size: int64(s.SizeBytes), mode: fs.FileMode(s.Mode) & fs.ModePerm, mtime: timeOf(s.ModifiedAt),
			}
			it.keep(s)
			it.kept.object = "" // its other names are not copied
			return it, nil
		case s.Kind != "symlink":
			return it, fault.On(remote, errSpecialFile)
		default:
			target := text.UnescapePath(s.SymlinkTarget)
			if !strings.HasPrefix(target, "/") {
				target = guestJoin(path.Dir(remote), target)
			}
			remote = target
		}
	}
	return it, fault.On(remote, fault.Invalid("too many links"))
}

// keep takes over what a description has of Tree.All.
func (it *item) keep(s *pb.FileStatus) {
	it.kept = kept{
		special: s.Mode & 0o7000, uid: s.Uid, gid: s.Gid, owner: s.Owner, group: s.Group, object: s.Object, xattrs: s.Xattrs,
	}
}

// list lists a tree of the guest, directories before what is in them. A link that remote is itself is followed.
func (p *pullTree) list(ctx context.Context) ([]item, error) {
	items := []item{{name: ".", dir: true}}
	for i := 0; i < len(items); i++ {
		if !items[i].dir {
			continue
		}
		at := items[i].name
		var found []item
		err := p.l.Do(ctx, func(ctx context.Context, c *Client) (err error) {
			found, err = p.listOne(ctx, c, at)
			return err
		})
		for _, it := range found {
			p.total += it.size
		}
		items = append(items, found...)
		if i == 0 && err != nil {
			return nil, err
		}
		if err = p.handleFailure(ctx, guestJoin(p.remote, at), err); err != nil {
			return nil, err
		}
	}
	if !p.tree.All {
		return items, nil
	}
	return p.describe(ctx, items)
}

// listOne lists one directory of a tree of the guest.
func (p *pullTree) listOne(ctx context.Context, c *Client, at string) (found []item, err error) {
	err = c.List(ctx, guestJoin(p.remote, at), true, func(e *pb.DirectoryEntry) error {
		it, err := guestItem(at, e)
		if err != nil {
			return p.handleFailure(ctx, guestJoin(p.remote, at), err)
		}
		if !p.excluded(it.name) {
			found = append(found, it)
		}
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
		mode: fs.FileMode(e.Mode) & fs.ModePerm, mtime: timeOf(e.ModifiedAt),
	}
	if !it.dir && !it.link {
		it.size = int64(e.SizeBytes)
	}
	return it, nil
}

// describe adds what Tree.All keeps. Of the directory that the tree is the link to one is not followed, and nothing is kept.
// What cannot be described, or is another thing by now, is a failure and is left out, with all that is below.
func (p *pullTree) describe(ctx context.Context, items []item) (known []item, err error) {
	all, err := p.stat(ctx, p.places(items), false, true)
	if err != nil {
		return nil, err
	}
	left := map[string]bool{}
	for i, s := range all {
		it := items[i]
		if it.name != "." && left[path.Dir(it.name)] {
			left[it.name] = true
			continue
		}
		root := it.name == "."
		if err := describedAs(it, s); err != nil && !(root && s.Kind == "symlink") {
			left[it.name] = !root
			if err := p.handleFailure(ctx, p.place(it), fault.On(p.place(it), err)); err != nil {
				return nil, err
			}
			if !root {
				continue
			}
		} else if err == nil {
			it.keep(s)
			if root {
				it.mode, it.mtime = fs.FileMode(s.Mode)&fs.ModePerm, timeOf(s.ModifiedAt)
			}
		}
		known = append(known, it)
	}
	return known, nil
}

// describedAs returns why a description is none of an item.
func describedAs(it item, s *pb.FileStatus) error {
	want := "file"
	switch {
	case it.dir:
		want = "directory"
	case it.link:
		want = "symlink"
	}
	switch s.Kind {
	case want:
		return nil
	case "absent":
		return fs.ErrNotExist
	case "file", "directory", "symlink":
		return fault.Wrapf(fault.ErrChanged, "is a %s, and was a %s", s.Kind, want)
	case "":
		if err := fault.FromDetail(s.Error); err != nil {
			return err
		}
		return fault.Wrapf(fault.ErrCorrupt, "the guest does not describe it")
	}
	return errSpecialFile
}

func (p *pullTree) places(items []item) []string {
	paths := make([]string, len(items))
	for i, it := range items {
		paths[i] = p.place(it)
	}
	return paths
}

// pull makes what is not here: directories and links, then files, then further names of files, then attributes of directories.
func (p *pullTree) pull(ctx context.Context, items []item) error {
	first := map[string]item{}
	var small, large, again []item
	for _, it := range items {
		switch _, known := first[it.kept.object]; {
		case it.dir || it.link:
			if err := p.handleFailure(ctx, p.place(it), p.makeOne(it)); err != nil {
				return err
			}
		case it.kept.object != "" && known:
			again = append(again, it)
		case it.size <= pullSmall:
			small = append(small, it)
		default:
			large = append(large, it)
		}
		if !it.dir && !it.link && it.kept.object != "" {
			if _, known := first[it.kept.object]; !known {
				first[it.kept.object] = it
			}
		}
	}
	same, err := p.unchangedOf(ctx, slices.Concat(small, large))
	if err != nil {
		return err
	}
	for _, group := range []struct {
		items   []item
		workers int
	}{{small, pullsFlight}, {large, 1}} {
		err := parallel(ctx, group.workers, len(group.items), func(ctx context.Context, i int) error {
			it := group.items[i]
			err := p.pullFile(ctx, it, same[it.name])
			p.firstName(it, err)
			return p.handleFailure(ctx, p.place(it), err)
		})
		if err != nil {
			return err
		}
	}
	for _, it := range again {
		var err error
		if p.lost[it.kept.object] {
			err = fault.On(p.place(it), errFirstName)
		} else {
			err = p.linkTo(first[it.kept.object], it)
		}
		p.count(&p.copied.Links, 1, err)
		p.advance(it.size)
		if err := p.handleFailure(ctx, p.place(it), err); err != nil {
			return err
		}
	}
	return p.setDirMetadata(ctx, items)
}

// makeOne makes a directory or a link.
func (p *pullTree) makeOne(it item) (err error) {
	switch {
	case it.name == ".":
		p.count(&p.copied.Directories, 1, nil)
		return nil
	case it.dir:
		if err = p.root.Mkdir(it.name, 0o700); errors.Is(err, fs.ErrExist) && isRealDir(p.root, it.name) {
			err = p.root.Chmod(it.name, 0o700) // setDirMetadata sets its own
		}
		p.count(&p.copied.Directories, 1, err)
		return err
	}
	if have, err := p.root.Readlink(it.name); err != nil || have != it.target {
		err := replaceLocal(p.root, it.name, func(temp string) error { return p.root.Symlink(it.target, temp) })
		if err != nil {
			return err
		}
	}
	p.count(&p.copied.Links, 1, nil)
	if !p.tree.All {
		return nil
	}
	if err := setOwner(&p.names, p.root, it.name, it.kept); err != nil {
		return err
	}
	return setLinkTime(p.root, it.name, it.mtime)
}

// unchangedOf finds out which files are here already, by name.
func (p *pullTree) unchangedOf(ctx context.Context, items []item) (map[string]bool, error) {
	same := map[string]bool{}
	var unsure []item
	for _, it := range items {
		info, err := p.root.Lstat(it.name)
		switch {
		case err != nil || !info.Mode().IsRegular() || info.Size() != it.size:
		case !p.tree.Checksum && !it.mtime.IsZero() && info.ModTime().Equal(it.mtime):
			same[it.name] = true
		default:
			unsure = append(unsure, it)
		}
	}
	all, err := p.stat(ctx, p.places(unsure), true, false)
	if notServed(err) {
		return same, nil
	}
	if err != nil {
		return nil, err
	}
	for i, it := range unsure {
		if len(all[i].Sha256) == 0 {
			continue
		}
		sum, err := digestOpen(func() (*os.File, error) { return p.root.Open(it.name) })
		same[it.name] = err == nil && bytes.Equal(sum, all[i].Sha256)
	}
	return same, nil
}

// pullFile fetches a file, or gives the one that is here what it has in the guest.
func (p *pullTree) pullFile(ctx context.Context, it item, same bool) error {
	if same {
		p.unchanged(it)
		return p.dress(it.name, it)
	}
	return replaceLocal(p.root, it.name, func(temp string) error {
		to, err := p.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		got, err := p.l.pullNew(ctx, p.place(it), to, PullOptions{Progress: p.progressOf(), SHA256: p.tree.SHA256})
		p.done(got.Size, err)
		if err = errors.Join(err, to.Close()); err != nil {
			return err
		}
		return p.dress(temp, it)
	})
}

// dress gives a file of this name what an item has besides its content.
func (p *pullTree) dress(name string, it item) error {
	if p.tree.All {
		if err := p.own(name, it); err != nil {
			return err
		}
	}
	return errors.Join(p.root.Chmod(name, p.modeOf(it)), chtimes(p.root, name, it.mtime))
}

// own gives what is at a name its owner and extended attributes: before the mode, which each of them may change.
func (p *pullTree) own(name string, it item) error {
	if err := setOwner(&p.names, p.root, name, it.kept); err != nil {
		return err
	}
	if !hasXattrs {
		return nil
	}
	file, err := p.root.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	return setXattrs(file, it.kept.xattrs)
}

// modeOf is the mode that an item gets here.
func (p *pullTree) modeOf(it item) fs.FileMode {
	mode := it.mode
	if p.tree.All {
		for bit, flag := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
			if it.kept.special&bit != 0 {
				mode |= flag
			}
		}
	}
	return mode
}

// linkTo makes a further name of a file that was copied.
func (p *pullTree) linkTo(first, it item) error {
	a, errA := p.root.Lstat(first.name)
	b, errB := p.root.Lstat(it.name)
	if errA != nil {
		return errA
	}
	if errB == nil && os.SameFile(a, b) {
		return nil
	}
	return replaceLocal(p.root, it.name, func(temp string) error { return p.root.Link(first.name, temp) })
}

// timeOf returns when something was modified; zero where the agent does not say.
func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

func chtimes(root *os.Root, name string, t time.Time) error {
	if t.IsZero() {
		return nil
	}
	return root.Chtimes(name, t, t)
}

func isRealDir(root *os.Root, name string) bool {
	info, err := root.Lstat(name)
	return err == nil && info.IsDir()
}

// setDirMetadata sets what directories have, after all that was done in them, the innermost first. The tree itself gets nothing
// unless all is kept.
func (p *pullTree) setDirMetadata(ctx context.Context, items []item) error {
	for _, it := range slices.Backward(items) {
		if !it.dir || !isRealDir(p.root, it.name) || it.name == "." && !(p.tree.All && !it.mtime.IsZero()) {
			continue
		}
		if err := p.handleFailure(ctx, it.name, p.dress(it.name, it)); err != nil {
			return err
		}
	}
	return nil
}
