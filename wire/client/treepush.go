package client

import (
	"bytes"
	"cmp"
	"context"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// PushTree copies a local directory, or a file, to a path of the guest, which becomes its copy: content, permission bits of
// files and of new directories, symbolic links as they are, and what else Tree asks for. A file whose content is in the guest
// already is not sent: of the same size, and with Times or All of the same time of modification, else of the same digest.
// What is in the guest and not here stays.
//
//	what is there? ► directories ► files: small ones many at a time ► links ► attributes of what is complete
//
// An agent without these requests gets one file after the other and links by a script; it cannot keep what Times and All ask
// for.
func (l *Link) PushTree(ctx context.Context, local, remote string, tree Tree) (CopyStats, error) {
	if err := tree.checkExclude(); err != nil {
		return CopyStats{}, err
	}
	p := pushTree{treeCopy: treeCopy{l: l, tree: tree}, remote: remote, first: map[string]item{}}
	items, err := p.walk(local)
	if err != nil {
		return p.copied, err
	}
	err = p.look(ctx, items)
	switch {
	case notServed(err) && !p.keeps():
		err = p.plain(ctx, items)
	case err == nil:
		err = p.push(ctx, items)
	}
	return p.copied, err
}

// pushTree is a tree on its way to the guest.
type pushTree struct {
	treeCopy
	remote string
	there  map[string]*pb.FileStatus // what is in the guest, by the name of the item
	same   map[string]bool           // files whose content is there already
	first  map[string]item           // the first name of a file with several, by its object
	wrote  bool                      // something was made
}

// walk lists a local tree, directories before what is in them.
func (p *pushTree) walk(local string) (items []item, err error) {
	root, err := filepath.EvalSymlinks(local)
	if err != nil {
		return nil, err
	}
	err = filepath.WalkDir(root, func(full string, entry fs.DirEntry, err error) error {
		if err != nil {
			return p.handleFailure(context.Background(), full, err)
		}
		it, err := p.localItem(root, full)
		if p.excluded(it.name) {
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if err != nil {
			return p.handleFailure(context.Background(), full, err)
		}
		p.total += it.size
		items = append(items, it)
		return nil
	})
	return items, err
}

func (p *pushTree) localItem(root, full string) (it item, err error) {
	rel, err := filepath.Rel(root, full)
	if err != nil {
		return it, err
	}
	it = item{name: filepath.ToSlash(rel), full: full}
	info, err := os.Lstat(full)
	if err != nil {
		return it, err
	}
	it.mode, it.mtime = info.Mode().Perm(), info.ModTime()
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
	if err != nil {
		return it, err
	}
	if p.tree.All {
		it.kept, err = localKept(&p.names, full, info)
	}
	if p.keeps() {
		it.kept.special = specialOf(info.Mode())
	}
	return it, err
}

// place is where an item goes.
func (p *pushTree) place(it item) string { return guestJoin(p.remote, it.name) }

// look finds out what is in the guest, and which files need not be sent.
func (p *pushTree) look(ctx context.Context, items []item) error {
	paths := make([]string, len(items))
	for i, it := range items {
		paths[i] = p.place(it)
	}
	all, err := p.stat(ctx, paths, false, p.tree.All)
	if err != nil {
		return err
	}
	p.there, p.same = map[string]*pb.FileStatus{}, map[string]bool{}
	var unsure []item
	for i, it := range items {
		p.there[it.name] = all[i]
		switch {
		case it.dir || it.link || all[i].Kind != "file" || int64(all[i].SizeBytes) != it.size:
		case p.keeps() && !p.tree.Checksum && all[i].ModifiedAt.AsTime().Equal(it.mtime):
			p.same[it.name] = true
		default:
			unsure = append(unsure, it)
		}
	}
	return p.compare(ctx, unsure)
}

// compare finds out by digests which files have the same content. What cannot be compared is sent.
func (p *pushTree) compare(ctx context.Context, items []item) error {
	paths := make([]string, len(items))
	for i, it := range items {
		paths[i] = p.place(it)
	}
	all, err := p.stat(ctx, paths, true, false)
	if notServed(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for i, it := range items {
		if len(all[i].Sha256) == 0 {
			continue
		}
		sum, err := digestOpen(func() (*os.File, error) { return os.Open(it.full) })
		p.same[it.name] = err == nil && bytes.Equal(sum, all[i].Sha256)
	}
	return nil
}

// push makes what is not there.
func (p *pushTree) push(ctx context.Context, items []item) error {
	var dirs, links, late, done []todo
	var small, large []item
	for i, it := range items {
		switch first, again := p.first[it.kept.object]; {
		case it.dir:
			dirs = append(dirs, p.directory(it)...)
			done = append(done, p.lateOfDir(it)...)
		case it.link:
			links = append(links, p.symlink(it)...)
		case it.kept.object != "" && again:
			links = append(links, p.hardLink(it, first)...)
		default:
			if it.kept.object != "" {
				p.first[it.kept.object] = items[i]
			}
			switch {
			case p.same[it.name]:
				p.unchanged(it)
				late = append(late, p.attributes(it)...)
			case it.size <= smallFile && !p.tree.Push.SHA256:
				small = append(small, it)
			default:
				large = append(large, it)
			}
		}
	}
	if err := p.makeRoot(ctx, items); err != nil {
		return err
	}
	if err := p.send(ctx, 1, dirs); err != nil {
		return err
	}
	if err := p.sendSmall(ctx, small); err != nil {
		return err
	}
	for _, it := range large {
		err := p.pushFile(ctx, it)
		if err == nil {
			late = append(late, p.attributes(it)...)
		}
		p.firstName(it, err)
		if err = p.handleFailure(ctx, it.full, err); err != nil {
			return err
		}
	}
	links, err := p.onlyOfCopied(ctx, links)
	if err != nil {
		return err
	}
	if err := p.send(ctx, 1, links); err != nil {
		return err
	}
	if err := p.send(ctx, treeFlight, late); err != nil {
		return err
	}
	slices.Reverse(done) // the innermost first
	return p.send(ctx, 1, p.onlyNeeded(done))
}

// onlyOfCopied leaves out further names of files whose first name was not copied, each of which is a failure.
func (p *pushTree) onlyOfCopied(ctx context.Context, list []todo) (kept []todo, err error) {
	for _, t := range list {
		if t.entry.Kind == "link" {
			p.advance(t.it.size)
			if p.lost[t.it.kept.object] {
				if err := p.handleFailure(ctx, t.it.full, fault.On(t.it.full, errFirstName)); err != nil {
					return nil, err
				}
				continue
			}
		}
		kept = append(kept, t)
	}
	return kept, nil
}

// specialOf returns setuid, setgid and sticky as the kernel has them.
func specialOf(mode fs.FileMode) (bits uint32) {
	for flag, bit := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if mode&flag != 0 {
			bits |= bit
		}
	}
	return bits
}

// makeRoot makes the directory of the tree where it is missing, with those above it if they are wanted, or those above a file.
func (p *pushTree) makeRoot(ctx context.Context, items []item) error {
	if len(items) == 0 || p.there[items[0].name].GetKind() != "absent" || !p.tree.Push.Parents {
		return nil
	}
	dir := p.remote
	if !items[0].dir {
		dir = path.Dir(strings.TrimRight(dir, "/"))
	}
	return p.l.Do(ctx, func(ctx context.Context, c *Client) error { return c.Mkdir(ctx, dir, 0, true) })
}

// todo is one entry of a request, and the item that it is for.
type todo struct {
	it    item
	entry *pb.TreeEntry
	count *int // the counter of copied that it is one of; nil: none
}

// entry begins the entry of an item with all that is kept of it.
func (p *pushTree) entry(it item, kind string) *pb.TreeEntry {
	e := &pb.TreeEntry{Path: text.EscapePath(p.place(it)), Kind: kind}
	if p.keeps() && !it.link {
		e.Mode = new(uint32(it.mode) | it.kept.special)
	}
	if p.keeps() && !it.link || p.tree.All {
		e.ModifiedAt = timestamppb.New(it.mtime)
	}
	if p.tree.All && hasOwners {
		e.Owner, e.Group, e.Uid, e.Gid = it.kept.owner, it.kept.group, &it.kept.uid, &it.kept.gid
	}
	if p.tree.All && !it.link {
		e.SetXattrs, e.Xattrs = hasXattrs, it.kept.xattrs
	}
	if !it.dir && !it.link {
		if p.tree.Push.Mode != 0 {
			e.Mode = &p.tree.Push.Mode
		}
		if p.tree.Push.Owner != "" {
			e.Owner, e.Uid = p.tree.Push.Owner, nil
		}
		if p.tree.Push.Group != "" {
			e.Group, e.Gid = p.tree.Push.Group, nil
		}
	}
	return e
}

// directory makes a directory that is not there. Of one that is nothing but what lateOfDir says changes.
func (p *pushTree) directory(it item) []todo {
	if p.there[it.name].GetKind() == "directory" {
		p.count(&p.copied.Directories, 1, nil)
		return nil
	}
	e := &pb.TreeEntry{Path: text.EscapePath(p.place(it)), Kind: "directory", Mode: new(uint32(it.mode))}
	return []todo{{it, e, &p.copied.Directories}}
}

// lateOfDir is what a directory gets when all that is in it is there.
func (p *pushTree) lateOfDir(it item) []todo {
	if !p.keeps() {
		return nil
	}
	return []todo{{it, p.entry(it, "attributes"), nil}}
}

// onlyNeeded leaves out what is so already, unless something was made, by which times of directories changed.
func (p *pushTree) onlyNeeded(list []todo) []todo {
	if p.wrote {
		return list
	}
	return slices.DeleteFunc(list, func(t todo) bool { return p.isSo(t.entry, p.there[t.it.name]) })
}

// isSo reports whether what is there has the attributes of an entry.
func (p *pushTree) isSo(e *pb.TreeEntry, have *pb.FileStatus) bool {
	owns := func(want string, number *uint32, name string, id uint32) bool {
		if want != "" {
			return want == name
		}
		return number == nil || *number == id
	}
	return (e.Mode == nil || *e.Mode == have.Mode) &&
		(e.ModifiedAt == nil || e.ModifiedAt.AsTime().Equal(have.ModifiedAt.AsTime())) &&
		owns(e.Owner, e.Uid, have.Owner, have.Uid) && owns(e.Group, e.Gid, have.Group, have.Gid) &&
		(!e.SetXattrs || sameXattrs(e.Xattrs, have.Xattrs))
}

// attributes gives a file that is there what it shall have and has not.
func (p *pushTree) attributes(it item) []todo {
	e := p.entry(it, "attributes")
	if e.Mode == nil && p.same[it.name] && uint32(it.mode) != p.there[it.name].Mode&0o777 {
		e.Mode = new(uint32(it.mode))
	}
	bare := e.Mode == nil && e.ModifiedAt == nil && e.Owner == "" && e.Group == "" && e.Uid == nil && e.Gid == nil && !e.SetXattrs
	if bare || p.same[it.name] && p.isSo(e, p.there[it.name]) {
		return nil
	}
	return []todo{{it, e, nil}}
}

func (p *pushTree) symlink(it item) []todo {
	e := p.entry(it, "symlink")
	e.Target = text.EscapePath(it.target)
	if have := p.there[it.name]; have.GetKind() == "symlink" && have.SymlinkTarget == e.Target && p.isSo(e, have) {
		p.count(&p.copied.Links, 1, nil)
		return nil
	}
	return []todo{{it, e, &p.copied.Links}}
}

// hardLink makes a further name of a file, unless it is one.
func (p *pushTree) hardLink(it, first item) []todo {
	if of := p.there[first.name]; p.same[first.name] && of.Object != "" && of.Object == p.there[it.name].GetObject() {
		p.count(&p.copied.Links, 1, nil)
		p.advance(it.size)
		return nil
	}
	e := &pb.TreeEntry{Path: text.EscapePath(p.place(it)), Kind: "link", Target: text.EscapePath(p.place(first))}
	return []todo{{it, e, &p.copied.Links}}
}

// pushFile sends a large file.
func (p *pushTree) pushFile(ctx context.Context, it item) error {
	from, err := os.Open(it.full)
	if err != nil {
		return err
	}
	defer from.Close()
	o := p.tree.Push
	o.Parents = o.Parents && it.name == "."
	o.Mode, o.Size, o.Progress, o.separate = cmp.Or(o.Mode, uint32(it.mode)), it.size, p.progressOf(), p.tree.All
	n, err := p.l.PushFile(ctx, p.place(it), from, o)
	p.done(n, err)
	p.wrote = true
	return err
}
