package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/quantix-kvm/guest-agent/runtime/config"
)

// stateOf returns where the state of a tree or an image is kept: in --state, else by its path.
func (f flags) stateOf(path string) (string, error) {
	if f.state != "" {
		return filepath.Abs(f.state)
	}
	base := filepath.Dir(config.StateDir)
	if os.Geteuid() != 0 {
		var err error
		if base, err = userState(); err != nil {
			return "", err
		}
	}
	sum := sha256.Sum256([]byte(path))
	return filepath.Join(base, applyDir, hex.EncodeToString(sum[:8])), nil
}

// userState is where a user's programs keep what must survive, as the XDG Base Directory Specification says.
func userState() (string, error) {
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return dir, nil
	}
	home, err := os.UserHomeDir()
	return filepath.Join(home, ".local", "state"), err
}

// treeID stands for the IDs of the machine and of the boot, of which a tree has none.
const treeID = "tree"

// lockWait is how long an apply waits for another one with the same state.
const lockWait = 5 * time.Second

// applyDir is the directory with the states of trees and images that were given none.
const applyDir = "quantix-kvm-apply"

// markName is the file of a state that says that the file systems of an image are mounted for writing.
const markName = "mounted"

// keyName is the file of a state with its key. It is made first of all, and removed last.
const keyName = "key"

// stateNames are what an agent makes in a state directory beside these two.
var stateNames = []string{"tx", "overlays", "jobs", "uploads"}

// takeState makes the state directory, and keeps other applies from it until the function that it returns is called. It waits
// for them that long. A directory where names of a state are anything else is refused.
func (f flags) takeState(wait time.Duration) (unlock func(), err error) {
	unlock, err = lockDirectory(f.state, wait)
	if err != nil {
		return nil, err
	}
	if err := f.checkState(); err != nil {
		unlock()
		return nil, err
	}
	return unlock, nil
}

// checkState returns an error where the state directory has what would be overwritten, or removed, and is not of an apply.
func (f flags) checkState() error {
	own := f.ownKey()
	for _, name := range append([]string{keyName, markName}, stateNames...) {
		info, err := os.Lstat(filepath.Join(f.state, name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return err
		case name == markName && info.Mode().IsRegular() && info.Size() == 0, name != markName && own:
		default:
			return fmt.Errorf("--state %s has a %s that no apply made: give a directory of its own", f.state, name)
		}
	}
	return nil
}

// ownKey reports whether the key in the state directory is one that an apply made.
func (f flags) ownKey() bool {
	path := filepath.Join(f.state, keyName)
	if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() || info.Size() > 1<<10 {
		return false
	}
	key, err := os.ReadFile(path)
	return err == nil && len(key) == 32+len(treeID) && strings.HasSuffix(string(key), treeID)
}

// forget removes the state where all is ended, and nothing of it is needed any more. What else lies in its directory stays, and
// so does the directory then.
func (f flags) forget(failed error) (err error) {
	defer func() {
		_ = os.Remove(f.state) // it stays where anything is in it
		if dir := filepath.Dir(f.state); filepath.Base(dir) == applyDir {
			_ = os.Remove(dir) // it stays where it has the state of another tree
		}
	}()
	var exit *exitError
	if failed != nil && (!errors.As(failed, &exit) || exit.code == 6) || f.unfinished() {
		return nil
	}
	if !f.ownKey() {
		return nil // it was not opened
	}
	for _, name := range stateNames {
		err = errors.Join(err, os.RemoveAll(filepath.Join(f.state, name)))
	}
	if err == nil {
		err = os.Remove(filepath.Join(f.state, keyName))
	}
	return err
}

// unfinished reports whether the state has transactions that must be taken back, or could not be.
func (f flags) unfinished() bool {
	return f.interrupted() || f.hasTransactions("kept")
}

// interrupted reports whether the state has transactions that must be taken back.
func (f flags) interrupted() bool { return f.hasTransactions("open") }

func (f flags) hasTransactions(dir string) bool {
	left, err := os.ReadDir(filepath.Join(f.state, "tx", dir))
	return err == nil && len(left) > 0
}
