package fsys

import (
	"context"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// maxDepth bounds the descriptors that the removal of a tree holds open.
const maxDepth = 64

// remover removes a tree. A directory deeper than maxDepth is moved up to the top of the tree and comes to its turn
// there, so that no depth exhausts descriptors.
type remover struct {
	ctx context.Context
	top handle
	mnt uint64
}

func removeTree(ctx context.Context, dir handle, name string) error {
	mnt, err := mountID(dir, name)
	if err != nil {
		return err
	}
	fd, file, err := openDir(dir, name)
	if err != nil {
		return err
	}
	defer file.Close()
	r := &remover{ctx: ctx, top: fd, mnt: mnt}
	for {
		err := r.empty(fd, 0)
		if err != nil {
			return err
		}
		// Not empty again: a deep directory came up, or somebody still writes here, which the context bounds.
		if err = unlinkAt(dir, name, true); err != unix.ENOTEMPTY {
			return err
		}
	}
}

// empty removes everything in a directory.
func (r *remover) empty(dir handle, depth int) error {
	names, err := namesIn(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := context.Cause(r.ctx); err != nil {
			return err
		}
		if err := r.remove(dir, name, depth); err != nil && err != unix.ENOENT {
			return fault.On(Escape(name), err)
		}
	}
	return nil
}

func (r *remover) remove(dir handle, name string, depth int) error {
	err := unlinkAt(dir, name, false)
	if err != unix.EISDIR && err != unix.EPERM { // EPERM: a directory too, on some file systems
		return err
	}
	fd, file, e := openDir(dir, name)
	if e == unix.ENOTDIR || e == unix.ELOOP {
		return err
	}
	if e != nil {
		return e
	}
	defer file.Close()
	if mnt, err := mountID(fd, ""); err != nil || mnt != r.mnt {
		return fault.Refuse("a file system is mounted here")
	}
	if depth >= maxDepth {
		return renameAt(dir, name, r.top, tempName(), false)
	}
	if err := r.empty(fd, depth+1); err != nil {
		return err
	}
	return unlinkAt(dir, name, true)
}

// namesIn reads a directory through a descriptor of its own, so that it can be read again.
func namesIn(dir handle) ([]string, error) {
	_, file, err := openDir(dir, ".")
	if err != nil {
		return nil, err
	}
	defer file.Close()
	names, err := file.Readdirnames(-1)
	return names, fault.Cause(err)
}

// mountID names the mount that an object is on; another mount of the same file system has another one.
func mountID(dir handle, name string) (uint64, error) {
	var x unix.Statx_t
	flags := unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if err := unix.Statx(dir, name, flags, unix.STATX_MNT_ID, &x); err != nil {
		return 0, err
	}
	return x.Mnt_id, nil
}

// noMountsBelow asks the kernel's list of mounts, which is quicker than a look at every directory of the tree.
func noMountsBelow(dir handle, name string) error {
	o, err := openObject(dir, name)
	if err != nil {
		return err
	}
	defer o.close()
	path, err := os.Readlink(o.path())
	if err != nil {
		return fault.Cause(err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fault.Cause(err)
	}
	for line := range strings.Lines(string(mounts)) {
		fields := strings.SplitN(line, " ", 6)
		if len(fields) < 6 {
			continue
		}
		if point := unoctal(fields[4]); point != path && Within(point, path) {
			return fault.Refuse("a file system is mounted on %s", Escape(point))
		}
	}
	return nil
}

// unoctal undoes what the kernel does to blanks in mountinfo.
func unoctal(text string) string {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] == '\\' && i+3 < len(text) {
			if code, err := strconv.ParseUint(text[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(code))
				i += 3
				continue
			}
		}
		b.WriteByte(text[i])
	}
	return b.String()
}
