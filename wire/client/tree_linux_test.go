package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// treeGuest answers the requests of trees as a guest of the entries of list.
type treeGuest struct {
	list   []*pb.DirectoryEntry
	status map[string]*pb.FileStatus // by path; absent where it is missing
	unread map[string]bool           // paths that cannot be read
	wrong  map[string]error          // why an entry is not made, by path
	most   int                       // descriptions of one reply; 0: any number
	stops  int                       // so many requests are interrupted before their last entry
	denied map[string]bool           // kinds of entries that the policy refuses
	made   []string                  // directories that were made by themselves

	mu      sync.Mutex
	entries []*pb.TreeEntry
}

func (g *treeGuest) serve(_ context.Context, request proto.Message) (proto.Message, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch request := request.(type) {
	case *pb.ListDirectoryRequest:
		return &pb.ListDirectoryResponse{Success: true, Entries: g.list}, nil
	case *pb.FileReadRequest:
		if g.unread[request.Path] {
			return nil, fault.On(request.Path, os.ErrPermission)
		}
		return &pb.FileReadResponse{Success: true, Data: []byte("new"), Eof: true, Mode: 0o100644}, nil
	case *pb.StatFilesRequest:
		if g.most > 0 && len(request.Paths) > g.most {
			return nil, fault.Wrapf(fault.ErrTooLarge, "more than one reply holds")
		}
		reply := &pb.StatFilesResponse{Success: true}
		for _, path := range request.Paths {
			status := g.status[path]
			if status == nil {
				status = &pb.FileStatus{Kind: "absent"}
			}
			reply.Files = append(reply.Files, status)
		}
		return reply, nil
	case *pb.CreateDirectoryRequest:
		g.made = append(g.made, request.Path)
		return &pb.CreateDirectoryResponse{Success: true}, nil
	case *pb.WriteFilesRequest:
		if proto.Size(request) > 1<<20 {
			return nil, fault.Wrapf(fault.ErrTooLarge, "a request of %d bytes", proto.Size(request))
		}
		reply := &pb.WriteFilesResponse{Success: true}
		for i, e := range request.Entries {
			if g.denied[e.Kind] {
				return nil, fault.Refuse("by the policy")
			}
			if i == len(request.Entries)-1 && g.stops > 0 {
				g.stops--
				reply.Results = append(reply.Results, &pb.TreeResult{Error: fault.Detail(context.Canceled)})
				break
			}
			g.entries = append(g.entries, e)
			reply.Results = append(reply.Results, &pb.TreeResult{})
			if err := g.wrong[e.Path]; err != nil {
				reply.Results[len(reply.Results)-1].Error = fault.Detail(fault.On(e.Path, err))
			}
		}
		return reply, nil
	}
	return nil, errors.ErrUnsupported
}

// failures collects what is told to Tree.Failed.
type failures struct {
	mu   sync.Mutex
	list []string
}

func (f *failures) add(path string, err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = append(f.list, path+": "+err.Error())
	return nil
}

// has reports whether there is a failure with each of these words, and no other.
func (f *failures) has(words ...string) bool {
	for _, word := range words {
		if !slices.ContainsFunc(f.list, func(line string) bool { return strings.Contains(line, word) }) {
			return false
		}
	}
	return len(f.list) == len(words)
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func reads(t *testing.T, path, content string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != content {
		t.Errorf("%s holds %q, %v; want %q", path, got, err, content)
	}
}

// A further name of a file whose first name could not be copied would be one of old content: it is not made.
func TestPushMakesNoNameOfAFileThatFailed(t *testing.T) {
	for name, size := range map[string]int{"small": 10, "large": smallFile + 1} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir+"/a", strings.Repeat("x", size))
			if err := os.Link(dir+"/a", dir+"/b"); err != nil {
				t.Fatal(err)
			}
			g := &treeGuest{
				status: map[string]*pb.FileStatus{"/t": {Kind: "directory"}},
				wrong:  map[string]error{"/t/a": os.ErrPermission}, // of a large file the guest takes no chunk
			}
			c, _ := agent(t, g.serve)
			var f failures
			got, err := c.PushTree(within(t, 20*time.Second), dir, "/t", Tree{All: true, Failed: f.add})
			if err != nil || got.Files != 0 || got.Links != 0 || !f.has("/a: ", "/b: its first name was not copied") {
				t.Errorf("%+v %v %q", got, err, f.list)
			}
			for _, e := range g.entries {
				if e.Kind == "link" {
					t.Errorf("a name was made of what is there: %v", e)
				}
			}
		})
	}
}

func TestPullMakesNoNameOfAFileThatFailed(t *testing.T) {
	uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
	status := &pb.FileStatus{Kind: "file", Mode: 0o644, SizeBytes: 3, Object: "1-2", Uid: uid, Gid: gid}
	g := &treeGuest{
		list: []*pb.DirectoryEntry{{Name: "a", SizeBytes: 3, Mode: 0o644}, {Name: "b", SizeBytes: 3, Mode: 0o644}},
		status: map[string]*pb.FileStatus{
			"/t": {Kind: "directory", Mode: 0o755, Uid: uid, Gid: gid}, "/t/a": status, "/t/b": status,
		},
		unread: map[string]bool{"/t/a": true},
	}
	c, _ := agent(t, g.serve)
	dir := t.TempDir()
	write(t, dir+"/a", "old content")
	write(t, dir+"/b", "good")
	var f failures
	got, err := c.PullTree(within(t, 20*time.Second), "/t", dir, Tree{All: true, Failed: f.add})
	if err != nil || got.Files != 0 || got.Links != 0 || !f.has("/t/a: ", "/t/b: its first name was not copied") {
		t.Errorf("%+v %v %q", got, err, f.list)
	}
	reads(t, dir+"/b", "good")
}

// A copy keeps the time of a file, and of a link, of one that is here already, too; the beginning of 1970 as any other.
func TestPullKeepsTimes(t *testing.T) {
	for _, when := range []time.Time{time.Unix(1_000_000_000, 123_456_789), time.Unix(0, 0)} {
		owned := func(kind string) *pb.FileStatus {
			return &pb.FileStatus{
				Kind: kind, Mode: 0o755, Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid()), ModifiedAt: timestamppb.New(when),
			}
		}
		g := &treeGuest{
			list:   []*pb.DirectoryEntry{{Name: "file", SizeBytes: 3, Mode: 0o100644, ModifiedAt: timestamppb.New(when)}},
			status: map[string]*pb.FileStatus{"/t": owned("directory"), "/t/file": owned("file")},
		}
		for _, name := range []string{"new", "there"} {
			entry := &pb.DirectoryEntry{Name: name, IsSymlink: true, SymlinkTarget: "x", ModifiedAt: timestamppb.New(when)}
			g.list, g.status["/t/"+name] = append(g.list, entry), owned("symlink")
			g.status["/t/"+name].SymlinkTarget = "x"
		}
		c, _ := agent(t, g.serve)
		dir := t.TempDir()
		if err := os.Symlink("x", dir+"/there"); err != nil {
			t.Fatal(err)
		}
		if got, err := c.PullTree(within(t, 20*time.Second), "/t", dir, Tree{All: true}); err != nil || got.Links != 2 || got.Files != 1 {
			t.Fatalf("%+v %v", got, err)
		}
		for _, name := range []string{"new", "there", "file"} {
			if info, err := os.Lstat(dir + "/" + name); err != nil || !info.ModTime().Equal(when) {
				t.Errorf("%s: %v, %v", name, info.ModTime(), err)
			}
		}
	}
}

// What the guest does not describe keeps what it has here, and is told.
func TestPullLeavesOutWhatIsNotDescribed(t *testing.T) {
	uid, gid := uint32(os.Getuid()), uint32(os.Getgid())
	g := &treeGuest{
		list: []*pb.DirectoryEntry{
			{Name: "error", SizeBytes: 3}, {Name: "gone", SizeBytes: 3}, {Name: "link", SizeBytes: 3}, {Name: "pipe"},
			{Name: "good", SizeBytes: 3, Mode: 0o100644},
		},
		status: map[string]*pb.FileStatus{
			"/t":       {Kind: "directory", Mode: 0o755, Uid: uid, Gid: gid},
			"/t/error": {Error: fault.Detail(os.ErrPermission)},
			"/t/link":  {Kind: "symlink", SymlinkTarget: "/etc/shadow"},
			"/t/pipe":  {Kind: "fifo"},
			"/t/good":  {Kind: "file", Mode: 0o644, SizeBytes: 3, Uid: uid, Gid: gid},
		},
	}
	c, _ := agent(t, g.serve)
	dir := t.TempDir()
	for _, name := range []string{"error", "gone", "link"} {
		write(t, filepath.Join(dir, name), "old")
	}
	var f failures
	got, err := c.PullTree(within(t, 20*time.Second), "/t", dir, Tree{All: true, Failed: f.add})
	if err != nil || got.Files != 1 || got.Unchanged != 0 ||
		!f.has("/t/error: permission denied", "/t/gone: file does not exist", "/t/link: is a symlink", "/t/pipe: neither") {
		t.Errorf("%+v %v %q", got, err, f.list)
	}
	for name, want := range map[string]string{"error": "old", "gone": "old", "link": "old", "good": "new"} {
		reads(t, filepath.Join(dir, name), want)
	}
}

// A pipe here is written to. It is not replaced by a file.
func TestPullKeepingWritesIntoAPipe(t *testing.T) {
	g := &treeGuest{status: map[string]*pb.FileStatus{
		"/f": {Kind: "file", Mode: 0o644, SizeBytes: 3, Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid())},
	}}
	c, _ := agent(t, g.serve)
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	end, err := os.OpenFile(pipe, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer end.Close()
	got, err := NewLink(c, nil).PullKeeping(within(t, 20*time.Second), "/f", pipe, Tree{All: true})
	if err != nil || got.Files != 1 || got.Bytes != 3 {
		t.Fatalf("%+v %v", got, err)
	}
	if info, err := os.Lstat(pipe); err != nil || info.Mode() != os.ModeNamedPipe|0o600 {
		t.Fatalf("the pipe is %v, %v", info.Mode(), err)
	}
	data := make([]byte, 3)
	if _, err := io.ReadFull(end, data); err != nil || string(data) != "new" {
		t.Errorf("%q, %v", data, err)
	}
}

// A name that is none here has in each copy the number that its guest says.
func TestOwnersAreOfTheirGuest(t *testing.T) {
	var a accounts
	for _, id := range []uint32{0, 1001} {
		if got := a.uid("no-such-user", id); got != id {
			t.Errorf("uid %d, want %d", got, id)
		}
		if got := a.gid("no-such-group", id); got != id {
			t.Errorf("gid %d, want %d", got, id)
		}
	}
	if got := a.uid("root", 7); got != 0 {
		t.Errorf("root is %d", got)
	}
}

// Extended attributes count as what they take, in requests and in replies.
func TestTreesWithLargeAttributes(t *testing.T) {
	g := &treeGuest{most: 3, status: map[string]*pb.FileStatus{"/t": {Kind: "directory"}}}
	c, _ := agent(t, g.serve)
	p := pushTree{treeCopy: treeCopy{l: NewLink(c, nil), tree: Tree{All: true}}, remote: "/t"}
	paths := []string{"/t"}
	var list []todo
	for i := range 40 {
		name := fmt.Sprint(i)
		paths = append(paths, path.Join("/t", name))
		xattrs := []*pb.CopiedAttribute{{Name: "user.large", Value: make([]byte, 60<<10)}}
		e := &pb.TreeEntry{Path: "/t/" + name, Kind: "attributes", SetXattrs: true, Xattrs: xattrs, ModifiedAt: timestamppb.Now()}
		list = append(list, todo{item{name: name}, e, nil})
	}
	all, err := p.stat(within(t, 20*time.Second), paths, false, true)
	if err != nil || len(all) != len(paths) || all[0].Kind != "directory" || all[40].Kind != "absent" {
		t.Errorf("%d descriptions, %v", len(all), err)
	}
	if err := p.send(within(t, 20*time.Second), 1, list); err != nil || len(g.entries) != len(list) {
		t.Errorf("%d entries, %v", len(g.entries), err)
	}
	g.entries = nil
	if err := p.sendBatch(within(t, 20*time.Second), list); err != nil || len(g.entries) != len(list) {
		t.Errorf("%d entries, %v", len(g.entries), err)
	}
}

// What an agent that stops in the middle of a request has not made is sent again; without another connection it is told.
func TestPushGoesOnWhereTheAgentStopped(t *testing.T) {
	for name, dial := range map[string]func(context.Context) (*Client, error){
		"again": func(context.Context) (*Client, error) { return nil, errors.ErrUnsupported }, "once": nil,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir+"/a", "1")
			write(t, dir+"/b", "2")
			g := &treeGuest{status: map[string]*pb.FileStatus{"/t": {Kind: "directory"}}, stops: 1}
			c, _ := agent(t, g.serve)
			var f failures
			got, err := NewLink(c, dial).PushTree(within(t, 20*time.Second), dir, "/t", Tree{Failed: f.add})
			want, failed := 2, []string{}
			if dial == nil {
				want, failed = 1, []string{"/t/b: context canceled"}
			}
			if err != nil || got.Files != want || !f.has(failed...) {
				t.Errorf("%+v %v %q", got, err, f.list)
			}
		})
	}
}

// Where the policy forbids to change modes a new directory is made by itself.
func TestPushMakesDirectoriesWhereModesAreNotChanged(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(dir+"/new", 0o755); err != nil {
		t.Fatal(err)
	}
	g := &treeGuest{status: map[string]*pb.FileStatus{"/t": {Kind: "directory"}}, denied: map[string]bool{"directory": true}}
	c, _ := agent(t, g.serve)
	got, err := c.PushTree(within(t, 20*time.Second), dir, "/t", Tree{})
	if err != nil || got.Directories != 2 || !slices.Equal(g.made, []string{"/t/new"}) {
		t.Errorf("%+v %v %q", got, err, g.made)
	}
}

// What is excluded is what a shell would match, or the pattern is an error.
func TestExclude(t *testing.T) {
	c := treeCopy{tree: Tree{Exclude: []string{"[!a]*.log", "/cache", "sub/[]x-]", "tmp/"}}}
	for name, want := range map[string]bool{
		"b.log": true, "a.log": false, "d/b.log": true, "cache": true, "d/cache": false, "d/tmp": true, "sub/]": true, "sub/-": true, "sub/y": false,
	} {
		if c.excluded(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
	for _, pattern := range []string{"**/x", "*.{a,b}", "[[:digit:]]", "[a"} {
		if _, err := (&Link{}).PushTree(t.Context(), t.TempDir(), "/t", Tree{Exclude: []string{pattern}}); fault.Code(err) != "invalid" {
			t.Errorf("%s: %v", pattern, err)
		}
		if _, err := (&Link{}).PullTree(t.Context(), "/t", t.TempDir(), Tree{Exclude: []string{pattern}}); fault.Code(err) != "invalid" {
			t.Errorf("%s: %v", pattern, err)
		}
	}
}
