package fsys

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// handle is the path of a directory: here an entry is a path and no open directory, so that it may lead to something
// else in the next call. Owners, extended attributes and special files are unsupported.
type handle = string

const separator = string(os.PathSeparator)

func unsupported(what string) error { return fault.Unsupported("%s: not on this system", what) }

// unlocked has nothing to do: no object has flags here.
func unlocked(xattrs map[string][]byte) map[string][]byte { return xattrs }

func unlockAt(handle, string) error { return nil }

func openAppend(dir handle, name string) (*os.File, error) { return openFile(dir, name, true) }

func openRoot(dir string) (*realRoot, error) {
	host := dir == "" || IsRoot(dir)
	if !host {
		if info, err := os.Stat(dir); err != nil {
			return nil, fault.On(dir, err)
		} else if !info.IsDir() {
			return nil, fault.Invalid("%s: is not a directory", dir)
		}
	}
	return &realRoot{dir: dir, host: host, handle: dir}, nil
}

func closeHandle(handle) error { return nil }

func dupHandle(h handle) (handle, error) { return h, nil }

func (r *realRoot) resolve(path string, links follow) (*At, error) {
	clean := Clean(path)
	if r.host {
		clean = withVolume(clean)
	} else {
		clean = filepath.Join(r.dir, filepath.Clean(separator+strings.TrimPrefix(clean, filepath.VolumeName(clean))))
	}
	dir, name := filepath.Dir(clean), filepath.Base(clean)
	resolved, err := finalPath(dir)
	if err != nil {
		return nil, err
	}
	if links == followNone && !Equal(resolved, dir) {
		return nil, fault.Wrapf(fault.ErrChanged, "a directory above it has become a link")
	}
	name = longName(resolved, name)
	if links == followAll {
		switch target, err := finalPath(clean); {
		case err == nil:
			resolved, name = filepath.Dir(target), filepath.Base(target)
		case errors.Is(err, fault.ErrRefused):
			return nil, err
		}
	}
	if !r.host {
		if resolved, name, err = r.inside(resolved, name); err != nil {
			return nil, err
		}
	}
	if name == separator {
		name = "."
	}
	at := &At{Path: text.EscapePath(filepath.Join(resolved, name)), Name: name, dir: &realDir{root: r, handle: resolved}}
	if !r.host {
		at.Path = text.EscapePath(r.relative(resolved, name))
	}
	return at, nil
}

func (r *realRoot) identify(path string) (Meta, error) {
	at, err := r.resolve(path, followAll)
	if err != nil {
		return Meta{}, err
	}
	return at.dir.stat(at.Name)
}

// syncAll has nothing to do: only an administrator may flush a volume, and files are synced one by one.
func syncAll(handle) error { return nil }

// inside refuses a link that leads out of the root: it cannot be read as one inside here. The root itself is ".".
func (r *realRoot) inside(dir, name string) (string, string, error) {
	base, err := finalPath(r.dir)
	switch {
	case err != nil:
		return "", "", err
	case Equal(filepath.Join(dir, name), base):
		return base, ".", nil
	case !Within(dir, base):
		return "", "", fault.Refuse("a link leads out of the root")
	}
	return dir, name, nil
}

// relative returns the path of a name in a directory as it is in the root.
func (r *realRoot) relative(dir, name string) string {
	base, err := finalPath(r.dir)
	if err != nil {
		base = r.dir
	}
	rest, err := filepath.Rel(base, filepath.Join(dir, name))
	if err != nil || rest == "." {
		return separator
	}
	return separator + rest
}

func readLink(_ *realRoot, dir handle, name string) (string, bool, error) {
	target, err := os.Readlink(filepath.Join(dir, name))
	return target, err == nil, fault.Cause(err)
}

func setAttr(dir handle, name string, _ Kind, attr Attr) error {
	if attr.UID != nil || attr.GID != nil {
		return unsupported("an owner")
	}
	if len(attr.Copied) > 0 {
		return unsupported("an extended attribute")
	}
	path := filepath.Join(dir, name)
	if attr.Mode != nil {
		if err := os.Chmod(path, fs.FileMode(*attr.Mode&0o777)); err != nil {
			return fault.Cause(err)
		}
	}
	if attr.Mtime != nil {
		return fault.Cause(os.Chtimes(path, time.Time{}, attr.Mtime.Time()))
	}
	return nil
}

func openFile(dir handle, name string, write bool) (*os.File, error) {
	flags := os.O_RDONLY
	if write {
		flags = os.O_RDWR
	}
	path := filepath.Join(dir, name)
	file, err := os.OpenFile(path, flags, 0)
	if err != nil {
		return nil, held(err, path)
	}
	return file, nil
}

func openLeased(dir handle, name string) (*os.File, error) { return openFile(dir, name, true) }

func openSink(handle, string, Kind) (*os.File, error) { return nil, unsupported("writing to a device") }

// startWriting has nothing to do: see the Linux one.
func startWriting(*os.File) {}

// Reserve has nothing to do: see the Linux one.
func Reserve(*os.File, int64) error { return nil }

func createAt(dir handle, name string) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	return file, fault.Cause(err)
}

func openDir(dir handle, name string) (handle, error) {
	path := filepath.Join(dir, name)
	info, err := os.Lstat(path)
	if err == nil && !info.IsDir() {
		err = syscall.ENOTDIR
	}
	return path, fault.Cause(err)
}

func openNames(dir handle) (*os.File, error) {
	file, err := os.Open(dir)
	return file, fault.Cause(err)
}

// lockFile does nothing: a file that is open cannot be removed on Windows anyway.
func lockFile(*os.File) error { return nil }

// sweepTemp removes a temporary file that nobody has open: one that is being written cannot be removed.
func sweepTemp(d *realDir, name string) (removed bool, err error) {
	err = removeTemp(d, name)
	if errors.Is(err, fault.ErrBusy) {
		return false, nil
	}
	return err == nil, err
}

func holdLock(*os.File) (release func(), err error) { return func() {}, nil }

func mkdirAt(dir handle, name string) error {
	return fault.Cause(os.Mkdir(filepath.Join(dir, name), 0o700))
}

func symlinkAt(target string, dir handle, name string) error {
	return fault.Cause(os.Symlink(target, filepath.Join(dir, name)))
}

func linkAt(fromDir handle, from string, toDir handle, to string) error {
	return fault.Cause(os.Link(filepath.Join(fromDir, from), filepath.Join(toDir, to)))
}

func unlinkAt(dir handle, name string, _ bool) error {
	path := filepath.Join(dir, name)
	if err := os.Remove(path); err != nil {
		return held(err, path)
	}
	return nil
}

func renameAt(fromDir handle, from string, toDir handle, to string, replace bool) error {
	return moveFile(filepath.Join(fromDir, from), filepath.Join(toDir, to), replace)
}

// syncDir has nothing to do: a directory cannot be synced on Windows, whose file systems log their names.
func syncDir(handle) error { return nil }

func makeAt(dir handle, name string, meta Meta) error {
	switch meta.Kind {
	case Directory:
		return mkdirAt(dir, name)
	case Symlink:
		return symlinkAt(meta.Target, dir, name)
	}
	return unsupported("a " + string(meta.Kind))
}

// sameMount takes a volume for a mount.
func sameMount(a, b handle) (bool, error) {
	return strings.EqualFold(filepath.VolumeName(a), filepath.VolumeName(b)), nil
}

func pseudo(handle) (bool, error) { return false, nil }

func stableInodes(handle) (bool, error) { return false, nil }

func noMountsBelow(handle, string) error { return nil }

func (d *realDir) mountNumber(string) (uint64, error) { return 0, nil }

func (d *realDir) mount(string) (Mount, error) { return Mount{}, nil }

func (r *realRoot) automount(string) (Mount, bool, error) { return Mount{}, false, nil }

func (r *realRoot) detachUserMounts([]string) ([]string, error) { return nil, nil }

func (r *realRoot) trigger(string) error { return nil }

func isMounted(string) (bool, error) { return false, nil }

func watchMounts(context.Context) (<-chan struct{}, error) { return nil, nil }

func removeTree(ctx context.Context, dir handle, name string, _ func(dir Meta) bool) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	err := os.RemoveAll(filepath.Join(dir, name))
	if failed := new(fs.PathError); errors.As(err, &failed) {
		return held(err, failed.Path)
	}
	return fault.Cause(err)
}

// copyStep is how many bytes are copied between two checks of the context.
const copyStep = 16 << 20

// nextData takes all for data.
func nextData(_ *os.File, offset, size int64) (data, end int64, err error) {
	return offset, min(offset+copyStep, size), nil
}

// CopyFitting is CopyFile.
func CopyFitting(ctx context.Context, to, from *os.File) error { return CopyFile(ctx, to, from) }

// CopyFile copies the content of a regular file into an empty one.
func CopyFile(ctx context.Context, to, from *os.File) error {
	for offset := int64(0); ; offset += copyStep {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n, err := io.Copy(to, io.NewSectionReader(from, offset, copyStep))
		if err != nil || n < copyStep {
			return fault.Cause(err)
		}
	}
}

func sharesBlocks(*os.File, string) bool { return false }

func shareBlocks(_, _ *os.File) error { return errors.ErrUnsupported }

// reserve is unsupported: what Windows takes it gives back with the handle.
func reserve(*os.File, int64) error { return errors.ErrUnsupported }

func isSparse(*os.File) (bool, error) { return false, nil }
