package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

const (
	stagingDir  = "/run" // where the directories to mount onto are made
	stagePrefix = "quantix-kvm-mount-"
	stageName   = "m" // in such a directory: what is mounted onto
)

// stage is a directory that root alone reaches, with one in it that mount(8) mounts onto. It is locked as long as its agent
// lives.
type stage struct {
	path string
	dir  int // open
}

func newStage() (*stage, error) {
	for {
		path, err := os.MkdirTemp(stagingDir, stagePrefix)
		if err != nil {
			return nil, err
		}
		s, err := openStage(path)
		if err == nil {
			if err = unix.Mkdirat(s.dir, stageName, 0o700); err == nil {
				return s, nil
			}
			_ = unix.Close(s.dir)
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fault.ErrBusy) { // else another agent took it for a dead one's
			return nil, errors.Join(err, os.Remove(path))
		}
	}
}

// openStage opens and locks a stage. What another user made, or others can enter, is none; one of an agent that lives is
// fault.ErrBusy.
func openStage(path string) (*stage, error) {
	dir, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var stat unix.Stat_t
	err = unix.Fstat(dir, &stat)
	if err == nil && (int(stat.Uid) != os.Geteuid() || stat.Mode&0o7777 != 0o700) {
		err = fault.ErrChanged
	}
	if err == nil && unix.Flock(dir, unix.LOCK_EX|unix.LOCK_NB) != nil {
		err = fault.ErrBusy
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(dir))
	}
	return &stage{path, dir}, nil
}

// point is the path of the directory that is mounted onto.
func (s *stage) point() string { return filepath.Join(s.path, stageName) }

// remove detaches what is mounted there, and removes the stage. It ends with it.
func (s *stage) remove() error {
	point := fmt.Sprintf("/proc/self/fd/%d/%s", s.dir, stageName)
	for unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
	}
	err := unix.Unlinkat(s.dir, stageName, unix.AT_REMOVEDIR)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, os.Remove(s.path), unix.Close(s.dir))
}

// removeStages removes the stages of agents that were killed, with what they mounted there. What cannot be removed stays.
func removeStages() {
	entries, _ := os.ReadDir(stagingDir)
	for _, e := range entries {
		random, ok := strings.CutPrefix(e.Name(), stagePrefix)
		if !ok || random == "" || strings.Trim(random, "0123456789") != "" {
			continue
		}
		if s, err := openStage(filepath.Join(stagingDir, e.Name())); err == nil {
			_ = s.remove()
		}
	}
}

// sweep removes what an agent left that was killed while it mounted something.
func (r *Room) sweep(context.Context) error {
	if r.guest.Live {
		removeStages()
	}
	return nil
}
