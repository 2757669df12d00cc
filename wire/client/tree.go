package client

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// Tree has the options for copying a tree. All are optional.
type Tree struct {
	Push   PushOptions // Mode, Owner, Group, Parents and SHA256, for every file; Mode 0: each file's own
	SHA256 bool        // compare every pulled file with the guest's digest of it afterwards
	// Times keeps times of modification, and modes of directories that are there already.
	Times bool
	// All keeps owners, setuid, setgid and sticky, times, extended attributes (user.*, ACLs, file capabilities) and which
	// names are those of one file. Owners are known by name, and by number where the other side has no such name. A pull
	// keeps owners if it runs as root.
	All bool
	// Checksum takes a file for unchanged by its digest alone, and not by its size and time of modification.
	Checksum bool
	// Exclude are patterns of *, ? and [a-z] of what is left out: of a name at any depth, or, with a slash in it, of the path
	// in the tree. Of a directory all that is below is left out.
	Exclude  []string
	Progress Progress // of all files together
	// Failed is called for what could not be copied; the copy goes on where it returns nil. Nil: the first failure ends it.
	Failed func(path string, err error) error
}

// CopyStats counts what was copied. Links are symbolic links, and further names of a file. Unchanged are the files that were
// the same on the other side, so that nothing of their content was sent; they are not among Files.
type CopyStats struct {
	Files, Directories, Links, Unchanged int
	Bytes                                int64
}

// Sizes of the requests of a tree, and of what is under way at a time.
const (
	treeBatch   = 256       // entries of one request
	treeBytes   = 256 << 10 // bytes of their files
	treeStats   = 500       // paths that are asked for at a time
	smallFile   = 64 << 10  // bytes of a file that is sent with others in one request
	treeFlight  = 2         // requests with files under way
	pullsFlight = 8         // files of up to pullSmall bytes that are pulled at a time
	pullSmall   = 256 << 10
)

// errSpecialFile is the cause of an error about a device, a pipe or a socket.
var errSpecialFile = fault.Unsupported("neither a file, a directory nor a link")

// item is one thing to copy. Its name is relative to both trees and has slashes; "." is the root itself.
type item struct {
	name   string
	dir    bool
	target string // of a link
	link   bool
	mode   fs.FileMode // permission bits
	size   int64
	mtime  time.Time
	kept   kept

	full   string // where it is here, if it is pushed
	source string // where it is in the guest; empty: below the root of the tree
}

// kept is what Tree.All keeps besides.
type kept struct {
	special      uint32 // setuid, setgid and sticky: 07000
	uid, gid     uint32
	owner, group string // names; empty where there is none
	object       string // the same for all names of one file; empty: it has one
	xattrs       []*pb.CopiedAttribute
}

// treeCopy is one copy that is under way.
type treeCopy struct {
	l    *Link
	tree Tree

	mu        sync.Mutex
	copied    CopyStats
	doneBytes int64
	total     int64
	lost      map[string]bool // the objects whose first name was not copied
	names     accounts
}

// errFirstName is why a further name of a file is not made: it would be one of what is there since before.
var errFirstName = errors.New("its first name was not copied")

// firstName notes whether the first name of a file with several was copied.
func (p *treeCopy) firstName(it item, err error) {
	if err == nil || it.kept.object == "" {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lost == nil {
		p.lost = map[string]bool{}
	}
	p.lost[it.kept.object] = true
}

// keeps reports whether more is kept than every agent can.
func (p *treeCopy) keeps() bool { return p.tree.All || p.tree.Times }

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
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.tree.Failed(path, err)
}

// excluded reports whether a name in the tree is left out.
func (p *treeCopy) excluded(name string) bool {
	for _, pattern := range p.tree.Exclude {
		of := name
		if pattern = strings.TrimSuffix(pattern, "/"); !strings.Contains(pattern, "/") {
			of = path.Base(name)
		}
		pattern, err := text.Glob(strings.TrimPrefix(pattern, "/"))
		if matched, _ := path.Match(pattern, of); err == nil && matched && name != "." {
			return true
		}
	}
	return false
}

// CheckExclude returns an error for a pattern of Tree.Exclude that is none.
func CheckExclude(pattern string) error {
	if _, err := text.Glob(pattern); err != nil {
		return fault.Invalid("the pattern %q: %v", pattern, err)
	}
	return nil
}

// checkExclude is CheckExclude of all of them.
func (t Tree) checkExclude() error {
	for _, pattern := range t.Exclude {
		if err := CheckExclude(pattern); err != nil {
			return err
		}
	}
	return nil
}

// count adds to one of the counters of copied, where there was no error.
func (p *treeCopy) count(n *int, by int, err error) {
	if err == nil {
		p.mu.Lock()
		*n += by
		p.mu.Unlock()
	}
}

// progressOf returns the function that adds the progress of one file to that of all.
func (p *treeCopy) progressOf() Progress {
	var before int64
	return func(done, _ int64) {
		p.advance(done - before)
		before = done
	}
}

// advance counts n more bytes as done.
func (p *treeCopy) advance(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.doneBytes += n
	if p.tree.Progress != nil {
		p.tree.Progress(p.doneBytes, max(p.total, p.doneBytes))
	}
}

// done counts a file whose content was copied.
func (p *treeCopy) done(n int64, err error) {
	p.count(&p.copied.Files, 1, err)
	p.mu.Lock()
	p.copied.Bytes += n
	p.mu.Unlock()
}

// unchanged counts a file whose content was there already.
func (p *treeCopy) unchanged(it item) {
	p.count(&p.copied.Unchanged, 1, nil)
	p.advance(it.size)
}

// parallel calls do for each of n things, several at a time, until one returns an error.
func parallel(ctx context.Context, workers, n int, do func(ctx context.Context, i int) error) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	next := make(chan int)
	var group sync.WaitGroup
	for range min(workers, n) {
		group.Go(func() {
			for i := range next {
				if err := do(ctx, i); err != nil {
					stop(err)
				}
			}
		})
	}
	for i := 0; i < n && ctx.Err() == nil; i++ {
		select {
		case next <- i:
		case <-ctx.Done():
		}
	}
	close(next)
	group.Wait()
	return context.Cause(ctx)
}

// stat asks for what is at the places of items, as their indices say. The error of one is in its FileStatus. Where one reply
// does not hold the descriptions of so many, fewer are asked for.
func (p *treeCopy) stat(ctx context.Context, paths []string, sha, xattrs bool) ([]*pb.FileStatus, error) {
	var all []*pb.FileStatus
	for most := treeStats; len(paths) > 0; {
		request := &pb.StatFilesRequest{Sha256: sha, Xattrs: xattrs}
		for _, path := range paths[:min(len(paths), most)] {
			request.Paths = append(request.Paths, text.EscapePath(path))
		}
		err := p.l.Do(ctx, func(ctx context.Context, c *Client) error {
			reply, err := Call[*pb.StatFilesResponse](ctx, c, request)
			if err == nil && len(reply.Files) != len(request.Paths) {
				err = fault.Wrapf(fault.ErrCorrupt, "%d descriptions of %d paths", len(reply.Files), len(request.Paths))
			}
			if err == nil {
				all = append(all, reply.Files...)
			}
			return err
		})
		if n := len(request.Paths); errors.Is(err, fault.ErrTooLarge) && n > 1 {
			most = n / 2
			continue
		}
		if err != nil {
			return nil, err
		}
		paths = paths[len(request.Paths):]
	}
	return all, nil
}

// notServed reports whether an agent has no requests for trees, or its policy forbids them.
func notServed(err error) bool {
	return errors.Is(err, errors.ErrUnsupported) || errors.Is(err, fault.ErrRefused)
}

// digestFile returns the SHA-256 of what a reader gives.
func digestFile(from io.Reader) ([]byte, error) {
	sum := sha256.New()
	if _, err := io.Copy(sum, from); err != nil {
		return nil, err
	}
	return sum.Sum(nil), nil
}

func digestOpen(open func() (*os.File, error)) ([]byte, error) {
	file, err := open()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return digestFile(file)
}

// sameXattrs reports whether two lists, each sorted by name, are the same.
func sameXattrs(a, b []*pb.CopiedAttribute) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Name != b[i].Name || string(a[i].Value) != string(b[i].Value) {
			return false
		}
	}
	return true
}

// guestJoin puts a name below a path of the guest.
func guestJoin(base, name string) string {
	if name == "." {
		return base
	}
	return strings.TrimSuffix(base, "/") + "/" + name
}
