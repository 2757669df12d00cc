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

// Abandon does as RemoveKept, and waits for no mount any more: a rollback that does, ends now, without what was changed on
// mounts that are not there, are read-only or full; spools on them stay. That cannot be made good later.
func (j *Journal) Abandon(ctx context.Context, id string, sees func(port string) bool) error {
	if err := j.Unusable(); err != nil {
		return err
	}
	ended, err := j.endWaiting(ctx, id, sees)
	if err != nil || ended && !slices.Contains(j.Kept(), id) { // what it waited for came back meanwhile, and nothing is left
		return err
	}
	return j.removeKept(ctx, id, sees, true)
}

// endWaiting rolls back a transaction that waits for a mount, without what was changed there. It does nothing if that has
// no unfinished rollback.
func (j *Journal) endWaiting(ctx context.Context, id string, sees func(port string) bool) (ended bool, err error) {
	waits := func() bool {
		j.mu.Lock()
		defer j.mu.Unlock()
		u, found := j.unfinished[id]
		return found && sees(u.info.Port)
	}
	if !waits() {
		return false, nil
	}
	if err := j.acquireWriter(ctx, false); err != nil {
		return false, err
	}
	defer func() { j.writer <- struct{}{} }()
	if !waits() { // a recovery has ended it meanwhile
		return false, nil
	}
	l, err := j.loadJournal("open", id)
	if err == nil && l.tx.log == nil {
		err = fault.Wrapf(fs.ErrNotExist, "the journal of transaction %s is missing", id)
	}
	if err == nil {
		err = l.tx.log.zeroTail()
	}
	if err != nil {
		l.close()
		return false, err
	}
	l.tx.abandoned = true
	r := j.rollBack(ctx, l.tx, nil)
	if r.Report.Halted {
		return false, errors.Join(r.Report.Err, r.Err, context.Cause(ctx))
	}
	j.mu.Lock()
	none, busy := len(j.unfinished) == 0, errors.Is(j.broken, fault.ErrBusy)
	j.mu.Unlock()
	switch {
	case !none:
		j.askForRecovery() // it finds out what is waited for now
	case busy:
		if err := j.becomeReady(); err != nil {
			j.setUnusable(err)
			return true, errors.Join(r.Err, err)
		}
		j.mu.Lock()
		j.broken = nil
		j.mu.Unlock()
	}
	return true, r.Err
}

// RemoveKept removes what is left of a transaction that could not be rolled back completely, with its spools on other
// mounts. The error is fs.ErrNotExist if nothing is left of one of a port that sees reports true for.
func (j *Journal) RemoveKept(ctx context.Context, id string, sees func(port string) bool) error {
	if err := j.Unusable(); err != nil {
		return err
	}
	return j.removeKept(ctx, id, sees, false)
}

func (j *Journal) removeKept(ctx context.Context, id string, sees func(port string) bool, abandoned bool) error {
	leave, err := j.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
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
		l.tx.abandoned = abandoned
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
