package scripttest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// object is one thing of a tree.
type object struct {
	fsys.Meta
	sum [sha256.Size]byte // of a file's content
}

// tree is all that lies below a directory, by its path there.
type tree map[string]object

// look describes a tree.
func look(root *fsys.Root) (tree, error) {
	t := tree{}
	err := walk(root, "/", func(at *fsys.At, meta fsys.Meta) error {
		o := object{Meta: meta}
		if meta.Kind == fsys.File {
			f, err := at.Open()
			if err != nil {
				return err
			}
			defer f.Close()
			h := sha256.New()
			if _, err := io.Copy(h, f); err != nil {
				return err
			}
			h.Sum(o.sum[:0])
		}
		t[at.Path] = o
		return nil
	})
	return t, err
}

// walk gives all that is at a path and below it, a directory before what is in it.
func walk(root *fsys.Root, name string, visit func(*fsys.At, fsys.Meta) error) error {
	at, err := root.At(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer at.Close()
	meta, err := at.Capture()
	if err == nil {
		err = visit(at, meta)
	}
	if err != nil || meta.Kind != fsys.Directory {
		return err
	}
	dir, err := at.OpenDir()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	names, err := dir.Names(100_000) // of a tree that a test made
	if err = errors.Join(err, dir.Close()); err != nil {
		return err
	}
	slices.Sort(names)
	for _, child := range names {
		if err := walk(root, path.Join(name, text.EscapePath(child)), visit); err != nil {
			return err
		}
	}
	return nil
}

// copyTree makes an empty directory the same as another one, times and owners too.
func copyTree(ctx context.Context, from, to *fsys.Root) error {
	type dir struct {
		path string
		meta fsys.Meta
	}
	var dirs []dir // their times are set when nothing in them is made any more
	err := walk(from, "/", func(at *fsys.At, meta fsys.Meta) error {
		if meta.Kind == fsys.Directory {
			dirs = append(dirs, dir{at.Path, meta})
		}
		if at.IsRoot() {
			return nil
		}
		there, err := to.At(at.Path)
		if err != nil {
			return err
		}
		defer there.Close()
		if meta.Kind != fsys.File {
			return there.Make(meta)
		}
		if err := at.CopyContent(ctx, there); err != nil {
			return err
		}
		return there.Apply(meta)
	})
	for _, d := range slices.Backward(dirs) {
		if err != nil {
			return err
		}
		var there *fsys.At
		if there, err = to.At(d.path); err == nil {
			err = errors.Join(there.Apply(d.meta), there.Close())
		}
	}
	return err
}

// differences returns how a tree is not as it was. Below the excused paths anything may have changed, and at those of commands
// the time of modification: a command that takes another one back writes the file once more.
func differences(before, after tree, excused, commands map[string]bool) (list []string) {
	names := maps.Clone(before)
	maps.Copy(names, after)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if is(excused, func(p string) bool { return fsys.Within(name, p) }) {
			continue
		}
		old, was := before[name]
		now, stays := after[name]
		above := is(excused, func(p string) bool { return fsys.Within(p, name) })
		switch {
		case !was && !above:
			list = append(list, name+" was not there before")
		case !was:
		case !stays:
			list = append(list, name+" is gone")
		default:
			timeless := above || is(commands, func(p string) bool { return fsys.Within(name, p) || fsys.Within(p, name) })
			if how := changes(old, now, timeless); how != "" {
				list = append(list, name+": "+how)
			}
		}
	}
	return list
}

func is(paths map[string]bool, so func(string) bool) bool {
	for p := range paths {
		if so(p) {
			return true
		}
	}
	return false
}

// changes returns how one object is not as it was; timeless: but for its time.
func changes(old, now object, timeless bool) string {
	var how []string
	add := func(differ bool, format string, args ...any) {
		if differ {
			how = append(how, fmt.Sprintf(format, args...))
		}
	}
	if old.Kind != now.Kind {
		return fmt.Sprintf("a %s became a %s", old.Kind, now.Kind)
	}
	add(old.sum != now.sum, "another content")
	add(old.Mode != now.Mode, "mode %04o became %04o", old.Mode, now.Mode)
	add(old.UID != now.UID || old.GID != now.GID, "owner %d:%d became %d:%d", old.UID, old.GID, now.UID, now.GID)
	add(old.Target != now.Target, "the link to %s became one to %s", old.Target, now.Target)
	add(!maps.EqualFunc(old.Xattrs, now.Xattrs, slices.Equal), "other extended attributes")
	add(old.Mtime != now.Mtime && !timeless && how == nil, "another time of modification")
	return strings.Join(how, ", ")
}

// dirsOfGuest and skeleton are what every scratch tree begins with. Its root is whoever runs the test, so that owner =
// "root" can be set by anybody.
var dirsOfGuest = []string{"etc", "home", "opt", "root", "run", "srv", "tmp", "usr/bin", "usr/local/bin", "var/lib", "var/log"}

func skeleton(dir string) error {
	for _, name := range dirsOfGuest {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
	}
	uid, gid := max(os.Getuid(), 0), max(os.Getgid(), 0)
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "etc/passwd"), fmt.Appendf(nil, "root:x:%d:%d:root:/root:/bin/sh\n", uid, gid), 0o644),
		os.WriteFile(filepath.Join(dir, "etc/group"), fmt.Appendf(nil, "root:x:%d:\n", gid), 0o644))
}
