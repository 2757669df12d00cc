//go:build unix

package core

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// checkOwners returns an error where another user than root and the agent's own could exchange what lies in the state
// directory: what the journal there says is run by the agent. The directories that lead to it count, below a root from that
// on; in a sticky one, as /tmp, what root or the agent made is safe.
func checkOwners(state, root string) error {
	if !below(state, root) {
		root = "/"
	}
	if err := checkPath(state, root); err != nil {
		return fmt.Errorf("state directory %s: %w; choose another with --state", state, err)
	}
	return filepath.WalkDir(state, func(path string, entry fs.DirEntry, err error) error {
		info := fs.FileInfo(nil)
		if err == nil {
			info, err = entry.Info()
		}
		if err != nil {
			return ignoreGone(err)
		}
		relative, _ := filepath.Rel(state, path)
		if why := WhyUntrusted(info); why != "" && entry.Type()&fs.ModeSymlink == 0 {
			return fault.Refuse("state directory %s: %s %s: it was not made by this agent", state, path, why)
		}
		if entry.IsDir() && (entry.Name() == "u" || strings.Count(relative, "/") >= 3) {
			return fs.SkipDir // images of files, which belong to anybody
		}
		return nil
	})
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return fault.Cause(err)
}

// below reports whether a path is in a directory or is that; both are absolute.
func below(path, dir string) bool {
	relative, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(relative)
}

// checkPath checks each directory and link from a root on that leads to a path, and the path itself. It fails with what
// is wrong with one.
func checkPath(path, root string) error {
	at, links := "/", 0
	rest := elements(path)
	for {
		info, err := os.Lstat(at)
		if err != nil {
			return fault.Cause(err)
		}
		why := WhyUntrusted(info)
		shared := info.Mode()&fs.ModeSticky != 0 && len(rest) > 0 && ownedByUs(info)
		if below(at, root) && why != "" && !shared {
			return fault.Refuse("%s %s, who could exchange what the agent trusts", at, why)
		}
		if info.Mode()&fs.ModeSymlink != 0 {
			if links++; links > 40 {
				return fault.On(at, syscall.ELOOP)
			}
			target, err := os.Readlink(at)
			if err != nil {
				return fault.Cause(err)
			}
			if !filepath.IsAbs(target) {
				target = filepath.Join(filepath.Dir(at), target)
			}
			rest = append(elements(target), rest...)
			at = "/"
			continue
		}
		if len(rest) == 0 {
			return nil
		}
		at, rest = filepath.Join(at, rest[0]), rest[1:]
	}
}

// elements returns the names that an absolute path is made of.
func elements(path string) []string {
	return strings.FieldsFunc(filepath.Clean(path), func(c rune) bool { return c == '/' })
}

// WhyUntrusted returns what is wrong with the owner or the mode of what must be root's or the agent's own; empty: nothing.
func WhyUntrusted(info fs.FileInfo) string {
	stat := info.Sys().(*syscall.Stat_t)
	switch {
	case !ownedByUs(info):
		return fmt.Sprintf("belongs to user %d", stat.Uid)
	case info.Mode()&fs.ModeSymlink != 0: // which has no mode
	case info.Mode().Perm()&0o002 != 0:
		return "can be written by any user"
	case info.Mode().Perm()&0o020 != 0 && stat.Gid != 0 && int(stat.Gid) != os.Getegid():
		return fmt.Sprintf("can be written by group %d", stat.Gid)
	}
	return ""
}

// ownedByUs reports whether something belongs to root, or to the user that the agent runs as.
func ownedByUs(info fs.FileInfo) bool {
	uid := info.Sys().(*syscall.Stat_t).Uid
	return uid == 0 || int(uid) == os.Geteuid()
}
