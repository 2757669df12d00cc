package fsys_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
)

// overlaid returns an overlay of a root.
func overlaid(t *testing.T, r *fsys.Root) *fsys.Root {
	t.Helper()
	o, err := r.Overlay(t.TempDir() + "/contents")
	must(t, err)
	t.Cleanup(func() { must(t, o.Close()) })
	return o
}

// own returns a state with the owner of what the test makes.
func own(meta fsys.Meta) fsys.Meta {
	meta.UID, meta.GID = uint32(os.Geteuid()), uint32(os.Getegid())
	return meta
}

// stdinIs makes descriptor 0 stand for a directory while a test runs.
func stdinIs(t *testing.T, dir string) {
	t.Helper()
	saved, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 3)
	must(t, err)
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	must(t, errors.Join(unix.Dup2(fd, 0), unix.Close(fd)))
	t.Cleanup(func() { must(t, errors.Join(unix.Dup2(saved, 0), unix.Close(saved))) })
}

// An overlay once did some of its work below whatever directory was open as descriptor 0.
func TestAnOverlayChangesNoRealDirectory(t *testing.T) {
	dir, stdin := scratch(t), t.TempDir()
	write(t, dir+"/file", "content")
	write(t, stdin+"/file", "another")
	write(t, stdin+"/.quantix-kvm-0123456789abcdef.tmp", "of a dead agent")
	write(t, dir+"/.quantix-kvm-0123456789abcdef.tmp", "of a dead agent")
	before, stdinBefore := listing(t, dir), listing(t, stdin)
	stdinIs(t, stdin)
	o := overlaid(t, root(t, dir))
	file := at(t, o, "/file")

	must(t, at(t, o, "/made").Make(own(fsys.Meta{Kind: fsys.Directory, Mode: 0o750})))
	must(t, at(t, o, "/link").Make(own(fsys.Meta{Kind: fsys.Symlink, Target: "file"})))
	must(t, at(t, o, "/fifo").Make(own(fsys.Meta{Kind: fsys.Fifo, Mode: 0o620})))
	must(t, file.CopyContent(t.Context(), at(t, o, "/copy")))
	for path, want := range map[string]fsys.Meta{
		"/made": {Kind: fsys.Directory, Mode: 0o750}, "/link": {Kind: fsys.Symlink, Mode: 0o777, Target: "file"},
		"/fifo": {Kind: fsys.Fifo, Mode: 0o620}, "/copy": {Kind: fsys.File, Mode: 0o600},
	} {
		meta, err := at(t, o, path).Stat()
		if err != nil || meta.Kind != want.Kind || meta.Target != want.Target || path != "/link" && meta.Mode != want.Mode {
			t.Errorf("%s: %+v, %v", path, meta, err)
		}
	}
	if data, err := o.ReadFile("/copy", 100); string(data) != "content" || err != nil {
		t.Errorf("the copy: %q, %v", data, err)
	}
	for _, path := range []string{"/file", "/made"} {
		if err := at(t, o, path).Make(own(fsys.Meta{Kind: fsys.Directory})); !errors.Is(err, fs.ErrExist) {
			t.Errorf("made over %s: %v", path, err)
		}
		if err := file.CopyContent(t.Context(), at(t, o, path)); !errors.Is(err, fs.ErrExist) {
			t.Errorf("copied over %s: %v", path, err)
		}
	}

	_, mounts := fsys.SameMount(file, at(t, o, "/copy"))
	_, sweep := file.Sweep()
	_, identity := o.Identify("/file")
	for what, err := range map[string]error{
		"link": file.Link(at(t, o, "/new")), "mounts": mounts, "sweep": sweep, "identity": identity,
	} {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if found, err := file.Pseudo(); found || err != nil {
		t.Errorf("pseudo: %v, %v", found, err)
	}
	must(t, errors.Join(file.Sync(), file.SyncDir(), o.SyncAll(), file.NoMountsBelow()))

	var names []string
	top, err := at(t, o, "/").OpenDir()
	must(t, err)
	names, err = top.Names(100)
	must(t, errors.Join(err, top.Close()))
	slices.Sort(names)
	want := []string{".quantix-kvm-0123456789abcdef.tmp", "copy", "fifo", "file", "link", "made"}
	if !slices.Equal(names, want) {
		t.Errorf("the overlay has %q", names)
	}
	if after := listing(t, dir); !slices.Equal(before, after) {
		t.Errorf("the directory below has %q", after)
	}
	if after := listing(t, stdin); !slices.Equal(stdinBefore, after) || content(t, stdin+"/file") != "another" {
		t.Errorf("descriptor 0 has %q", after)
	}
}

func TestAnOverlayKnowsWhatKeepsNothing(t *testing.T) {
	o := overlaid(t, host(t))
	for path, want := range map[string]bool{"/proc/sys/kernel/ostype": true, "/proc": false, "/etc/new": false} {
		if found, err := at(t, o, path).Pseudo(); found != want || err != nil {
			t.Errorf("%s: %v, %v", path, found, err)
		}
	}
}

func TestNothingMovesBetweenAnOverlayAndRealFiles(t *testing.T) {
	dir := scratch(t)
	write(t, dir+"/file", "content")
	r := root(t, dir)
	o, other := overlaid(t, r), overlaid(t, r)
	for _, pair := range [][2]*fsys.Root{{r, o}, {o, r}, {o, other}} {
		from, to := at(t, pair[0], "/file"), at(t, pair[1], "/to")
		_, mounts := fsys.SameMount(from, to)
		for what, err := range map[string]error{"rename": from.Rename(to, true), "link": from.Link(to), "mounts": mounts} {
			if !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	must(t, at(t, o, "/file").CopyContent(t.Context(), at(t, r, "/copied")))
	must(t, at(t, r, "/file").CopyContent(t.Context(), at(t, other, "/here")))
	if got := listing(t, dir); !slices.Equal(got, []string{"copied", "file"}) || content(t, dir+"/copied") != "content" {
		t.Errorf("%q", got)
	}
}

// The same steps end in the same errors and the same objects, in an overlay and in a real directory.
func TestAnOverlayDoesWhatTheFileSystemWould(t *testing.T) {
	type step struct {
		what string
		do   func(r *fsys.Root) error
	}
	on := func(path string, f func(*fsys.At) error) func(*fsys.Root) error {
		return func(r *fsys.Root) error {
			entry, err := r.At(path)
			if err != nil {
				return err
			}
			return errors.Join(f(entry), entry.Close())
		}
	}
	put := func(attr fsys.Attr) func(*fsys.At) error {
		return func(entry *fsys.At) error {
			staged, err := entry.Stage()
			if err != nil {
				return err
			}
			if _, err := staged.File.WriteString("new content"); err != nil {
				return err
			}
			return staged.Commit(attr, true)
		}
	}
	makes := func(meta fsys.Meta) func(*fsys.At) error {
		return func(entry *fsys.At) error { return entry.Make(own(meta)) }
	}
	var current *fsys.Root
	renames := func(to string, replace bool) func(*fsys.At) error {
		return func(entry *fsys.At) error {
			return on(to, func(target *fsys.At) error { return entry.Rename(target, replace) })(current)
		}
	}
	steps := []step{
		{"put", on("/a/new", put(fsys.Attr{}))},
		{"put over", on("/a/file", put(fsys.Attr{}))},
		{"put over with mode", on("/a/new", put(fsys.Attr{Mode: new(uint32(0o600))}))},
		{"put over two names", on("/a/two", put(fsys.Attr{}))},
		{"put over a directory", on("/a", put(fsys.Attr{}))},
		{"discard", on("/a/none", func(entry *fsys.At) error {
			staged, err := entry.Stage()
			return errors.Join(err, staged.Discard())
		})},
		{"mkdir", on("/a/d", func(entry *fsys.At) error { return entry.Mkdir(fsys.Attr{}) })},
		{"mkdir again", on("/a/d", func(entry *fsys.At) error { return entry.Mkdir(fsys.Attr{}) })},
		{"make", on("/a/m", makes(fsys.Meta{Kind: fsys.Directory, Mode: 0o2711, Mtime: fsys.Time{Sec: 5}}))},
		{"make a socket", on("/a/s", makes(fsys.Meta{Kind: fsys.Socket, Mode: 0o666, Mtime: fsys.Time{Sec: 5}}))},
		{"make again", on("/a/s", makes(fsys.Meta{Kind: fsys.Fifo}))},
		{"make in what is not there", on("/x/s", makes(fsys.Meta{Kind: fsys.Fifo}))},
		{"symlink", on("/a/l", func(entry *fsys.At) error { return entry.Symlink("file") })},
		{"symlink to a long path", on("/a/long", func(entry *fsys.At) error { return entry.Symlink(strings.Repeat("x", 4095)) })},
		{"symlink to one too long", on("/a/longer", func(entry *fsys.At) error { return entry.Symlink(strings.Repeat("x", 4096)) })},
		{"symlink replaced", on("/a/l", func(entry *fsys.At) error { return entry.Symlink("new") })},
		{"symlink over a file", on("/a/file", func(entry *fsys.At) error { return entry.Symlink("new") })},
		{"remove a full directory", on("/a", (*fsys.At).Remove)},
		{"remove", on("/a/d", (*fsys.At).Remove)},
		{"remove what is not there", on("/a/d", (*fsys.At).Remove)},
		{"rename onto", on("/a/new", renames("/a/file", false))},
		{"rename over", on("/a/new", renames("/a/file", true))},
		{"remove all", on("/a/m", func(entry *fsys.At) error { return entry.RemoveAll(t.Context()) })},
		{"remove the root", on("/", (*fsys.At).Remove)},
	}
	var results [2][]string
	for i := range results {
		dir := scratch(t)
		must(t, errors.Join(os.Mkdir(dir+"/a", 0o755), os.WriteFile(dir+"/a/file", []byte("old"), 0o640),
			os.Chmod(dir+"/a/file", 0o4711), os.WriteFile(dir+"/a/one", nil, 0o644), os.Link(dir+"/a/one", dir+"/a/two")))
		current = root(t, dir)
		if i == 1 {
			current = overlaid(t, current)
		}
		for _, s := range steps {
			results[i] = append(results[i], fmt.Sprintf("%s: %v", s.what, s.do(current)))
		}
		top, err := at(t, current, "/a").OpenDir()
		must(t, err)
		names, err := top.Names(100)
		must(t, err)
		slices.Sort(names)
		for _, name := range names {
			meta, err := top.Stat(name)
			if meta.Mtime.Sec != 5 {
				meta.Mtime = fsys.Time{}
			}
			if meta.Kind == fsys.Directory {
				meta.Size = 0
			}
			results[i] = append(results[i], fmt.Sprintf("%s: %v %v %o %d %d %d %q %v %d", name, err, meta.Kind,
				meta.Mode, meta.UID, meta.GID, meta.Size, meta.Target, meta.Mtime, meta.Links))
		}
		must(t, top.Close())
	}
	if !reflect.DeepEqual(results[0], results[1]) {
		for i := range max(len(results[0]), len(results[1])) {
			for k, list := range results {
				if i < len(list) {
					t.Log(k, list[i])
				}
			}
		}
		t.Error("they differ")
	}
}
