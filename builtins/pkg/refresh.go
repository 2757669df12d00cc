package pkg

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"syscall"

	"github.com/quantix-kvm/guest-agent/builtins/fsys"
	"github.com/quantix-kvm/guest-agent/wire/fault"
	"github.com/quantix-kvm/guest-agent/wire/pb"
)

const (
	maxLists     = 50000 // files below the directories of lists; more are not compared
	maxListDepth = 8     // of directories
	maxHashed    = 1 << 20
)

// refreshLists has the manager read the lists of what is available anew. Nothing undoes that, so the journal records it
// before, and records that it did not begin where the lists are what they were.
func (j *job) refreshLists(ctx context.Context) error {
	before, known := j.lists()
	change := j.refreshed(pb.ChangeState_CHANGE_STATE_APPLIED)
	if j.call.Tx != nil {
		if err := j.call.Tx.Irreversible(ctx, change); err != nil {
			return err
		}
	}
	failed := j.patient(ctx, j.manager.refresh, false, nil, j.succeeded)
	after, still := j.lists()
	same := known && still && maps.Equal(before, after) && (failed != nil || len(after) > 0) // else they are kept elsewhere
	if j.guest.Answer != nil {
		same = failed != nil // nothing was run
	}
	switch {
	case !same:
		j.call.Report(change)
	case j.call.Tx != nil:
		j.call.Tx.NotBegun()
	}
	return failed
}

func (j *job) refreshed(state pb.ChangeState) *pb.Change {
	return &pb.Change{Op: j.op, Target: "lists of " + j.manager.name, Action: "refreshed", State: state}
}

// lists returns what identifies the files of the lists, by path; false: that is not known.
func (j *job) lists() (map[string]string, bool) {
	files := map[string]string{}
	root := j.guest.Of(j.call)
	for _, dir := range j.manager.lists {
		if err := addLists(root, dir, maxListDepth, files); err != nil {
			return nil, false
		}
	}
	return files, true
}

// addLists adds the files below a directory; one that is not there has none. The lock is no list.
func addLists(root *fsys.Root, dir string, depth int, files map[string]string) error {
	at, err := root.Follow(dir)
	if err != nil {
		return absent(err)
	}
	defer at.Close()
	opened, err := at.OpenDir()
	if err != nil {
		return absent(err)
	}
	defer opened.Close()
	names, err := opened.Names(maxLists)
	if err != nil {
		return err
	}
	for _, name := range names {
		meta, err := opened.Stat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist) || name == "lock":
		case err != nil:
			return err
		case meta.Kind == fsys.Directory && depth == 0 || len(files) >= maxLists:
			return fault.ErrTooLarge
		case meta.Kind == fsys.Directory:
			if err := addLists(root, path.Join(dir, name), depth-1, files); err != nil {
				return err
			}
		case meta.Kind == fsys.File && meta.Size <= maxHashed: // some managers write all anew
			content, err := root.ReadFile(path.Join(dir, name), maxHashed)
			if err != nil {
				return err
			}
			files[path.Join(dir, name)] = fmt.Sprintf("%x", sha256.Sum256(content))
		default:
			files[path.Join(dir, name)] = fmt.Sprint(meta.Kind, meta.Size, meta.Mtime, meta.Target)
		}
	}
	return nil
}

func absent(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil
	}
	return err
}
