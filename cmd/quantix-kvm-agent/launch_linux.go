package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// become replaces this process by a program, with arguments of which the first is its name. It returns only where it cannot.
func become(program string, argv ...string) error { return unix.Exec(program, argv, os.Environ()) }

// safeToRun says why a program is not to be run with the rights of this process: somebody else than root, or this process's user,
// owns or may write the file or a directory above it, by the path as it is given or behind its links. The group of a directory is
// trusted, as Debian's staff is with /usr/local; in a directory in which all may write, one's own is safe where it is sticky.
func safeToRun(program string) error {
	real, err := filepath.EvalSymlinks(program)
	if err != nil {
		return err
	}
	if err := checkPath(real, true); err != nil {
		return err
	}
	for _, path := range []string{program, real} {
		for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
			if err := checkPath(dir, false); err != nil {
				return err
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	link, err := os.Lstat(program)
	if err == nil {
		err = checkOwner(program, link)
	}
	return err
}

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
