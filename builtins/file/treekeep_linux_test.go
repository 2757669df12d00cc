package file_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/file"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

// A link takes the place of a link, and of nothing else.
func TestALinkOfATreeReplacesNoFile(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.write("/conf", "precious")
	must(t, os.Symlink("old", g.dir+"/link"))
	failed := g.tree(
		&pb.TreeEntry{Path: "/conf", Kind: "symlink", Target: "x"}, &pb.TreeEntry{Path: "/link", Kind: "symlink", Target: "new"},
	)
	if len(failed) != 1 || failed["/conf"] != "exists" {
		t.Error(failed)
	}
	g.has("/conf", "precious")
	if to, err := os.Readlink(g.dir + "/link"); err != nil || to != "new" {
		t.Error(to, err)
	}
}

// The system takes setuid, setgid and file capabilities away with the owner. What an entry does not say stays.
func TestAnOwnerAloneKeepsModeAndCapabilities(t *testing.T) {
	needRoot(t, "a file gets another owner")
	g := newGuest(t, file.Config{})
	g.write("/s", "x")
	must(t, unix.Chmod(g.dir+"/s", 0o6755))
	g.write("/c", "x")
	capability := []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	capable := unix.Setxattr(g.dir+"/c", "security.capability", capability, 0) == nil
	g.write("/plain", "x")
	must(t, unix.Chmod(g.dir+"/plain", 0o6755))
	for _, path := range []string{"/s", "/c"} {
		entry := &pb.TreeEntry{Path: path, Kind: "attributes", Uid: new(uint32(5)), Gid: new(uint32(6))}
		if failed := g.tree(entry); len(failed) > 0 {
			t.Error(failed)
		}
	}
	entry := &pb.TreeEntry{Path: "/plain", Kind: "attributes", Uid: new(uint32(5)), Mode: new(uint32(0o755))}
	if failed := g.tree(entry); len(failed) > 0 {
		t.Error(failed)
	}
	for path, want := range map[string]uint32{"/s": 0o6755, "/plain": 0o755} {
		var stat unix.Stat_t
		must(t, unix.Stat(g.dir+path, &stat))
		if stat.Mode&0o7777 != want || stat.Uid != 5 {
			t.Errorf("%s has mode %o and owner %d", path, stat.Mode, stat.Uid)
		}
	}
	have := make([]byte, 64)
	n, err := unix.Getxattr(g.dir+"/c", "security.capability", have)
	if capable && (err != nil || string(have[:n]) != string(capability)) {
		t.Errorf("the capability is %q, %v", have[:max(n, 0)], err)
	}
}

// The number that chown(2) takes for none is nobody's.
func TestATreeRefusesTheNumberOfNobody(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.write("/f", "x")
	for _, entry := range []*pb.TreeEntry{
		{Path: "/f", Kind: "attributes", Uid: new(^uint32(0))}, {Path: "/f", Kind: "attributes", Gid: new(^uint32(0))},
		{Path: "/f", Kind: "attributes", Owner: "4294967295"},
	} {
		if failed := g.tree(entry); failed["/f"] != "invalid" {
			t.Errorf("%v: %v", entry, failed)
		}
	}
}

// Of two entries for one file the second finds what the first one made, by whatever way it names the place.
func TestTwoEntriesForOneFile(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.mkdir("/d")
	must(t, os.Symlink("d", g.dir+"/way"))
	for _, second := range []string{"/d/key", "/way/key"} {
		failed := g.tree(
			&pb.TreeEntry{Path: "/d/key", Kind: "file", Data: []byte("a"), Mode: new(uint32(0o600))},
			&pb.TreeEntry{Path: second, Kind: "file", Data: []byte("b")},
		)
		info, err := os.Lstat(g.dir + "/d/key")
		if err != nil || info.Mode() != 0o600 || len(failed) > 0 {
			t.Errorf("%s: %v %v %v", second, info.Mode(), err, failed)
		}
		g.has("/d/key", "b")
		must(t, os.Remove(g.dir+"/d/key"))
	}
}

// stopsAfter is a context that ends after its end was asked for so many times.
type stopsAfter struct {
	context.Context
	mu   sync.Mutex
	left int
}

func (c *stopsAfter) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left--; c.left < 0 {
		return context.Canceled
	}
	return nil
}

// An interrupted request reports a result for each entry: the entries reported as made exist, and no others.
func TestATreeThatIsInterrupted(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.mkdir("/d")
	in := &pb.WriteFilesRequest{}
	for i := range 40 {
		kind := []string{"file", "directory"}[i%2]
		in.Entries = append(in.Entries, &pb.TreeEntry{Path: fmt.Sprintf("/d/%02d", i), Kind: kind, Data: []byte("x")})
	}
	op := g.table.Native(in)
	message, err := g.calls.Execute(&stopsAfter{Context: context.Background(), left: 20}, g.call, op, in)
	must(t, err)
	made, left := 0, 0
	for i, result := range message.(*pb.WriteFilesResponse).Results {
		_, err := os.Lstat(g.dir + in.Entries[i].Path)
		switch {
		case result.Error == nil && err == nil:
			made++
		case result.Error.GetCode() == "cancelled" && errors.Is(err, os.ErrNotExist):
			left++
		default:
			t.Errorf("%s: %v, %v", in.Entries[i].Path, result.Error, err)
		}
	}
	if made == 0 || left == 0 || made+left != len(in.Entries) {
		t.Errorf("%d were made, %d were not", made, left)
	}
	names, err := os.ReadDir(g.dir + "/d")
	must(t, err)
	if len(names) != made {
		t.Errorf("%d names of %d", len(names), made)
	}
}

// A mode or an owner of what is there already is changed as by the operations for that, so that a policy forbids both alike.
func TestWhatATreeIsAs(t *testing.T) {
	g := newGuest(t, file.Config{})
	op := g.table.Native(&pb.WriteFilesRequest{})
	for name, c := range map[string]struct {
		entry *pb.TreeEntry
		as    []string
	}{
		"file":      {&pb.TreeEntry{Kind: "file", Mode: new(uint32(1)), Owner: "x"}, []string{"file_write"}},
		"directory": {&pb.TreeEntry{Kind: "directory"}, []string{"create_directory"}},
		"mode":      {&pb.TreeEntry{Kind: "directory", Mode: new(uint32(1))}, []string{"create_directory", "file.chmod"}},
		"link":      {&pb.TreeEntry{Kind: "symlink", Uid: new(uint32(1))}, []string{"file.symlink", "file.chown"}},
		"times":     {&pb.TreeEntry{Kind: "attributes"}, []string{"file_write"}},
		"attributes": {
			&pb.TreeEntry{Kind: "attributes", Mode: new(uint32(1)), Group: "x"}, []string{"file_write", "file.chmod", "file.chown"},
		},
		"ACL": {&pb.TreeEntry{Kind: "attributes", SetXattrs: true}, []string{"file_write", "file.chmod"}},
	} {
		if as := op.SameAs(&pb.WriteFilesRequest{Entries: []*pb.TreeEntry{c.entry}}); !slices.Equal(as, c.as) {
			t.Errorf("%s: %s, want %s", name, strings.Join(as, " "), strings.Join(c.as, " "))
		}
	}
	if all := op.SameAs(nil); len(all) != 5 {
		t.Error(all)
	}
}

// Another request in the directory takes the name that a link has for a moment for a dead agent's. The link is made all the
// same.
func TestALinkIsMadeBesideARequestThatSweeps(t *testing.T) {
	g := newGuest(t, file.Config{})
	g.mkdir("/d")
	g.write("/d/a", "x")
	at, err := g.of.Files.At("/d/any")
	must(t, err)
	defer at.Close()
	stop := make(chan struct{})
	var sweeping sync.WaitGroup
	sweeping.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = at.Sweep()
			}
		}
	})
	defer sweeping.Wait()
	defer close(stop)
	for range 1000 {
		must(t, os.WriteFile(g.dir+"/d/new", nil, 0o644))
		must(t, os.Rename(g.dir+"/d/new", g.dir+"/d/b"))
		if failed := g.tree(&pb.TreeEntry{Path: "/d/b", Kind: "link", Target: "/d/a"}); len(failed) > 0 {
			t.Fatal(failed)
		}
	}
	info, err := os.Stat(g.dir + "/d/a")
	must(t, err)
	if names := info.Sys().(*syscall.Stat_t).Nlink; names != 2 {
		t.Errorf("%d names", names)
	}
}
