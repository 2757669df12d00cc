package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// become replaces this process by a program, with arguments of which the first is its name. It returns only where it cannot.
func become(program string, argv ...string) error { return unix.Exec(program, argv, os.Environ()) }

// safeToRun returns why a program is not to be run with the rights of this process: somebody else than root, or this process's
// user, owns or may write the file, a link on the way to it, or a directory above any of these. The group of a directory is
// trusted, as Debian's staff is with /usr/local; in a directory in which all may write, one's own is safe where it is sticky.
func safeToRun(program string) error {
	at, left, links := "/", strings.Split(program, "/"), 0
	if err := checkPath(at, false); err != nil {
		return err
	}
	for len(left) > 0 {
		name := left[0]
		left = left[1:]
		if name == "" {
			continue
		}
		next := filepath.Join(at, name) // with ".." the directory above, since there is no link in what is left behind
		info, err := os.Lstat(next)
		if err == nil {
			err = checkOwner(next, info)
		}
		switch {
		case err != nil:
			return err
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(next)
			if links++; err == nil && links > maxLinks {
				err = fault.On(program, unix.ELOOP)
			}
			if err != nil {
				return err
			}
			if filepath.IsAbs(target) {
				at = "/"
			}
			left = append(strings.Split(target, "/"), left...)
			continue
		}
		if err := checkPath(next, !info.IsDir()); err != nil {
			return err
		}
		at = next
	}
	return nil
}

// maxLinks is how many links the kernel follows in a path (MAXSYMLINKS).
const maxLinks = 40

func checkPath(path string, program bool) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	mode := info.Mode()
	others := mode&0o002 != 0 && (program || mode&fs.ModeSticky == 0)
	group := program && mode&0o020 != 0 && info.Sys().(*syscall.Stat_t).Gid != 0
	if others || group {
		return fault.Refuse("%s may be written by others than root", path)
	}
	return checkOwner(path, info)
}

func checkOwner(path string, info fs.FileInfo) error {
	if owner := info.Sys().(*syscall.Stat_t).Uid; owner != 0 && owner != uint32(os.Geteuid()) {
		return fault.Refuse("%s is of user %d", path, owner)
	}
	return nil
}
