package journal

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/quantix-kvm/guest-agent/wire/fault"
)

// Kept returns the ids of the transactions that could not be rolled back completely and of which something is left.
func (j *Journal) Kept() []string {
	_ = j.refreshKept()
	j.mu.Lock()
	defer j.mu.Unlock()
	var ids []string
	for _, dir := range j.kept {
		ids = append(ids, filepath.Base(dir))
	}
	return ids
}

// RemoveKept removes what is left of a transaction that could not be rolled back completely, with its spools on other
// mounts. The error is fs.ErrNotExist if nothing is left of one of a port that sees reports true for.
func (j *Journal) RemoveKept(ctx context.Context, id string, sees func(port string) bool) error {
	if err := j.Unusable(); err != nil {
		return err
	}
	absent := fault.Wrapf(fs.ErrNotExist, "nothing is left of a transaction %s", id)
	if !slices.Contains(j.Kept(), id) { // which is also the check that it is a name
		return absent
	}
	l, err := j.loadJournal("kept", id)
	defer l.close()
	if !sees(l.port()) {
		return absent
	}
	if err == nil { // of a damaged one the spools are not known
		if err := l.tx.removeSpools(); err != nil {
			return err
		}
	}
	at, err := j.state.Exact("/kept/" + id)
	if err != nil {
		return err
	}
	err = j.do("kept.remove", func() error {
		if err := at.RemoveAll(ctx); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
	if err = errors.Join(err, at.Close()); err == nil {
		err = j.do("kept.syncdir", func() error { return syncDir(j.dir("kept")) })
	}
	return errors.Join(err, j.refreshKept())
}

// port returns what began the transaction; empty: that is not known.
func (l *loadedJournal) port() string {
	return l.tx.begin.GetPort()
}

// refreshKept lists the directories in kept again: an administrator may have removed some.
func (j *Journal) refreshKept() error {
	entries, err := os.ReadDir(j.dir("kept"))
	var kept []string
	for _, e := range entries {
		kept = append(kept, j.dir("kept", e.Name()))
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.kept = kept
	return err
}
