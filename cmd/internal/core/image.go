package core

import (
	"errors"
	"io/fs"
	"path/filepath"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/text"
)

// StateBelow returns where the directory dir of the tree below root lies in the agent's own file system. Links in the
// tree lead where they would if it were booted, and never out of it. A state directory that is there already is refused
// if anything in it is a link where the agent keeps something of its own, since the kernel would follow that from
// outside.
func StateBelow(root, dir string) (string, error) {
	files, err := fsys.Open(root)
	if err != nil {
		return "", err
	}
	defer files.Close()
	resolved, err := files.Resolve(dir, true)
	if err != nil {
		return "", fault.Wrapf(err, "state directory %s below %s (choose another with --state): %v", dir, root, err)
	}
	place := filepath.Join(root, text.UnescapePath(resolved))
	return place, checkState(place)
}

// images are the directories of transactions for what they keep of others: a link there is kept as what it is, and
// never followed.
var images = filepath.Join("tx", "*", "*", "u")

// checkState refuses what is neither a file nor a directory nor a socket in a state directory.
func checkState(dir string) error {
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir():
			below, err := filepath.Rel(dir, path)
			if kept, _ := filepath.Match(images, below); kept {
				return fs.SkipDir
			}
			return err
		case entry.Type().IsRegular() || entry.Type() == fs.ModeSocket:
			return nil
		}
		return fault.On(path, fault.Refuse("is neither a file nor a directory, and the agent made no such thing"))
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
